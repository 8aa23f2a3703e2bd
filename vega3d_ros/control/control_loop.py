"""From a joint state (and images, now and then) to a joint command, while the world waits: the whole of lockstep.

The node and the in-process evaluation both run this very class, so that what they command is equal bit for bit.
NumPy only; no ROS, no torch.  Used from one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies.types import (
    ActionChunk,
    FloatArray,
    Image,
    Observation,
    Policy,
    RobotState,
    VegaError,
    check_images,
    check_instruction,
)
from vega3d_ros.control.chunk_scheduler import LockstepQueue
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.guard.decision import GuardDecision
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.motion import Motion
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.guard.zones import Zone
from vega3d_ros.control.kinematics import Kinematics


@dataclass(frozen=True)
class JointSample:
    """One joint state: positions (n,) rad, velocities (n,) rad/s, gripper_positions (m,) in the unit of the joints."""

    stamp_ns: int
    positions: FloatArray
    velocities: FloatArray
    gripper_positions: FloatArray


@dataclass(frozen=True)
class JointCommand:
    """Where the arm is to be `period_s` after `stamp_ns` (the stamp of the sample it answers).

    positions (n,) rad, velocities (n,) rad/s; gripper > 0 closes, < 0 opens, 0 keeps.
    rejected: names of the safety rules that the intended command broke; the arm then goes on along the path under way,
    to rest, and keeps the gripper.  touched: names of the rules that altered it (clamp mode).
    motion: the whole path from now to rest, None without a guard.  lead: this is no action of the policy; the
    controller is led to the beginning of the path, and has the motion's time for it, or to rest.
    begin_ns: when the motion begins, on the clock of stamps; 0: on arrival.  late_ns: so long ago it began, where the
    controller is told late where the path is.
    """

    stamp_ns: int
    positions: FloatArray
    velocities: FloatArray
    gripper: float
    period_s: float
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    motion: Motion | None = None
    lead: bool = False
    begin_ns: int = 0
    late_ns: int = 0


class CommandMaker:
    """Turns one action into joint targets by what the policy's ActionSpace says it means.

    eef_delta: the impedance law.  joint_position: the angles themselves, with the mean velocity since the last target.
    """

    def __init__(self, policy: Policy, kinematics: Kinematics, home: FloatArray) -> None:
        space = policy.spec.action_space
        self.period_s = 1.0 / space.rate_hz
        self._law = ImpedanceLaw(kinematics, space, home) if space.kind == "eef_delta" else None
        self._kinematics = kinematics
        self._last: FloatArray | None = None
        if self._law is None and space.dim != kinematics.n + 1:
            raise VegaError(
                f"Policy {policy.spec.name} commands {space.dim - 1} joints and this arm has {kinematics.n}: choose a "
                "checkpoint for this arm, or the robot file of the arm it was trained on."
            )

    def reset(self) -> None:
        self._last = None

    def targets(
        self, positions: FloatArray, velocities: FloatArray, action: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Joint positions (n,) rad and velocities (n,) rad/s at the end of the period that begins with those given."""
        if self._law is not None:
            return self._law.step(positions, velocities, action)
        before = positions if self._last is None else self._last
        positions = self._kinematics.nearest(positions, action[:-1].copy())
        velocities = (positions - before) / self.period_s
        self._last = positions
        return positions, velocities


class ControlLoop:
    """Policy, kinematics, law and guard, one control period at a time.

    home (n,) rad: posture of the null space.  guard: None commands unguarded (simulation only).
    base_position (3,) m and base_quaternion (4,) xyzw: the base frame in the world.
    """

    def __init__(
        self,
        policy: Policy,
        kinematics: Kinematics,
        home: FloatArray,
        guard: SafetyGuard | None = None,
        base_position: FloatArray | None = None,
        base_quaternion: FloatArray | None = None,
    ) -> None:
        self.policy = policy
        self.kinematics = kinematics
        self.guard = guard
        self.base_position: FloatArray = np.zeros(3) if base_position is None else np.array(base_position, dtype=float)
        self.base_quaternion: FloatArray = (
            np.array([0.0, 0.0, 0.0, 1.0]) if base_quaternion is None else np.array(base_quaternion, dtype=float)
        )
        # Readings of the gripper's joints -> openings that the policy knows, m.
        self.openings: Callable[[FloatArray], FloatArray] = np.array
        self.last_chunk: ActionChunk | None = None
        self._maker = CommandMaker(policy, kinematics, home)
        self._queue = LockstepQueue(policy.spec)

    @property
    def needs_images(self) -> bool:
        """Whether the next `step` asks the policy, and so needs images."""
        return self._queue.empty

    def reset(self) -> None:
        """Begin an episode; the policy forgets the last one too."""
        self._queue.reset()
        self._maker.reset()
        self.last_chunk = None
        if self.guard is not None:
            self.guard.reset()
        self.policy.reset()

    def discard(self) -> None:
        """Drop what is queued, so that the next `step` asks the policy: after a stop or a new instruction."""
        self._queue.discard()

    def observe(self, sample: JointSample, images: Mapping[str, Image], instruction: str) -> Observation:
        """The observation of this moment; the pose of the tool comes from the joints.

        images: camera -> (T, H, W, 3) uint8 RGB.  Raises VegaError on anything the policy could not use.
        """
        self._check_sample(sample)
        check_images(images, self.policy.spec)
        position, quaternion = self.kinematics.forward(sample.positions)
        state = RobotState(
            stamp_ns=sample.stamp_ns,
            joint_names=self.kinematics.joint_names,
            joint_positions=sample.positions,
            joint_velocities=sample.velocities,
            gripper_positions=self.openings(sample.gripper_positions),
            eef_position=position,
            eef_quaternion=quaternion,
        )
        return Observation(
            images=images,
            state=state,
            instruction=check_instruction(instruction),
            stamp_ns=sample.stamp_ns,
            base_position=self.base_position,
            base_quaternion=self.base_quaternion,
        )

    def step(self, sample: JointSample, images: Mapping[str, Image] | None, instruction: str) -> JointCommand:
        """The command for the period that begins with `sample`.

        images are used only where `needs_images`.  Raises VegaError on input or a chunk that cannot be used; nothing
        is queued then, and the arm must hold.
        """
        started = time.perf_counter()
        timings: dict[str, float] = {}
        if self._queue.empty:
            if images is None:
                raise VegaError("The policy is due but no images came: publish every camera at the control rate.")
            chunk = self.policy.act(self.observe(sample, images, instruction))
            timings.update(chunk.timings_ms)
            timings["policy"] = 1e3 * (time.perf_counter() - started)
            started = time.perf_counter()
            self._queue.submit(chunk)
            self.last_chunk = chunk
        else:
            self._check_sample(sample)
        action = self._queue.pop().action
        command = next_command(self.guard, self._maker, sample, action, sample.stamp_ns, timings)
        timings["control"] = 1e3 * (time.perf_counter() - started)
        return command

    def _check_sample(self, sample: JointSample) -> None:
        n = self.kinematics.n
        for name, values in (("positions", sample.positions), ("velocities", sample.velocities)):
            if values.shape != (n,) or not all(map(math.isfinite, values.tolist())):
                raise VegaError(f"The joint state has no usable {name} for the arm's {n} joints: check its driver.")
        if not all(map(math.isfinite, sample.gripper_positions.tolist())):
            raise VegaError("The joint state has no usable gripper positions: check its driver.")


def guarded_loop(
    policy: Policy,
    kinematics: Kinematics,
    home: FloatArray,
    safety: Mapping[str, Any],
    mode: str,
    committed: bool,
    zones: Sequence[Zone] = (),
) -> tuple[ControlLoop, SafetyGuard]:
    """The loop with the guard that a robot's YAML asks for: `safety` without its mode, see `combine_limits`.

    committed: every command carries its braking with it.  zones: what the arm must not leave either.
    Raises VegaError on limits that are missing or make no sense.
    """
    limits = combine_limits(kinematics, safety)
    period_s = 1.0 / policy.spec.action_space.rate_hz
    guard = SafetyGuard(kinematics, limits, period_s, mode, committed, zones)  # type: ignore[arg-type]
    return ControlLoop(policy, kinematics, home, guard), guard


def next_command(
    guard: SafetyGuard | None,
    maker: CommandMaker,
    sample: JointSample,
    action: FloatArray,
    time_ns: int,
    timings_ms: Mapping[str, float],
    begin_ns: int = 0,
    late_ns: int = 0,
) -> JointCommand:
    """The command of one action after the guard; without one only what is not finite is refused.

    time_ns: now, on the clock of the guard's path; begin_ns: see JointCommand; late_ns: see SafetyGuard.start.  Raises
    VegaError where the arm left the path.
    """
    gripper = float(action[-1])
    if guard is not None:
        start = guard.start(sample.positions, sample.velocities, time_ns, late_ns)
        positions, velocities = maker.targets(*start, action)
        decision = guard.check(positions, velocities, gripper, time_ns)
        return command_of(decision, sample, maker.period_s, timings_ms, begin_ns=begin_ns)
    positions, velocities = maker.targets(sample.positions, sample.velocities, action)
    if np.isfinite(positions).all() and np.isfinite(velocities).all() and np.isfinite(gripper):
        return JointCommand(sample.stamp_ns, positions, velocities, gripper, maker.period_s, timings_ms)
    rest = np.zeros_like(sample.positions)
    return JointCommand(
        sample.stamp_ns, sample.positions.copy(), rest, 0.0, maker.period_s, timings_ms, rejected=("finite",)
    )


def command_of(
    decision: GuardDecision,
    sample: JointSample,
    period_s: float,
    timings_ms: Mapping[str, float],
    lead: bool = False,
    begin_ns: int = 0,
    late_ns: int = 0,
) -> JointCommand:
    """What the guard decided, as the answer to `sample`."""
    rejected, touched = (decision.rules, ()) if decision.rejected else ((), decision.rules)
    return JointCommand(
        stamp_ns=sample.stamp_ns,
        positions=decision.positions,
        velocities=decision.velocities,
        gripper=decision.gripper,
        period_s=period_s,
        timings_ms=timings_ms,
        rejected=rejected,
        touched=touched,
        motion=decision.motion,
        lead=lead,
        begin_ns=begin_ns,
        late_ns=late_ns,
    )
