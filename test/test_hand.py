"""What the arm carries and does not move itself: wherever its fingers are in their stroke, the body is round them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pinocchio as pin
import pytest

from vega3d_ros.control.body.body import Body, Surroundings

ARM = [f"panda_joint{i}" for i in range(1, 8)]
HOME = np.array([0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398])
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")
CLEARANCE, FLOOR = 0.02, -0.6
BOX = (np.array([0.65, 0.2, 0.3]), np.array([0.9, 0.5, 0.5]))


@pytest.fixture(scope="module")
def panda() -> Iterator[str]:
    """URDF text of a Panda with its hand: fingers of 0 to 0.04 m, and the meshes of their maker."""
    robosuite = pytest.importorskip("robosuite")
    folder = Path(robosuite.__file__).parent / "models" / "assets" / "bullet_data"
    urdfs = folder / "panda_description" / "urdf"
    arm, whole = (ET.parse(urdfs / f"{name}.urdf").getroot() for name in ("panda_arm", "panda_arm_hand"))
    known = {element.get("name") for element in arm}
    # The arm of the second file stands elsewhere than its maker's.
    arm.extend(element for element in whole if element.get("name") not in known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_PACKAGE_PATH", str(folder))
        yield ET.tostring(arm, encoding="unicode")


def at(arm: Sequence[float], opening: float = 0.0) -> dict[str, float]:
    """Where the Panda's joints are."""
    return dict(zip(ARM, arm, strict=True)) | dict.fromkeys(FINGERS, opening)


def vertices(urdf: str, joints: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Of each link's collision meshes or boxes, (k, 3) m in the root frame, with joints where they are said to be."""
    model = pin.buildModelFromXML(urdf)
    folders = [os.environ.get("ROS_PACKAGE_PATH", "")]
    geometry = pin.buildGeomFromUrdfString(model, urdf, pin.GeometryType.COLLISION, package_dirs=folders)
    step = np.zeros(model.nv)
    for name, value in joints.items():
        step[model.joints[model.getJointId(name)].idx_v] = value
    data = model.createData()
    pin.forwardKinematics(model, data, pin.integrate(model, pin.neutral(model), step))
    found: dict[str, np.ndarray] = {}
    for item in geometry.geometryObjects:
        shape = item.geometry
        corners = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
        points = np.array(shape.vertices()) if hasattr(shape, "vertices") else corners * np.array(shape.halfSide)
        placement = data.oMi[item.parentJoint] * item.placement
        found[item.name.rpartition("_")[0]] = points @ placement.rotation.T + placement.translation
    return found


def to_box(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The distance, m, of the nearest of these points (k, 3) to a box, 0 inside."""
    return float(np.linalg.norm(np.maximum(np.maximum(low - points, points - high), 0.0), axis=1).min())


def never_too_far(body: Body, q: np.ndarray, links: Mapping[str, np.ndarray]) -> None:
    """No distance of a link to BOX or FLOOR is larger than that of its vertices."""
    smallest: dict[tuple[str, str], float] = {}
    for distance, pair in zip(body._measure(q), body._pairs, strict=True):
        names = body._names[pair.first], body._names[pair.second]
        smallest[names] = min(smallest.get(names, np.inf), distance)
    for link, points in links.items():
        for thing, truth in (("box 1", to_box(points, *BOX)), ("floor", points[:, 2].min() - FLOOR)):
            assert smallest[link, thing] <= truth - CLEARANCE + 1e-6, (link, thing)


def test_an_open_finger_is_kept_out_of_what_is_beside_the_hand(panda):
    home = vertices(panda, at(HOME, 0.04))
    fingers = np.vstack([home["panda_leftfinger"], home["panda_rightfinger"]])
    assert home["panda_hand"][:, 2].min() > fingers[:, 2].min() + 0.04
    # A block as high as the fingertips, beside them.
    (x, y, z), far = fingers.min(axis=0), fingers.max(axis=0)
    low, high = np.array([x - 0.1, y - 0.25, z - 0.1]), np.array([far[0] + 0.1, y - 0.05, z + 0.02])
    body = Body(panda, ARM, HOME, Surroundings(boxes=((low, high),)))
    allowed = []
    for angle in np.arange(0.0, 0.2, 0.005):
        q = HOME - np.array([angle, *[0.0] * 6])
        links = vertices(panda, at(q, 0.04))
        apart_m = min(to_box(links[name], low, high) for name in ("panda_leftfinger", "panda_rightfinger"))
        if body.allows(q[None]):
            allowed.append(apart_m)
    assert CLEARANCE <= min(allowed) < CLEARANCE + 0.02


@pytest.mark.parametrize("opening", [0.0, 0.009, 0.02, 0.033, 0.04])
def test_no_distance_is_larger_than_that_of_the_meshes_wherever_the_fingers_are(panda, opening):
    rng = np.random.default_rng(0)
    body = Body(panda, ARM, HOME, Surroundings(floor=FLOOR, boxes=(BOX,)))
    for _ in range(20):
        q = HOME + rng.normal(scale=0.4, size=7)
        links = vertices(panda, at(q, opening))
        del links["panda_link0"], links["panda_link1"]  # no motion of the arm brings them nearer to anything
        never_too_far(body, q, links)


def test_what_one_joint_carries_is_no_pair_of_itself(panda):
    body = Body(panda, ARM, HOME, Surroundings())
    carried = {"panda_link7", "panda_hand", "panda_leftfinger", "panda_rightfinger"}
    pairs = [{body._names[pair.first], body._names[pair.second]} for pair in body._pairs]
    assert not any(pair <= carried | {"panda_link6"} for pair in pairs)
    assert {"panda_link0", "panda_leftfinger"} in pairs


CLAW = """<robot name="claw">
<link name="base"><collision><geometry><box size="0.1 0.1 0.1"/></geometry></collision>
</link>
<link name="arm"><collision><origin xyz="0.25 0 0"/><geometry><box size="0.3 0.04 0.04"/></geometry></collision>
</link>
<link name="left"><collision><origin xyz="0.08 0 0"/><geometry><box size="0.16 0.02 0.02"/></geometry></collision>
</link>
<link name="right"><collision><origin xyz="0.08 0 0"/><geometry><box size="0.16 0.02 0.02"/></geometry></collision>
</link>
<link name="nail"><collision><origin xyz="0.03 0 0"/><geometry><box size="0.06 0.01 0.02"/></geometry></collision>
</link>
<joint name="shoulder" type="revolute"><parent link="base"/><child link="arm"/><axis xyz="0 1 0"/>
  <limit lower="-3" upper="3" velocity="1" effort="1"/></joint>
<joint name="left_joint" type="{kind}"><parent link="arm"/><child link="left"/><origin xyz="0.4 0.03 0"/>
  <axis xyz="0 0 1"/>{limit}</joint>
<joint name="right_joint" type="continuous"><parent link="arm"/><child link="right"/><origin xyz="0.4 -0.03 0"/>
  <axis xyz="0 0 1"/><mimic joint="left_joint" multiplier="-1" offset="0.1"/></joint>
<joint name="nail_joint" type="{nail}"><parent link="left"/><child link="nail"/><origin xyz="0.16 0 0"/>
  <axis xyz="0 0 1"/>{nail_limit}{mimic}</joint></robot>"""
GRIP = '<limit lower="-0.2" upper="1.0" velocity="1" effort="1"/>'
PARALLEL = '<mimic joint="left_joint" multiplier="-1"/>'


@pytest.mark.parametrize(
    "kinds",
    [
        {"kind": "revolute", "limit": GRIP, "nail": "continuous", "nail_limit": "", "mimic": PARALLEL},
        {"kind": "revolute", "limit": GRIP, "nail": "revolute", "nail_limit": GRIP, "mimic": ""},
        {"kind": "continuous", "limit": "", "nail": "fixed", "nail_limit": "", "mimic": ""},
    ],
)
def test_no_distance_is_larger_than_that_of_a_claw_wherever_it_is(kinds):
    urdf, rng = CLAW.format(**kinds), np.random.default_rng(0)
    body = Body(urdf, ["shoulder"], np.zeros(1), Surroundings(floor=FLOOR, boxes=(BOX,)))
    # Where something is at several places, the capsules are hardly wider than it.
    assert all(item.geometry.radius < 0.05 for item in body._geometry.geometryObjects if item.parentJoint)
    for _ in range(300):
        left = rng.uniform(-0.2, 1.0) if kinds["kind"] == "revolute" else rng.uniform(-math.pi, math.pi)
        q = rng.uniform(-0.5, 0.5, 1)
        joints = {"shoulder": float(q[0]), "left_joint": left, "right_joint": 0.1 - left}
        if kinds["nail"] != "fixed":
            joints["nail_joint"] = -left if kinds["mimic"] else rng.uniform(-0.2, 1.0)
        links = vertices(urdf, joints)
        del links["base"]
        never_too_far(body, q, links)


def test_what_moves_below_the_arm_or_with_it_is_left_where_it_was():
    """A lift on which the arm stands, and a rod that mimics the arm's own joint."""
    urdf = CLAW.format(kind="revolute", limit=GRIP, nail="continuous", nail_limit="", mimic="")
    urdf = urdf.replace('mimic joint="left_joint"', 'mimic joint="shoulder"')
    lifted = urdf.replace('<parent link="base"/>', '<parent link="top"/>').replace(
        '<joint name="shoulder"',
        '<link name="top"/><joint name="lift" type="prismatic"><parent link="base"/><child link="top"/>'
        f'<axis xyz="0 0 1"/>{GRIP}</joint><joint name="shoulder"',
    )
    plain, high = (Body(text, ["shoulder"], np.zeros(1), Surroundings(floor=FLOOR)) for text in (urdf, lifted))
    assert plain.pairs == high.pairs
    np.testing.assert_allclose(plain._measure(np.array([0.3])), high._measure(np.array([0.3])))
    rights = [item for item in plain._geometry.geometryObjects if item.name.startswith("right")]
    assert len(rights) == 1 and rights[0].geometry.radius < 0.02
