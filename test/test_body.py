"""The arm's body: its capsules contain it, distances are never too large, and the way to trouble is slow and ends."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pinocchio as pin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ros_harness import REAL, Arm, Pace, policy_node, start

from policies.types import VegaError
from vega3d_ros.control.body.approach import Approach, ApproachLimits
from vega3d_ros.control.body.body import Body, Surroundings
from vega3d_ros.control.body.capsules import capsules_round, collision_pieces, fit_capsule
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.kinematics import Kinematics

JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
HOME = np.array([0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398])
CLEARANCE, SLOW = 0.02, 0.1


@pytest.fixture(scope="module")
def panda() -> Any:
    """URDF text of a Panda with the collision meshes of its maker, and the folder of its package."""
    robosuite = pytest.importorskip("robosuite")
    folder = Path(robosuite.__file__).parent / "models" / "assets" / "bullet_data"
    before = os.environ.get("ROS_PACKAGE_PATH")
    os.environ["ROS_PACKAGE_PATH"] = str(folder)
    yield (folder / "panda_description" / "urdf" / "panda_arm.urdf").read_text(), folder
    if before is None:
        del os.environ["ROS_PACKAGE_PATH"]
    else:
        os.environ["ROS_PACKAGE_PATH"] = before


def to_segment(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Distances (k,) of points to a segment."""
    axis = high - low
    share = np.clip((points - low) @ axis / max(float(axis @ axis), 1e-30), 0.0, 1.0)
    return np.linalg.norm(points - low - share[:, None] * axis, axis=1)


@settings(max_examples=200)
@given(arrays(float, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-1.0, 1.0, width=32)))
def test_a_fitted_capsule_contains_every_point(points):
    radius, low, high = fit_capsule(points)
    assert np.all(to_segment(points, low, high) <= radius + 1e-7)


def test_a_fitted_capsule_is_hardly_larger_than_a_capsule():
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(3000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    low, high = np.array([0.1, -0.2, 0.3]), np.array([0.4, 0.2, 0.1])
    points = directions * 0.05 + np.where(rng.random(3000)[:, None] < 0.5, low, high)
    radius, found_low, found_high = fit_capsule(points)
    assert radius < 0.055 and abs(np.linalg.norm(found_high - found_low) - np.linalg.norm(high - low)) < 0.02


def meshes_at(urdf: str, folder: Path, q: np.ndarray) -> dict[str, np.ndarray]:
    """Vertices of every collision mesh in the root frame, placed without capsules."""
    model = pin.buildModelFromXML(urdf)
    geometry = pin.buildGeomFromUrdfString(model, urdf, pin.GeometryType.COLLISION, package_dirs=[str(folder)])
    data = model.createData()
    pin.forwardKinematics(model, data, q)
    found = {}
    for item in geometry.geometryObjects:
        placement = data.oMi[item.parentJoint] * item.placement
        found[item.name.rpartition("_")[0]] = (
            np.array(item.geometry.vertices()) @ placement.rotation.T + placement.translation
        )
    return found


def test_no_distance_is_larger_than_that_of_the_meshes(panda):
    urdf, folder = panda
    body = Body(urdf, JOINTS, HOME, Surroundings(floor=-0.1))
    assert body.pairs > 15
    rng = np.random.default_rng(0)
    model = pin.buildModelFromXML(urdf)
    for _ in range(20):
        q = rng.uniform(model.lowerPositionLimit, model.upperPositionLimit)
        meshes = {name: points[:: max(1, len(points) // 150)] for name, points in meshes_at(urdf, folder, q).items()}
        distances = body._measure(q)
        measured = []
        for pair in body._pairs:
            first, second = body._names[pair.first], body._names[pair.second]
            if second == "floor":
                measured.append(meshes[first][:, 2].min() + 0.1 - CLEARANCE)
            else:
                apart = meshes[first][:, None] - meshes[second][None]
                measured.append(np.linalg.norm(apart, axis=2).min())
        assert np.all(distances <= np.array(measured) + 1e-6)
        assert body.allows(q[None]) == bool(np.all(distances >= 0.0))


def test_a_link_below_the_floor_is_seen_though_the_tool_is_above(panda):
    urdf, _ = panda
    body = Body(urdf, JOINTS, HOME, Surroundings(floor=0.0))
    tool = Kinematics(urdf, JOINTS, "panda_link8")
    assert body.allows(HOME[None])
    low = np.array([0.0, 1.7, 0.0, -0.6, 0.0, 3.6, 0.8])  # the forearm lies down, the hand points up
    assert tool.tip_pose(low)[0][2] > 0.05
    nearest = body.nearest(low)
    assert nearest is not None and nearest.names[1] == "floor" and nearest.distance_m < CLEARANCE
    assert not body.allows(np.array([HOME, low]))


def test_an_arm_that_folds_into_itself_is_seen(panda):
    urdf, _ = panda
    body = Body(urdf, JOINTS, HOME, Surroundings())
    folded = np.array([0.0, -1.7, 0.0, -3.0, 0.0, 0.1, 0.8])
    nearest = body.nearest(folded)
    assert nearest is not None and nearest.distance_m < 0.0 and "floor" not in nearest.names
    assert not body.allows(folded[None])


def turn(angle: float) -> np.ndarray:
    """rad to add for the first joint alone."""
    return np.array([angle, *[0.0] * 6])


def test_obstacles_and_walls_are_where_the_file_puts_them(panda):
    urdf, _ = panda
    tool = Kinematics(urdf, JOINTS, "panda_link8").tip_pose(HOME)[0]
    near = tool + np.array([0.0, 0.4, 0.0])
    body = Body(urdf, JOINTS, HOME, Surroundings(boxes=((near - 0.1, near + 0.1),)))
    turned = HOME + turn(0.75)
    nearest = body.nearest(turned)
    assert nearest is not None and nearest.names[1] == "box 1" and not body.allows(turned[None])
    with pytest.raises(VegaError, match=r"At 'home' panda_link\d is -?[\d.]+ m from box 1"):
        Body(urdf, JOINTS, HOME, Surroundings(boxes=((tool - 0.05, tool + 0.05),)))
    room = (np.array([-1.0, -0.3, -1.0]), np.array([1.0, 0.5, 1.5]))
    walled = Body(urdf, JOINTS, HOME, Surroundings(cell=room))
    assert walled.allows(HOME[None]) and walled.allows((HOME + turn(0.5))[None])
    assert not walled.allows((HOME + turn(-0.7))[None])
    assert walled.nearest(HOME + turn(-0.7)).names[1] == "wall -y"


def test_speed_falls_evenly_to_nothing_on_the_way_to_an_obstacle_and_the_way_back_is_free(panda):
    urdf, _ = panda
    tool = Kinematics(urdf, JOINTS, "panda_link8").tip_pose(HOME)[0]
    near = tool + np.array([0.0, 0.4, 0.0])
    body = Body(urdf, JOINTS, HOME, Surroundings(boxes=((near - 0.1, near + 0.1),)), CLEARANCE, SLOW)
    way = [HOME + turn(angle) for angle in np.arange(0.0, 0.8, 0.01)]
    to_box = [index for index, pair in enumerate(body._pairs) if body._names[pair.second] == "box 1"]
    distances = np.array([body._measure(q)[to_box].min() for q in way])
    factors = np.array([body.speed_factor(q, goal) for q, goal in pairwise(way)])
    assert factors[0] == 1.0 and factors[-1] == 0.0
    on_it = (factors > 0) & (factors < 1)
    expected = distances[1:] / (SLOW - CLEARANCE)
    # What is nearest may be going away already, while another link comes.
    assert np.all(factors[on_it] >= expected[on_it] - 1e-6)
    assert np.isclose(factors[on_it], expected[on_it]).sum() > 5
    at = way[int(np.argmax(factors == 0.0))]
    free = 0
    for step in np.random.default_rng(0).normal(scale=0.01, size=(2000, 7)):
        after = body._measure(at + step)
        if np.all((after >= body._measure(at)) | (after > SLOW)):
            free += 1
            assert body.speed_factor(at, at + step) == 1.0, "what leads away from everything near is never slowed"
    assert free > 0


def test_pairs_that_may_touch_are_named_and_a_wrong_name_is_refused(panda):
    urdf, _ = panda
    body = Body(urdf, JOINTS, HOME, Surroundings())
    all_pairs = body.pairs
    without = Body(urdf, JOINTS, HOME, Surroundings(), ignored=["panda_link0:panda_link5"])
    assert without.pairs == all_pairs - 1
    with pytest.raises(VegaError, match=r"body.ignore has 'panda_link0:link9'"):
        Body(urdf, JOINTS, HOME, Surroundings(), ignored=["panda_link0:link9"])


LINK = (
    '<link name="{name}"><collision><origin xyz="0.15 0 0" rpy="0 1.5708 0"/><geometry>{shape}</geometry></collision>'
    "</link>"
)
JOINT = (
    '<joint name="{name}" type="revolute"><parent link="{parent}"/><child link="{child}"/><origin xyz="{x} 0 0"/>'
    '<axis xyz="0 1 0"/><limit lower="-3" upper="3" velocity="1" effort="1"/></joint>'
)


def chain(shape: str) -> str:
    """Three links of 0.3 m in a row, hinged about y."""
    links = "".join(LINK.format(name=f"link{i}", shape=shape) for i in range(4))
    x = ("0", "0.3", "0.3")
    joints = "".join(JOINT.format(name=f"j{i}", parent=f"link{i}", child=f"link{i + 1}", x=x[i]) for i in range(3))
    return f'<robot name="chain">{links}{joints}</robot>'


@pytest.mark.parametrize(
    ("shape", "radius"),
    [
        ('<capsule radius="0.04" length="0.2"/>', 0.04),
        ('<cylinder radius="0.04" length="0.2"/>', 0.04),
        ('<box size="0.08 0.06 0.2"/>', 0.05),
        ('<sphere radius="0.04"/>', 0.04),
    ],
)
def test_every_shape_of_a_urdf_is_kept_capsules_too(shape, radius):
    urdf = chain(shape)
    capsules = capsules_round(collision_pieces(urdf, pin.buildModelFromXML(urdf)))
    assert capsules.ngeoms == 4
    for item in capsules.geometryObjects:
        assert item.geometry.radius == pytest.approx(radius, abs=1e-3)
    body = Body(urdf, ["j0", "j1", "j2"], np.array([0.5, -0.5, 0.5]), Surroundings(floor=-1.0))
    # Straight down, the third link's end is at most 0.9 m below the root.
    down = body.nearest(np.array([np.pi / 2, 0.0, 0.0]))
    assert down is not None and down.names == ("link3", "floor")
    assert 1.0 - 0.9 - 0.03 < down.distance_m < 1.0 - 0.75


def test_geometry_that_cannot_be_had_is_one_sentence(panda, monkeypatch):
    urdf, _ = panda
    monkeypatch.delenv("ROS_PACKAGE_PATH")
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/nowhere")
    with pytest.raises(VegaError, match=r"cannot be read .*link0.stl.*: install the package"):
        Body(urdf, JOINTS, HOME, Surroundings())
    with pytest.raises(VegaError, match="has 0 pieces of collision geometry"):
        Body('<robot name="bare"><link name="a"/></robot>', [], np.zeros(0), Surroundings())


# Slowing down


@pytest.fixture(scope="module")
def arm() -> Kinematics:
    urdf = (Path(__file__).resolve().parent.parent / "config" / "robots" / "libero_panda.urdf").read_text()
    return Kinematics(urdf, JOINTS, "panda_tcp")


def test_towards_a_stretched_elbow_the_arm_slows_down_and_stops_and_may_come_back(arm):
    limits = ApproachLimits(condition_slow=17.0, condition_stop=30.0)
    approach = Approach(arm, limits, None, combine_limits(arm, {"acceleration": 10.0}))
    bent = np.array([0.0, 0.4, 0.0, -1.5, 0.0, 1.9, 0.8])
    stretched = np.array([0.0, 0.4, 0.0, -0.08, 0.0, 0.48, 0.8])
    way = [bent + share * (stretched - bent) for share in np.linspace(0.0, 1.0, 60)]
    there = [approach.slowed(q, goal) for q, goal in pairwise(way)]
    stops = next(index for index, step in enumerate(there) if step.factor == 0.0)
    assert there[0].factor == 1.0 and there[stops].why == "singularity"
    assert sum(0.0 < step.factor < 1.0 for step in there[:stops]) > 2
    way = way[: stops + 2]
    assert all(approach.slowed(q, goal).factor == 1.0 for q, goal in pairwise(way[::-1]))


def test_towards_the_end_of_a_joint_the_arm_slows_down_and_may_come_back(arm):
    approach = Approach(arm, ApproachLimits(joint_margin_rad=0.1), None, combine_limits(arm, {"acceleration": 10.0}))
    q = (arm.lower + arm.upper) / 2
    at = q.copy()
    at[3] = arm.upper[3] - 0.05
    further, back = at.copy(), at.copy()
    further[3] += 0.02
    back[3] -= 0.02
    slowed = approach.slowed(at, further)
    assert slowed.factor == pytest.approx(0.3) and slowed.why == "joint limit"
    assert approach.slowed(at, back).factor == 1.0 and approach.slowed(at, at).factor == 1.0


@settings(max_examples=100)
@given(st.floats(0.0, 0.2), st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_a_slowed_step_ends_no_faster_than_its_share(room, v, goal_v):
    arm = Kinematics(
        (Path(__file__).resolve().parent.parent / "config" / "robots" / "libero_panda.urdf").read_text(),
        JOINTS,
        "panda_tcp",
    )
    approach = Approach(arm, ApproachLimits(joint_margin_rad=0.1), None, combine_limits(arm, {"acceleration": 10.0}))
    q = (arm.lower + arm.upper) / 2
    q[0] = arm.upper[0] - room - 0.01
    goal, speed, end = q.copy(), np.zeros(7), np.zeros(7)
    goal[0] += 0.01
    speed[0], end[0] = v, goal_v
    share = approach.slowed(q, goal).factor
    position, velocity = approach.scaled(q, speed, goal, end, 0.05)
    allowed = np.clip(share * end, speed - 0.5, speed + 0.5)  # 10 rad/s^2 for 50 ms
    np.testing.assert_allclose(velocity, allowed if share < 1.0 else end)
    if share == 1.0:
        np.testing.assert_array_equal(position, goal)
    elif not np.array_equal(allowed, share * end):  # even braking over the period
        np.testing.assert_allclose(position, q + 0.025 * (speed + allowed))


# With the guard, and in the node


def test_an_arm_that_is_led_into_the_floor_comes_to_rest_before_it_and_is_hardly_ever_refused(panda):
    urdf, _ = panda
    arm = Kinematics(urdf, JOINTS, "panda_link8")
    body = Body(urdf, JOINTS, HOME, Surroundings(floor=0.15))
    limits = combine_limits(arm, {"acceleration": 5.0})
    guard = SafetyGuard(arm, limits, 0.05, "reject", True, [body])
    guard.pace = Approach(arm, ApproachLimits(joint_margin_rad=0.1), body, limits)
    lead, _ = guard.take_over(HOME, np.zeros(7), 0)
    assert lead is not None
    time_ns, wanted = round(lead.motion.times_s[-1] * 1e9) + 1, np.array([0.0, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0])
    motion, refused, slowed = lead.motion, 0, 0
    for _ in range(200):
        q, v = guard.start(*motion.at(time_ns), time_ns)
        end = np.clip(wanted, v - 0.2, v + 0.2)
        decision = guard.check(q + 0.025 * (v + end), end, 0.0, time_ns)
        motion, refused = decision.motion, refused + decision.rejected
        slowed += guard.pace.last.why == "body"
        for ahead_s in np.linspace(0.0, motion.times_s[-1], 12):
            assert body.allows(motion.at(motion.start_ns + round(ahead_s * 1e9))[0][None])
        time_ns += 50_000_000
    q, v = motion.at(time_ns)
    nearest = body.nearest(q)
    assert np.abs(v).max() < 1e-2 and nearest is not None and nearest.names[1] == "floor"
    assert CLEARANCE <= nearest.distance_m < CLEARANCE + 0.03
    assert slowed > 10 and refused <= 5


def tower(turning: str) -> str:
    """Five links one above the other; the joints about the vertical are of this type."""
    shape = '<collision><origin xyz="0 0 0.1"/><geometry><cylinder radius="0.04" length="0.2"/></geometry></collision>'
    parts = [f'<link name="l0">{shape}</link>']
    for joint in range(4):
        kind, axis = (turning, "0 0 1") if joint % 2 == 0 else ("revolute", "0 1 0")
        ends = f' lower="{-np.pi}" upper="{np.pi}"' if kind == "revolute" else ""
        parts.append(
            f'<joint name="j{joint}" type="{kind}"><parent link="l{joint}"/><child link="l{joint + 1}"/>'
            f'<origin xyz="0 0 0.25"/><axis xyz="{axis}"/><limit effort="9" velocity="1"{ends}/></joint>'
            f'<link name="l{joint + 1}">{shape}</link>'
        )
    return f'<robot name="tower">{"".join(parts)}</robot>'


def test_the_body_of_an_arm_whose_joints_turn_without_end_is_watched_through_all_turns():
    names, home = [f"j{joint}" for joint in range(4)], np.array([0.0, 0.6, 0.0, 0.6])
    ends, endless = (Body(tower(kind), names, home, Surroundings(floor=-0.5)) for kind in ("revolute", "continuous"))
    assert endless.pairs == ends.pairs and endless.unwatched == ends.unwatched and ends.pairs
    rng = np.random.default_rng(0)
    for _ in range(50):
        q = rng.uniform(-np.pi, np.pi, 4)
        turned = q + 2.0 * np.pi * np.array([rng.integers(-9, 10), 0, rng.integers(-9, 10), 0])
        near, same = ends.nearest(q), endless.nearest(turned)
        assert near is not None and same is not None and near.names == same.names
        assert near.distance_m == pytest.approx(same.distance_m, abs=1e-9)
        assert ends.allows(q[None]) == endless.allows(turned[None])


REAL_BODY = {"body__check": True, "tip_frame": "panda_link8", "gripper__open": 0.05}


def test_the_node_refuses_a_home_in_the_floor_and_tells_how_near_the_arm_is(panda):
    folder = panda[1] / "panda_description" / "urdf" / "panda_arm.urdf"
    robot_file = {**REAL, **REAL_BODY, "robot_description": str(folder)}
    with policy_node(**robot_file, body__floor=[0.5]) as (robot, _):
        assert not robot.change("configure")
        assert robot.until(lambda: "from floor, nearer than body.clearance 0.02 m" in robot.log_text())
    with policy_node(**robot_file, body__floor=[-0.1], approach__joint_margin=0.1) as (robot, _):
        arm = Arm(robot)
        robot.bring_up()
        assert "The arm's body is watched: " in robot.log_text()
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert arm.moves(), robot.sentence()
            assert robot.until(lambda: "distance_m" in robot.values("body")), robot.log_text()
            values = robot.values("body")
            assert 0.0 < float(values["distance_m"]) < 1.0 and " - " in values["nearest"]
            assert 0.0 <= float(values["speed_factor"]) <= 1.0
