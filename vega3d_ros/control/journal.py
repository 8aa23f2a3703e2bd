"""What the control loop decides, event by event, so that a recording can be decided again (`vega3d-replay`).

An event is a name and fields; times are stamps in ns, arrays are SI as in `control_loop.py`:

    configure                                             the first of a configured node, which knows nothing of before
    start                                                 an episode begins: queue, guard and policy forget
    discard                                               the queue is dropped: stop, fault or new instruction
    query    query, sample_ns, frames_ns, instruction, base_position, base_quaternion     the policy is asked
    chunk    query, latency_s, actions (H, dim) or null, error                            its answer is taken over
    tick     sample_ns, time_ns, begin_ns, late_ns, sample, command or null               one control period
    unheard                                               not all heard what leads the arm: the next tick says it anew
    release  elsewhere, held (n,) or null                 the arm is to be taken over anew before the next action
    gripper  position, off                                an activation begins with an order from before: where its
                                                          joint was told to be, how far from there it was then
    forget                                                the gripper's controller is away: its last order is void
    withdraw                                              the command of the last tick came too late to be sent
    brake    time_ns, begin_ns, late_ns                   the path is left for the quickest braking
    sample: positions, velocities, gripper_positions of the joint state
    command: positions, velocities, gripper, rejected, touched (names of the guard's rules), lead (see JointCommand)
    time_ns: now, on the clock of the commanded path; begin_ns: the stamp of a trajectory that carries one, else 0;
    late_ns: so long ago the path was where the controller has been told to be by now

NumPy only, no ROS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vega3d_ros.control.control_loop import ControlLoop, JointCommand, JointSample
from vega3d_ros.control.frame_buffer import FrameSet


class Journal(Protocol):
    """Takes events as they happen, in the thread that commands; it must not wait."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def no_journal(event: str, **fields: Any) -> None:
    """Nobody keeps a journal."""


def query_fields(loop: ControlLoop, sample_ns: int, frames: FrameSet, instruction: str) -> dict[str, Any]:
    """What an observation was made of."""
    return {
        "sample_ns": sample_ns,
        "frames_ns": {camera: stamps.tolist() for camera, stamps in frames.stamps_ns.items()},
        "instruction": instruction,
        "base_position": loop.base_position.tolist(),
        "base_quaternion": loop.base_quaternion.tolist(),
    }


def tick_fields(
    sample: JointSample, command: JointCommand | None, time_ns: int, begin_ns: int = 0, late_ns: int = 0
) -> dict[str, Any]:
    """One control period: the joint state it used, and the command it made."""
    measured = {
        "positions": sample.positions.tolist(),
        "velocities": sample.velocities.tolist(),
        "gripper_positions": sample.gripper_positions.tolist(),
    }
    return {
        "sample_ns": sample.stamp_ns,
        "time_ns": time_ns,
        "begin_ns": begin_ns,
        "late_ns": late_ns,
        "sample": measured,
        "command": command_fields(command),
    }


def command_fields(command: JointCommand | None) -> dict[str, Any] | None:
    """A command and what the guard did to it; JSON keeps every float64 exactly."""
    if command is None:
        return None
    return {
        "positions": command.positions.tolist(),
        "velocities": command.velocities.tolist(),
        "gripper": float(command.gripper),
        "rejected": list(command.rejected),
        "touched": list(command.touched),
        "lead": command.lead,
    }


def to_text(number: int, event: str, fields: Mapping[str, Any]) -> str:
    """One event as JSON; `number` counts from 0 in each run of the node, so that a gap shows."""

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)

    return json.dumps({"n": number, "event": event, **fields}, default=plain)
