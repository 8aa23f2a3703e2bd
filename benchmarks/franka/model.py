"""An FR3 for the simulator and for policy_node, both from the URDF that franka-sim brings, without its meshes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

PREFIX = "fr3_"
# What the URDF lacks.  The simulator's stiff servo is stable only above kd dt / 2 = 0.1 kg m^2 of a joint's own.
ARMATURE_KG_M2, DAMPING_NM_S = 0.2, 1.0
HAND_RPY, HAND_TO_TCP_M = (0.0, 0.0, -0.785398163397448), 0.1034  # franka_description, the Franka Hand


def without_meshes(urdf: Path) -> ET.Element:
    """The robot, its visual and collision geometry removed."""
    robot = ET.parse(urdf).getroot()
    for link in robot.iter("link"):
        for kind in ("visual", "collision"):
            for shape in link.findall(kind):
                link.remove(shape)
    return robot


def write_mjcf(urdf: Path, path: Path) -> None:
    """The model for $FR3_MJCF."""
    import mujoco

    spec = mujoco.MjSpec.from_string(ET.tostring(without_meshes(urdf), encoding="unicode"))
    for joint in spec.joints:
        joint.armature, joint.damping = ARMATURE_KG_M2, DAMPING_NM_S
    spec.compile()
    path.write_text(spec.to_xml())


def write_urdf(urdf: Path, path: Path) -> None:
    """The model for policy_node: names as franka_description gives them, and the hand's tool centre point."""
    robot = without_meshes(urdf)
    for item in robot.iter():
        if item.tag in ("link", "joint") and "name" in item.attrib:
            item.set("name", PREFIX + item.attrib["name"])
        if item.tag in ("parent", "child"):
            item.set("link", PREFIX + item.attrib["link"])
    for parent, child, xyz, rpy in (
        ("link8", "hand", (0.0, 0.0, 0.0), HAND_RPY),
        ("hand", "hand_tcp", (0.0, 0.0, HAND_TO_TCP_M), (0.0, 0.0, 0.0)),
    ):
        ET.SubElement(robot, "link", name=PREFIX + child)
        joint = ET.SubElement(robot, "joint", name=f"{PREFIX}{child}_joint", type="fixed")
        ET.SubElement(joint, "parent", link=PREFIX + parent)
        ET.SubElement(joint, "child", link=PREFIX + child)
        ET.SubElement(joint, "origin", xyz=" ".join(map(str, xyz)), rpy=" ".join(map(str, rpy)))
    path.write_text(ET.tostring(robot, encoding="unicode"))
