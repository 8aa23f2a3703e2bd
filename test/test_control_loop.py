"""The loop that the node and the evaluation share: right observations in, right commands out, silence otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.types import ActionChunk, ActionSpace, FloatArray, Observation, PolicySpec, VegaError
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.control_loop import ControlLoop, JointSample
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.kinematics import Kinematics

ROOT = Path(__file__).parents[1]
JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])
IMAGES = {"front": np.zeros((1, 4, 4, 3), np.uint8)}
SAY = "pick up the milk"

arm = Kinematics((ROOT / "config" / "robots" / "libero_panda.urdf").read_text(), JOINTS, "panda_tcp")


class Scripted:
    """A policy that answers with the given chunks, and remembers what it saw."""

    def __init__(self, *chunks: FloatArray, kind: str = "eef_delta", horizon: int = 3) -> None:
        space = ActionSpace(kind, dim=chunks[0].shape[1])  # type: ignore[arg-type]
        self.spec = PolicySpec("scripted", ("front",), space, chunk_length=len(chunks[0]), open_loop_horizon=horizon)
        self.chunks = chunks
        self.seen: list[Observation] = []
        self.resets = 0

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        actions = self.chunks[(len(self.seen) - 1) % len(self.chunks)]
        return ActionChunk(actions, observation.stamp_ns, observation.instruction, {"trunk": 1.0})

    def reset(self) -> None:
        self.resets += 1


def sample(stamp: int = 0, positions: FloatArray = HOME, velocities: FloatArray | None = None) -> JointSample:
    return JointSample(stamp, positions, np.zeros(7) if velocities is None else velocities, np.array([0.02, 0.03]))


def deltas(seed: int = 0, size: float = 0.5) -> FloatArray:
    return np.random.default_rng(seed).uniform(-size, size, (4, 7))


def test_a_chunk_is_run_for_its_horizon_through_law_and_measured_state() -> None:
    policy = Scripted(deltas(0), deltas(1))
    loop = ControlLoop(policy, arm, HOME)
    law = ImpedanceLaw(arm, policy.spec.action_space, HOME)
    q, qd = HOME, np.zeros(7)
    for step in range(7):
        assert loop.needs_images == (step % 3 == 0)
        command = loop.step(sample(step, q, qd), IMAGES if loop.needs_images else None, SAY)
        action = policy.chunks[step // 3 % 2][step % 3]
        expected = law.step(q, qd, action)
        np.testing.assert_array_equal(command.positions, expected[0])
        np.testing.assert_array_equal(command.velocities, expected[1])
        assert command.gripper == action[-1]
        assert (command.stamp_ns, command.period_s, command.rejected) == (step, 0.05, ())
        assert ("trunk" in command.timings_ms) == (step % 3 == 0)
        q, qd = command.positions + 1e-3, command.velocities
    assert [o.stamp_ns for o in policy.seen] == [0, 3, 6]
    assert loop.last_chunk is not None and loop.last_chunk.stamp_ns == 6


def test_the_observation_carries_the_pose_of_the_joints_and_the_base() -> None:
    policy = Scripted(deltas())
    base, turned = np.array([-0.6, 0.0, 0.4]), np.array([0.0, 0.0, 1.0, 0.0])
    loop = ControlLoop(policy, arm, HOME, base_position=base, base_quaternion=turned)
    loop.step(sample(5, HOME + 0.1), IMAGES, f"  {SAY} ")
    (seen,) = policy.seen
    position, quaternion = arm.forward(HOME + 0.1)
    np.testing.assert_array_equal(seen.state.eef_position, position)
    np.testing.assert_array_equal(seen.state.eef_quaternion, quaternion)
    np.testing.assert_array_equal(seen.base_position, base)
    np.testing.assert_array_equal(seen.base_quaternion, turned)
    assert (seen.instruction, seen.stamp_ns, seen.state.joint_names) == (SAY, 5, tuple(JOINTS))


def test_reset_and_discard_ask_the_policy_again() -> None:
    policy = Scripted(deltas())
    loop = ControlLoop(policy, arm, HOME)
    loop.step(sample(), IMAGES, SAY)
    assert not loop.needs_images
    loop.discard()
    assert loop.needs_images and policy.resets == 0
    loop.step(sample(), IMAGES, SAY)
    loop.reset()
    assert loop.needs_images and policy.resets == 1 and loop.last_chunk is None


def test_joint_positions_go_through_with_their_mean_velocity() -> None:
    ramp = np.column_stack([HOME + 0.01 * np.arange(1, 5)[:, None], np.ones(4)])
    loop = ControlLoop(Scripted(ramp, kind="joint_position"), arm, HOME)
    q = HOME
    for step in range(3):
        command = loop.step(sample(step, q), IMAGES, SAY)
        np.testing.assert_array_equal(command.positions, ramp[step, :7])
        np.testing.assert_allclose(command.velocities, 0.01 / 0.05)
        q = command.positions - 1e-3


def test_a_policy_for_another_arm_is_refused() -> None:
    with pytest.raises(VegaError, match="commands 6 joints and this arm has 7"):
        ControlLoop(Scripted(np.zeros((4, 7)), kind="joint_position"), arm, HOME)


def bad_sample(**changes) -> JointSample:
    return replace(sample(), **changes)


@pytest.mark.parametrize(
    ("taken", "images", "instruction", "says"),
    [
        (sample(), None, SAY, "no images"),
        (sample(), {}, SAY, "needs camera 'front'"),
        (sample(), {"front": np.zeros((2, 4, 4, 3), np.uint8)}, SAY, "Camera 'front'"),
        (sample(), IMAGES, "   ", "instruction is empty"),
        (sample(), IMAGES, "x" * 10_000, "10000 characters"),
        (bad_sample(positions=np.full(7, np.nan)), IMAGES, SAY, "positions"),
        (bad_sample(velocities=np.zeros(6)), IMAGES, SAY, "velocities"),
        (bad_sample(gripper_positions=np.array([np.inf])), IMAGES, SAY, "gripper"),
    ],
)
def test_input_that_cannot_be_used_gives_no_command_and_queues_nothing(taken, images, instruction, says) -> None:
    policy = Scripted(deltas())
    loop = ControlLoop(policy, arm, HOME)
    with pytest.raises(VegaError, match=says):
        loop.step(taken, images, instruction)
    assert policy.seen == [] and loop.needs_images


@pytest.mark.parametrize("bad", [np.full((4, 7), np.nan), np.zeros((3, 7)), np.zeros((4, 8))])
def test_a_chunk_that_cannot_be_used_gives_no_command(bad) -> None:
    policy = Scripted(deltas())
    policy.chunks = (bad,)
    loop = ControlLoop(policy, arm, HOME)
    with pytest.raises(VegaError):
        loop.step(sample(), IMAGES, SAY)
    assert loop.needs_images and loop.last_chunk is None


def test_what_the_guard_refuses_becomes_a_hold() -> None:
    policy = Scripted(np.column_stack([np.ones((4, 6)), np.ones(4)]))
    guard = SafetyGuard(arm, combine_limits(arm, {"acceleration": 0.1}), 0.05, committed=False)
    loop = ControlLoop(policy, arm, HOME, guard=guard)
    command = loop.step(sample(), IMAGES, SAY)
    assert "acceleration" in command.rejected
    np.testing.assert_array_equal(command.positions, HOME)
    np.testing.assert_array_equal(command.velocities, np.zeros(7))
    assert command.gripper == 0.0 and guard.counts["acceleration"] == 1


def test_a_guard_with_room_changes_no_bit() -> None:
    commands = []
    for guard in (None, SafetyGuard(arm, combine_limits(arm, {"acceleration": 40.0}), 0.05, committed=False)):
        loop = ControlLoop(Scripted(deltas(size=0.3)), arm, HOME, guard=guard)
        q, qd, seen = HOME, np.zeros(7), []
        for step in range(9):
            command = loop.step(sample(step * 50_000_000, q, qd), IMAGES, SAY)
            seen.append(command.positions.tobytes() + command.velocities.tobytes())
            q, qd = command.positions, command.velocities
        commands.append(seen)
    assert commands[0] == commands[1]
