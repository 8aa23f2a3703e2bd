#!/usr/bin/env bash
# Makes the environment of `make demo` and `make test`:  scripts/make_venv.sh FOLDER
#
# PYTHON: interpreter to use (default: the first of python3.11, 3.12, 3.10, python3 that fits).
# TORCH:  what to install as torch (default: the CPU build of the version in requirements/torch.in).
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${1:?usage: scripts/make_venv.sh FOLDER}
STAMP=$VENV/.vega3d-stamp
PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "make venv: $*"; }
fail() { printf '%s\n' "make venv: $*" >&2; exit 1; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if fits "$name"; then command -v "$name"; return; fi
    done
    fail "No Python 3.10, 3.11 or 3.12 was found: install one (apt-get install -y python3 python3-venv) or name it with PYTHON=..."
}

# ROS 2 counts as present where it is sourced and its rclpy belongs to an interpreter that fits.
has_ros() {
    [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] && fits python3 && python3 -c 'import rclpy' >/dev/null 2>&1
}

make_folder() {
    if [ -x "$VENV/bin/python" ] && fits "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        bash scripts/system_libraries.sh "python$version-venv"
    fi
    "$python" -m venv --clear "${venv_options[@]}" "$VENV" ||
        fail "$python cannot make an environment in $VENV: check that the folder can be written and python$version-venv is installed."
}

# uv is several times faster than pip; it reads none of pip's settings, so the ones that matter are handed on.
prepare_uv() {
    local index
    index=${PIP_INDEX_URL:-$("$VENV/bin/pip" config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
    [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}
    export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 UV_HTTP_TIMEOUT=180
    "$VENV/bin/pip" install --quiet --disable-pip-version-check "$(grep -m1 '^uv==' requirements/lock.txt)"
}

install_locks() {
    if prepare_uv && "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" "$@"; then return; fi
    say "uv could not install everything; trying with pip."
    "$VENV/bin/pip" install --quiet --disable-pip-version-check "$@" ||
        fail "The packages of requirements/ could not be installed: check the connection to the package index and run it again."
}

install_torch() {
    local wanted pip=("$VENV/bin/pip" install --quiet --disable-pip-version-check)
    wanted=$(grep -m1 '^torch==' requirements/torch.in)
    if "$VENV/bin/python" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '${wanted#torch==}')" >/dev/null 2>&1; then
        return
    fi
    if [ -n "${TORCH:-}" ]; then
        "${pip[@]}" "$TORCH" || fail "'$TORCH' could not be installed: correct TORCH=..."
        return
    fi
    # The default index carries no CPU build, but a mirror or a folder set in pip's own configuration may.
    "${pip[@]}" --no-deps "$wanted+cpu" 2>/dev/null && return
    "${pip[@]}" --no-deps --retries 1 --timeout 15 --index-url "$PYTORCH_CPU_INDEX" "$wanted+cpu" 2>/dev/null && return
    say "No CPU build of torch is within reach; installing the default build, which downloads about 3 GB."
    "${pip[@]}" "$wanted" || fail "$wanted could not be installed: allow access to $PYTORCH_CPU_INDEX or name a build with TORCH=..."
}

locks=(-r requirements/lock.txt)
venv_options=()
ros=wheels
if has_ros; then
    ros=$ROS_DISTRO
    python=$(command -v python3)
    venv_options=(--system-site-packages)
else
    python=$(find_python)
    locks+=(-r requirements/lock-ros.txt)
fi

key="$ros ${TORCH:-cpu} $(cat requirements/lock.txt requirements/lock-ros.txt requirements/torch.in setup.py "$0" | sha256sum)"
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$key" ] && "$VENV/bin/python" -c '' 2>/dev/null; then exit 0; fi
if [ -f "$STAMP" ] && [ "$(cut -d' ' -f1 "$STAMP")" != "$ros" ]; then
    # With ROS 2 sourced or not, the environment is of another kind.
    rm -rf "$VENV"
fi

say "$VENV with $("$python" --version), ROS 2 from $([ "$ros" = wheels ] && echo wheels || echo "the sourced $ros")"
make_folder
install_locks "${locks[@]}"
install_torch
"$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
# The loader of the ROS wheels restarts Python once; the guard of another environment must not stop it.
if ! (unset _ROS_WHEELS_BOOTSTRAP_COMPLETE; MUJOCO_GL=${MUJOCO_GL:-egl} "$VENV/bin/python" scripts/check_rendering.py); then
    bash scripts/system_libraries.sh libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libgles2 libglib2.0-0
    (unset _ROS_WHEELS_BOOTSTRAP_COMPLETE; MUJOCO_GL=${MUJOCO_GL:-egl} "$VENV/bin/python" scripts/check_rendering.py) ||
        fail "MuJoCo cannot render: install a working EGL (libegl1 and a driver), or set MUJOCO_GL to osmesa or glfw."
fi
printf '%s' "$key" >"$STAMP"
say "ready."
