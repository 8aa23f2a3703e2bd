#!/usr/bin/env bash
# Installs Debian or Ubuntu packages as root, or prints the line that does:  scripts/system_libraries.sh PACKAGE...
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "System packages are missing: run 'sudo apt-get update && sudo apt-get install -y $*' and try again." >&2
    exit 1
fi
echo "Installing system packages: $*"
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"; } >/dev/null ||
    { echo "System packages could not be installed: run 'apt-get update && apt-get install -y $*' and read why." >&2; exit 1; }
