"""Write robosuite's Panda as a URDF, so that the robot side needs no simulator to know the arm.

    python -m sim.worlds.export_urdf config/robots/libero_panda.urdf

Lengths in m, masses in kg, angles in rad.  Everything is read from the compiled MuJoCo model
(`robosuite/models/assets/robots/panda/robot.xml` with `grippers/panda_gripper.xml`), except the
joint velocity limits, which MJCF cannot hold: they are those of Franka's data sheet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
import pinocchio as pin

from policies.files.command_line import command, command_parser, results_folder
from policies.files.made_once import write_whole

ARM_JOINTS = 7
FLANGE = "panda_hand_flange"
TCP = "panda_tcp"
DRAKE = "http://drake.mit.edu"
# Franka Emika Panda data sheet, rad/s and m/s (the fingers share 0.1 m/s of closing speed).
VELOCITY_LIMITS = (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)
FINGER_VELOCITY_LIMIT = 0.05

LINKS = {
    "robot0_link0": "panda_link0",
    **{f"robot0_link{i}": f"panda_link{i}" for i in range(1, 8)},
    "robot0_right_hand": FLANGE,
    "gripper0_right_gripper": "panda_hand",
    "gripper0_leftfinger": "panda_leftfinger",
    "gripper0_rightfinger": "panda_rightfinger",
    "gripper0_finger_joint1_tip": "panda_leftfinger_tip",
    "gripper0_finger_joint2_tip": "panda_rightfinger_tip",
}


def compile_panda() -> mujoco.MjModel:
    """The bare arm with its gripper, compiled by MuJoCo; its first body stands at the world's origin."""
    from robosuite.models.grippers import PandaGripper
    from robosuite.models.robots import Panda

    robot = Panda()
    robot.add_gripper(PandaGripper())
    # An arena sets this for every robot in it; without one MuJoCo would read the joint ranges as degrees.
    robot.root.insert(0, ET.Element("compiler", angle="radian"))
    return mujoco.MjModel.from_xml_string(robot.get_xml())


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
    return " ".join(f"{float(value) + 0.0:.15g}" for value in values)


def _rotation(wxyz: np.ndarray) -> np.ndarray:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, wxyz)
    return matrix.reshape(3, 3)


def _origin(parent: ET.Element, position: np.ndarray, rotation: np.ndarray) -> None:
    rpy = pin.rpy.matrixToRpy(rotation)
    ET.SubElement(parent, "origin", xyz=_numbers(position), rpy=_numbers(rpy))


def _link(model: mujoco.MjModel, body: int, name: str) -> ET.Element:
    link = ET.Element("link", name=name)
    if model.body_mass[body] > 0.0:
        inertial = ET.SubElement(link, "inertial")
        _origin(inertial, model.body_ipos[body], _rotation(model.body_iquat[body]))
        ET.SubElement(inertial, "mass", value=_numbers((model.body_mass[body],)))
        ixx, iyy, izz = (f"{value:.12g}" for value in model.body_inertia[body])
        ET.SubElement(inertial, "inertia", ixx=ixx, ixy="0", ixz="0", iyy=iyy, iyz="0", izz=izz)
    return link


def _visual_between(link: ET.Element, end: np.ndarray, radius: float = 0.05) -> None:
    """A cylinder from the link's origin to the next joint: enough to see the arm in a viewer."""
    length = float(np.linalg.norm(end))
    if length < 1e-6:
        return
    z = end / length
    x = np.cross([0.0, 1.0, 0.0] if abs(z[1]) < 0.9 else [1.0, 0.0, 0.0], z)
    x /= np.linalg.norm(x)
    visual = ET.SubElement(link, "visual")
    _origin(visual, end / 2, np.column_stack([x, np.cross(z, x), z]))
    geometry = ET.SubElement(visual, "geometry")
    ET.SubElement(geometry, "cylinder", radius=_numbers((radius,)), length=_numbers((length,)))


def _joint(model: mujoco.MjModel, body: int, parent: str, child: str) -> list[ET.Element]:
    """The URDF joint between a MuJoCo body and its parent, with a transmission if it has a rotor's inertia."""
    index = int(model.body_jntadr[body])
    rotation = _rotation(model.body_quat[body])
    if index < 0:
        fixed = ET.Element("joint", name=f"{child}_fixed", type="fixed")
        _place(fixed, model.body_pos[body], rotation, parent, child)
        return [fixed]
    is_finger = model.jnt_type[index] == mujoco.mjtJoint.mjJNT_SLIDE
    lower, upper = model.jnt_range[index]
    axis = model.jnt_axis[index].copy()
    name = model.joint(index).name.replace("gripper0_", "panda_").replace("robot0_", "panda_")
    if is_finger and upper <= 0.0:  # robosuite's second finger opens towards negative values, a ROS finger from 0 up
        axis, lower, upper = -axis, -upper, -lower
    joint = ET.Element("joint", name=name, type="prismatic" if is_finger else "revolute")
    _place(joint, model.body_pos[body], rotation, parent, child)
    ET.SubElement(joint, "axis", xyz=_numbers(axis))
    actuator = next(a for a in range(model.nu) if model.actuator_trnid[a, 0] == index)
    effort = (model.actuator_forcerange if is_finger else model.actuator_ctrlrange)[actuator, 1]
    velocity = FINGER_VELOCITY_LIMIT if is_finger else VELOCITY_LIMITS[index]
    ET.SubElement(
        joint, "limit", lower=_numbers((lower,)), upper=_numbers((upper,)),
        effort=_numbers((effort,)), velocity=_numbers((velocity,)),
    )  # fmt: skip
    dof = int(model.jnt_dofadr[index])
    ET.SubElement(
        joint, "dynamics",
        damping=_numbers((model.dof_damping[dof],)), friction=_numbers((model.dof_frictionloss[dof],)),
    )  # fmt: skip
    if is_finger:
        return [joint]
    transmission = ET.Element("transmission", name=f"{name}_transmission")
    ET.SubElement(transmission, "type").text = "transmission_interface/SimpleTransmission"
    ET.SubElement(transmission, "joint", name=name)
    motor = ET.SubElement(transmission, "actuator", name=f"{name}_motor")
    ET.SubElement(motor, "mechanicalReduction").text = "1"
    ET.SubElement(motor, "drake:gear_ratio", value="1")
    ET.SubElement(motor, "drake:rotor_inertia", value=_numbers((model.dof_armature[dof],)))
    return [joint, transmission]


def _place(joint: ET.Element, position: np.ndarray, rotation: np.ndarray, parent: str, child: str) -> None:
    ET.SubElement(joint, "parent", link=parent)
    ET.SubElement(joint, "child", link=child)
    _origin(joint, position, rotation)


def panda_urdf() -> str:
    """The URDF text.

    Frames: `panda_link0` is robosuite's `robot0_base`; `panda_hand_flange` is `robot0_right_hand`;
    `panda_tcp` has the position of site `gripper0_grip_site` and the orientation of `robot0_right_hand`,
    the pose that robosuite reports as `robot0_eef_pos` and `robot0_eef_quat`.
    """
    model = compile_panda()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    robot = ET.Element("robot", {"name": "libero_panda", "xmlns:drake": DRAKE})
    links: dict[str, ET.Element] = {}
    for body in range(1, model.nbody):
        name = LINKS.get(model.body(body).name)
        if name is None:
            continue
        link = _link(model, body, name)
        links[name] = link
        robot.append(link)
        parent_body = int(model.body_parentid[body])
        parent = LINKS.get(model.body(parent_body).name)
        if parent is None:
            if np.any(data.xpos[body]) or not np.allclose(data.xquat[body], [1, 0, 0, 0]):
                raise ValueError("panda_link0 would not coincide with robot0_base: the robosuite model has changed.")
            continue
        _visual_between(links[parent], model.body_pos[body], 0.01 if "finger" in name else 0.05)
        robot.extend(_joint(model, body, parent, name))
    flange = model.body("robot0_right_hand").id
    rotation = data.xmat[flange].reshape(3, 3)
    offset = rotation.T @ (data.site("gripper0_grip_site").xpos - data.xpos[flange])
    ET.SubElement(robot, "link", name=TCP)
    tcp = ET.SubElement(robot, "joint", name=f"{TCP}_fixed", type="fixed")
    _place(tcp, offset, np.eye(3), FLANGE, TCP)
    ET.indent(robot)
    header = (
        '<?xml version="1.0"?>\n'
        "<!-- Made by `python -m sim.worlds.export_urdf` from robosuite 1.4's Panda, the arm of LIBERO.\n"
        "     Not for a real arm: its masses and rotor inertias are those of the simulation. -->\n"
    )
    return header + ET.tostring(robot, encoding="unicode") + "\n"


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.worlds.export_urdf", __doc__)
    parser.add_argument("output", type=Path, help="the URDF to write")
    output = parser.parse_args(argv).output
    results_folder(output.parent, "folder")
    write_whole(output, panda_urdf())
    return 0


if __name__ == "__main__":
    sys.exit(main())
