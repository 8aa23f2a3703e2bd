"""The robot side's idea of the arm must be the simulator's, and its limits must hold."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policies.types import VegaError
from sim.worlds.export_urdf import compile_panda, main, panda_urdf
from vega3d_ros.control.kinematics import Kinematics

URDF = Path(__file__).parents[1] / "config" / "robots" / "libero_panda.urdf"
JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])

arm = Kinematics(URDF.read_text(), JOINTS, "panda_tcp")
fractions = hnp.arrays(np.float64, 7, elements=st.floats(0.0, 1.0))
signed = hnp.arrays(np.float64, 7, elements=st.floats(-1.0, 1.0))


@pytest.fixture(scope="module")
def simulator() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = compile_panda()
    return model, mujoco.MjData(model)


def angles(fraction: np.ndarray) -> np.ndarray:
    return arm.lower + fraction * (arm.upper - arm.lower)


def test_shipped_urdf_is_what_the_exporter_writes() -> None:
    assert URDF.read_text() == panda_urdf()


@pytest.mark.parametrize("output", ["/proc/x", "file/x.urdf", ".", "..", "file/.."])
def test_an_urdf_that_cannot_be_written_is_one_sentence(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main([output]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error and error.count("\n") == 1


def test_shared_limits_are_those_of_the_simulator(simulator) -> None:
    model, _ = simulator
    np.testing.assert_array_equal(np.stack([arm.lower, arm.upper], axis=1), model.jnt_range[:7])
    np.testing.assert_array_equal(arm.effort_limits, model.actuator_ctrlrange[:7, 1])
    np.testing.assert_array_equal(arm.velocity_limits, [2.175] * 4 + [2.61] * 3)


@settings(max_examples=200)
@given(fraction=fractions, velocity=signed)
def test_pose_jacobian_and_dynamics_equal_mujoco(simulator, fraction: np.ndarray, velocity: np.ndarray) -> None:
    model, data = simulator
    q = angles(fraction)
    data.qpos[:] = 0.0
    data.qvel[:] = 0.0
    data.qpos[:7], data.qvel[:7] = q, velocity
    mujoco.mj_forward(model, data)
    position, quaternion = arm.forward(q)
    np.testing.assert_allclose(position, data.site("gripper0_grip_site").xpos, atol=1e-6)
    flange = data.body("robot0_right_hand").xquat[[1, 2, 3, 0]]
    assert abs(float(quaternion @ flange)) > 1 - 1e-12
    assert quaternion[3] >= 0
    jacobian = np.zeros((6, model.nv))
    mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], model.site("gripper0_grip_site").id)
    np.testing.assert_allclose(arm.jacobian(q), jacobian[:, :7], atol=1e-6)
    _, _, inner_jacobian, inertia, bias = arm.dynamics(q, velocity)
    np.testing.assert_allclose(inner_jacobian, jacobian[:, :7], atol=1e-6)
    full = np.empty((model.nv, model.nv))
    mujoco.mj_fullM(model, full, data.qM)
    np.testing.assert_allclose(inertia, full[:7, :7], atol=1e-6)
    np.testing.assert_allclose(bias, data.qfrc_bias[:7], atol=1e-6)


@settings(max_examples=100)
@given(fraction=fractions, velocity=signed)
def test_velocity_product_is_the_change_of_the_jacobian(fraction: np.ndarray, velocity: np.ndarray) -> None:
    q, h = angles(fraction), 1e-5
    change = (arm.jacobian(q + h * velocity) - arm.jacobian(q - h * velocity)) / (2 * h)
    np.testing.assert_allclose(arm.velocity_product(q, velocity), change @ velocity, atol=1e-6)


@settings(max_examples=200)
@given(
    fraction=fractions,
    twist=hnp.arrays(np.float64, 6, elements=st.floats(-20.0, 20.0)),
    period=st.floats(0.001, 0.2),
)
def test_inverse_step_never_passes_a_limit(fraction: np.ndarray, twist: np.ndarray, period: float) -> None:
    q = angles(fraction)
    after = arm.inverse_step(q, twist, period, home=HOME)
    assert np.all(after >= arm.lower - 1e-12) and np.all(after <= arm.upper + 1e-12)
    assert np.all(np.abs(after - q) <= arm.velocity_limits * period + 1e-9)


@settings(max_examples=60)
@given(offset=signed)
def test_inverse_reaches_a_pose_that_exists(offset: np.ndarray) -> None:
    wanted = np.clip(HOME + 0.4 * offset, arm.lower + 0.05, arm.upper - 0.05)
    position, quaternion = arm.forward(wanted)
    found = arm.inverse(position, quaternion, HOME)
    reached, turned = arm.forward(found)
    np.testing.assert_allclose(reached, position, atol=2e-5)
    assert abs(float(turned @ quaternion)) > 1 - 1e-9
    assert np.all(found >= arm.lower) and np.all(found <= arm.upper)


def test_null_space_moves_the_elbow_and_not_the_tool() -> None:
    q = HOME.copy()
    q[0], q[2] = 0.3, -0.25
    before, _ = arm.forward(q)
    after = q
    for _ in range(100):
        after = arm.inverse_step(after, np.zeros(6), 0.01, home=HOME)
    moved, _ = arm.forward(after)
    assert np.linalg.norm(after - HOME) < np.linalg.norm(q - HOME) - 0.02
    assert np.linalg.norm(moved - before) < 1e-3


def test_a_pose_out_of_reach_is_refused() -> None:
    with pytest.raises(VegaError, match="out of reach"):
        arm.inverse(np.array([3.0, 0.0, 0.5]), np.array([0.0, 0.0, 0.0, 1.0]), HOME)


def test_fingers_stay_out_of_the_arm_and_open_from_zero_up() -> None:
    hand = Kinematics(URDF.read_text(), ["panda_finger_joint1"], "panda_leftfinger_tip", "panda_hand")
    other = Kinematics(URDF.read_text(), ["panda_finger_joint2"], "panda_rightfinger_tip", "panda_hand")
    closed = hand.forward(np.zeros(1))[0] - other.forward(np.zeros(1))[0]
    opened = hand.forward(np.array([0.04]))[0] - other.forward(np.array([0.04]))[0]
    assert np.linalg.norm(opened) == pytest.approx(np.linalg.norm(closed) + 0.08, abs=1e-6)


def test_poses_are_in_the_base_frame_asked_for() -> None:
    elbow = Kinematics(URDF.read_text(), JOINTS, "panda_tcp", "panda_link0")
    np.testing.assert_allclose(elbow.forward(HOME)[0], arm.forward(HOME)[0], atol=1e-12)
    np.testing.assert_allclose(elbow.jacobian(HOME), arm.jacobian(HOME), atol=1e-12)
    hand = Kinematics(URDF.read_text(), JOINTS, "panda_tcp", "panda_link1")
    turned = HOME + np.array([0.5, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(hand.forward(HOME)[0], hand.forward(turned)[0], atol=1e-12)


@pytest.mark.parametrize(
    ("joints", "tip", "base", "says"),
    [
        (("panda_joint1", "elbow"), "panda_tcp", "", r"'elbow'.*choose joint_names from.*panda_joint7"),
        (JOINTS, "tool0", "", r"no frame 'tool0'.*panda_tcp"),
        (JOINTS, "panda_tcp", "floor", r"no frame 'floor'.*panda_link0"),
        (JOINTS[::-1], "panda_tcp", "", r"not in the order.*panda_joint1"),
        ((), "panda_tcp", "", r"must list each arm joint once"),
        ((JOINTS[0], *JOINTS), "panda_tcp", "", r"must list each arm joint once"),
        (JOINTS[:6], "panda_tcp", "", r"lacks panda_joint7, which moves tip_frame 'panda_tcp': list every joint"),
        (JOINTS[1:], "panda_tcp", "", r"lacks panda_joint1, which"),
        (JOINTS, "panda_leftfinger_tip", "", r"lacks panda_finger_joint1, which"),
        (JOINTS[:5], "panda_tcp", "panda_link1", r"lacks panda_joint6, panda_joint7, which"),
        (JOINTS[4:], "panda_link2", "panda_tcp", r"lacks panda_joint3, panda_joint4, which"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_those_that_exist(joints, tip, base, says) -> None:
    with pytest.raises(VegaError, match=says):
        Kinematics(URDF.read_text(), joints, tip, base)


@pytest.mark.parametrize(
    "text", ["", "<robot", "<html></html>", '<robot name="x"><joint name="j" type="revolute"/></robot>']
)
def test_a_broken_description_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(VegaError, match="robot_description") as caught:
        Kinematics(text, JOINTS, "panda_tcp")
    assert "\n" not in str(caught.value)


def test_a_description_in_xacro_is_told_what_makes_a_urdf_of_it() -> None:
    text = '<robot name="x" xmlns:xacro="http://ros.org/wiki/xacro"><xacro:include filename="panda.xacro"/></robot>'
    with pytest.raises(VegaError, match=r"run `xacro FILE\.urdf\.xacro > FILE\.urdf`"):
        Kinematics(text, JOINTS, "panda_tcp")


def test_wrong_number_of_angles_is_refused() -> None:
    with pytest.raises(VegaError, match="7 joints"):
        arm.forward(np.zeros(6))
