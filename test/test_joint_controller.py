"""Joint commands must move the simulated arm as LIBERO's own controller does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from policies.types import ActionSpace, FloatArray
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.stepping.joint_controller import JointFollower
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.kinematics import Kinematics

URDF = (Path(__file__).parents[1] / "config" / "robots" / "libero_panda.urdf").read_text()
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])
STEPS = 50

arm = Kinematics(URDF, [f"panda_joint{i}" for i in range(1, 8)], "panda_tcp")
law = ImpedanceLaw(arm, ActionSpace("eef_delta"), HOME)


class Bench:
    """The arm of libero_object, task 0, with the state saved and restored around experiments."""

    def __init__(self) -> None:
        self.environment = LiberoEnvironment("libero_object", 0)
        self.robot = self.environment.env.robots[0]
        self.follower = JointFollower()

    def save(self) -> tuple[FloatArray, FloatArray]:
        return self.environment.env.sim.get_state().flatten().copy(), self.robot.gripper.current_action.copy()

    def load(self, saved: tuple[FloatArray, FloatArray]) -> None:
        self.environment.env.sim.set_state_from_flattened(saved[0])
        self.environment.env.sim.forward()
        self.robot.gripper.current_action = saved[1].copy()

    def joints(self) -> tuple[FloatArray, FloatArray]:
        state = self.environment.state()
        return state.joint_positions, state.joint_velocities

    def pose(self) -> tuple[FloatArray, Rotation]:
        position, quaternion = arm.forward(self.joints()[0])
        return position, Rotation.from_quat(quaternion)

    def by_controller(self, action: FloatArray) -> None:
        self.follower.detach()
        self.environment.env.step(action)

    def by_joints(self, action: FloatArray) -> None:
        self.follower.attach(self.robot)
        self.follower.command(*law.step(*self.joints(), action))
        self.environment.env.step(self.follower.action(action[-1]))

    def by_law_alone(self, action: FloatArray) -> FloatArray:
        """Where the law says the tool will be, without moving anything."""
        return arm.forward(law.step(*self.joints(), action)[0])[0]


@pytest.fixture(scope="module")
def shared_bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.environment.close()


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    shared_bench.follower.detach()
    shared_bench.environment.reset(0)
    return shared_bench


def expert_like(rng: np.random.Generator) -> FloatArray:
    """Deltas up to full scale that change every half second, upwards on the whole, with small turns."""
    actions = np.zeros((STEPS, 7))
    for axis in range(3):
        held = np.repeat(rng.uniform(-1, 1, STEPS // 10), 10)
        actions[:, axis] = np.convolve(held, np.ones(5) / 5, "same")
    actions[:, 2] = np.abs(actions[:, 2]) / 2
    actions[:, 3:6] = rng.normal(0, 0.02, (STEPS, 3))
    actions[:, 6] = -1
    return actions


def random_actions(rng: np.random.Generator) -> FloatArray:
    """Uniform over the whole action space: turns of half a radian that drive the wrist into its torque limits."""
    actions = rng.uniform(-1, 1, (STEPS, 7))
    actions[:, 6] = -1
    return actions


@pytest.mark.parametrize(
    ("make", "law_mm", "step_mm", "step_deg", "path_mm"),
    [(expert_like, 0.2, 0.3, 0.1, 5.0), (random_actions, 2.0, 1.5, 1.0, 60.0)],
)
def test_same_actions_same_motion(bench: Bench, make, law_mm, step_mm, step_deg, path_mm) -> None:
    actions = make(np.random.default_rng(1))
    start = bench.save()
    before, reached, foreseen = [], [], []
    for action in actions:
        before.append(bench.save())
        foreseen.append(bench.by_law_alone(action))
        bench.by_controller(action)
        reached.append(bench.pose())

    law_errors = [np.linalg.norm(f - position) for f, (position, _) in zip(foreseen, reached, strict=True)]
    step_errors, step_turns = [], []
    for state, action, (position, rotation) in zip(before, actions, reached, strict=True):
        bench.load(state)
        bench.by_joints(action)
        step_errors.append(np.linalg.norm(bench.pose()[0] - position))
        step_turns.append((bench.pose()[1] * rotation.inv()).magnitude())
    bench.load(start)
    path_errors = []
    for action, (position, _) in zip(actions, reached, strict=True):
        bench.by_joints(action)
        path_errors.append(np.linalg.norm(bench.pose()[0] - position))

    mm = 1e3
    print(
        f"{make.__name__}: law alone {mm * np.mean(law_errors):.3f} mean {mm * np.max(law_errors):.3f} max mm; "
        f"one step {mm * np.mean(step_errors):.3f} mean {mm * np.max(step_errors):.3f} max mm, "
        f"{np.degrees(np.max(step_turns)):.3f} max deg; "
        f"path after 1, 10, 50 steps {[round(float(mm * path_errors[i - 1]), 3) for i in (1, 10, 50)]} mm"
    )
    travelled = np.linalg.norm(reached[-1][0] - arm.forward(start[0][1:8])[0])
    assert travelled > 0.02, "the arm must have moved for this to mean anything"
    assert mm * np.max(law_errors) < law_mm
    assert mm * np.max(step_errors) < step_mm
    assert np.degrees(np.max(step_turns)) < step_deg
    assert mm * np.max(path_errors) < path_mm


def test_the_arm_holds_without_a_new_command(bench: Bench) -> None:
    bench.follower.attach(bench.robot)
    start = bench.joints()[0]
    for _ in range(20):
        bench.environment.env.step(bench.follower.action(-1.0))
    assert np.abs(bench.joints()[0] - start).max() < 2e-3
    assert np.abs(bench.joints()[1]).max() < 2e-3


def test_a_reachable_command_is_reached(bench: Bench) -> None:
    bench.follower.attach(bench.robot)
    goal = bench.joints()[0] + np.array([0.01, -0.01, 0.01, 0.01, -0.01, 0.01, 0.01])
    for _ in range(10):
        bench.follower.command(goal, np.zeros(7))
        bench.environment.env.step(bench.follower.action(-1.0))
    np.testing.assert_allclose(bench.joints()[0], goal, atol=1e-3)


def test_torques_stay_within_the_motors(bench: Bench) -> None:
    bench.follower.attach(bench.robot)
    low, high = bench.robot.torque_limits
    saturated = False
    for sign in (1.0, -1.0, 1.0):
        bench.follower.command(bench.joints()[0] + sign, np.zeros(7))
        bench.environment.env.step(bench.follower.action(-1.0))
        assert np.all(bench.robot.torques >= low) and np.all(bench.robot.torques <= high)
        saturated |= bool(np.any(bench.robot.torques == high) or np.any(bench.robot.torques == low))
    assert saturated


def test_the_gripper_is_the_last_number(bench: Bench) -> None:
    bench.follower.attach(bench.robot)
    hold = bench.joints()[0]
    widths = []
    for gripper in (1.0, -1.0):
        for _ in range(15):
            bench.follower.command(hold, np.zeros(7))
            bench.environment.env.step(bench.follower.action(gripper))
        widths.append(bench.environment.state().gripper_positions.sum())
    assert widths[0] < 0.01 < 0.06 < widths[1]


def test_detach_gives_back_the_controller_with_the_present_pose_as_goal(bench: Bench) -> None:
    original = bench.robot.controller
    bench.follower.attach(bench.robot)
    bench.follower.attach(bench.robot)
    assert bench.robot.controller is not original
    for _ in range(10):
        bench.by_joints(np.array([0.5, 0.0, 0.3, 0.2, 0.0, 0.0, -1.0]))
    bench.follower.detach()
    bench.follower.detach()
    assert bench.robot.controller is original
    before = bench.pose()[1]
    for _ in range(20):
        bench.by_controller(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]))
    assert (bench.pose()[1] * before.inv()).magnitude() < np.radians(5)


def test_commanding_a_follower_that_is_not_attached_fails() -> None:
    with pytest.raises(RuntimeError, match="Attach"):
        JointFollower().command(HOME, np.zeros(7))
    with pytest.raises(RuntimeError, match="Attach"):
        JointFollower().action(1.0)
