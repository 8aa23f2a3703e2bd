"""What a joint_trajectory_controller's own parameters must be for the trajectories that policy_node sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Asked of the controller's own parameter service; defaults of ros2_controllers 6.9.
ASKED = (
    "interpolate_from_desired_state",
    "allow_nonzero_velocity_at_trajectory_end",
    "command_interfaces",
    "state_interfaces",
)


def judge(values: Mapping[str, Any], committed: bool) -> list[tuple[bool, str, str]]:
    """(good, name, sentence) for each parameter that the controller told.

    committed: trajectories end at rest.  The controller must begin a trajectory at the state it commands, or each new
    one steps back to where the arm lags; it must take trajectories that end in motion, where they do; and it can follow
    only what its interfaces have.
    """
    found: list[tuple[bool, str, str]] = []
    if "interpolate_from_desired_state" in values:
        good = bool(values["interpolate_from_desired_state"])
        sentence = "It is true." if good else "Set it to true: every command replaces the last one, which is under way."
        found.append((good, "interpolate_from_desired_state", sentence))
    if "allow_nonzero_velocity_at_trajectory_end" in values:
        good = committed or bool(values["allow_nonzero_velocity_at_trajectory_end"])
        why = "No trajectory ends in motion." if committed else "It is true."
        remedy = "Set it to true, or committed to true in the robot's file: trajectories end in motion."
        sentence = why if good else remedy
        found.append((good, "allow_nonzero_velocity_at_trajectory_end", sentence))
    if "command_interfaces" in values:
        names = list(values["command_interfaces"] or ())
        good = bool({"position", "velocity", "effort"} & set(names))
        sentence = f"They are {names}." if good else f"They are {names}: give it position, or effort with gains."
        found.append((good, "command_interfaces", sentence))
    if "state_interfaces" in values:
        names = list(values["state_interfaces"] or ())
        good = {"position", "velocity"} <= set(names)
        sentence = f"They are {names}." if good else f"They are {names}: give it position and velocity."
        found.append((good, "state_interfaces", sentence))
    return found
