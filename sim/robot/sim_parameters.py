"""Parameters of sim_node: declared with descriptions and ranges; all are read at `~/reset`."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

CLOCK_MODES = ("lockstep", "realtime")


def declare(node: Node) -> None:
    """Declare them.  rclpy raises where a value given at start-up has the wrong type or is out of range."""

    def one(name: str, default: Any, description: str, **limits: Any) -> None:
        node.declare_parameter(name, default, ParameterDescriptor(description=description, **limits))

    node.add_on_set_parameters_callback(_check)
    numbers = [IntegerRange(from_value=0, to_value=10_000, step=1)]
    one("suite", "libero_object", "LIBERO or LIBERO-PRO suite.")
    one("task", 0, "Task of the suite.", integer_range=numbers)
    one("trial", 0, "Official initial state.", integer_range=numbers)
    one(
        "clock_mode",
        "lockstep",
        "lockstep: each step waits for the command that answers its stamp; realtime: 20 Hz wall clock.",
        additional_constraints=" or ".join(CLOCK_MODES),
    )
    every = [IntegerRange(from_value=1, to_value=1000, step=1)]
    one("camera_every", 1, "Render every n-th control step.", integer_range=every)
    one(
        "command_deadline_s",
        20.0,
        "lockstep: wall time (s) after which a missing command ends the episode with an error.",
        floating_point_range=[FloatingPointRange(from_value=0.05, to_value=3600.0)],
    )
    one("allow_partial_joints_goal", False, "realtime: a trajectory may leave joints out.")
    one(
        "allow_nonzero_velocity_at_trajectory_end",
        False,
        "realtime: a trajectory may end in motion.",
    )


def _check(parameters: list[Parameter]) -> SetParametersResult:
    for parameter in parameters:
        if parameter.name == "clock_mode" and parameter.value not in CLOCK_MODES:
            reason = f"There is no clock mode '{parameter.value}': choose one of {', '.join(CLOCK_MODES)}."
            return SetParametersResult(successful=False, reason=reason)
    return SetParametersResult(successful=True)
