"""The timer whose ticks are the control periods of `realtime`, and the priority that its process has meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from vega3d_ros.node import priority


class ControlTimer:
    """Calls `tick` every `period_s`, of the simulated clock where there is one, from its creation to `destroy`.

    wanted: SCHED_FIFO priority to take where the system allows it, 0 for none.
    """

    def __init__(self, node: Node, period_s: float, wanted: int, tick: Callable[[], None]) -> None:
        self._node, self._tick = node, tick
        self._wanted, self._has_priority = wanted, False
        # One of the system's clock would stand for as long as that is set back, and nobody would say why.
        clock = None if node.get_parameter("use_sim_time").value else Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(period_s, self._run, clock=clock)

    def destroy(self) -> None:
        if self._has_priority:
            priority.take(0)
        self._node.destroy_timer(self._timer)

    def _run(self) -> None:
        # Here and not before: the executor makes a thread for the timer after the activation.
        if self._wanted:
            self._take_priority()
        self._tick()

    def _take_priority(self) -> None:
        refusal = priority.take(self._wanted)
        self._wanted = 0
        self._has_priority = not refusal
        if refusal:
            self._node.get_logger().info(
                f"Commands with the priority of any process ({refusal}), and less evenly on a busy machine: "
                "docs/deploying.md tells how to allow real-time priority."
            )
