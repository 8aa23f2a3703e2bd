#!/usr/bin/env bash
# robosuite 1.4.0 brings two descriptions of the Panda: the MJCF model that it simulates, and a URDF.  With equal joint
# angles the URDF's hand is 0.333 m lower and 0.1 m to the side, in every pose: its first joint stands at (0, -0.1, 0)
# instead of (0, 0, 0.333).  Who plans with the URDF for the simulated arm is off by as much.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pin==4.1.0" "mujoco==3.3.2" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "robosuite==1.4.0"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import files, version

import mujoco
import numpy as np
import pinocchio

ENDS = ("bullet_data/panda_description/urdf/panda_arm_hand.urdf", "assets/robots/panda/robot.xml")
urdf, mjcf = (next(file.locate() for file in files("robosuite") if str(file).endswith(end)) for end in ENDS)
planned = pinocchio.buildModelFromXML(urdf.read_text())
simulated = mujoco.MjModel.from_xml_path(str(mjcf))
data, state = planned.createData(), mujoco.MjData(simulated)
print("robosuite", version("robosuite"), "mujoco", mujoco.__version__, "pinocchio", pinocchio.__version__)
apart = []
for angles in ([0.0] * 7, [0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.8], [1.0, 0.5, -0.5, -1.5, 0.3, 2.0, -0.4]):
    configuration = np.zeros(planned.nq)
    configuration[:7] = state.qpos[:7] = angles
    pinocchio.framesForwardKinematics(planned, data, configuration)
    mujoco.mj_kinematics(simulated, state)
    hand = data.oMf[planned.getFrameId("panda_hand")].translation
    body = state.body("right_hand").xpos
    print("joints", angles, "URDF", hand.round(4), "MJCF", body.round(4))
    apart.append(hand - body)
print("URDF minus MJCF:", np.round(apart, 4).tolist())
sys.exit(0 if np.allclose(apart, [0.0, -0.1, -0.333], atol=1e-3) else 1)
PYTHON
