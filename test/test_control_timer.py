"""The ticks of `realtime`: by which clock they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rclpy.clock import ClockType

from vega3d_ros.node.control_timer import ControlTimer


@pytest.mark.parametrize("simulated", [False, True])
def test_the_system_s_clock_which_may_be_set_back_makes_no_control_period_longer(simulated: bool) -> None:
    """A timer of ROS's clock that is not simulated stands for as long as the system's clock was set back."""
    made: list[Any] = []

    def create_timer(period_s: float, callback: Any, callback_group: Any = None, clock: Any = None) -> Any:
        made.append(clock)
        return SimpleNamespace()

    def get_parameter(name: str) -> Any:
        assert name == "use_sim_time"
        return SimpleNamespace(value=simulated)

    node: Any = SimpleNamespace(create_timer=create_timer, get_parameter=get_parameter)
    ControlTimer(node, 0.05, 0, lambda: None)
    if simulated:
        assert made == [None], "the node's own, which is the simulator's"
    else:
        assert made[0] is not None and made[0].clock_type is ClockType.STEADY_TIME
