#!/usr/bin/env bash
# A <capsule> in a URDF: with version="1.1" on <robot> it is read; without, the link's whole collision geometry is lost,
# its boxes too, and the call that reads it returns as if nothing had happened.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pin==4.1.0" "numpy<3"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pinocchio

LINK = """<link name="arm">
  <inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>
  <collision><geometry><box size="1 1 1"/></geometry></collision>
  <collision><geometry><capsule radius="0.1" length="0.5"/></geometry></collision>
</link>"""


def shapes(version):
    urdf = f'<robot name="r"{version}>{LINK}</robot>'
    model = pinocchio.buildModelFromXML(urdf)
    kind = pinocchio.GeometryType.COLLISION
    return [geometry.name for geometry in pinocchio.buildGeomFromUrdfString(model, urdf, kind).geometryObjects]


print("pinocchio", pinocchio.__version__)
plain, marked = shapes(""), shapes(' version="1.1"')
print("without version:", plain)
print('version="1.1":', marked)
sys.exit(0 if (len(plain), len(marked)) == (0, 2) else 1)
PYTHON
