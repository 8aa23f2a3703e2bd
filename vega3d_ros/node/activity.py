"""What policy_node has while it is active, and at no other time: what it says, and what it watches and measures by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rclpy.clock import Clock
from rclpy.node import Node

from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.node.commander import Commander
from vega3d_ros.node.control_timer import ControlTimer
from vega3d_ros.node.node_report import Condition
from vega3d_ros.node.node_setup import Parts, ahead_ns
from vega3d_ros.node.supervision import Heartbeat
from vega3d_ros.node.vigilance import Vigilance
from vega3d_ros.ros.node_parameters import NodeParameters
from vega3d_ros.topics.node_outputs import Outputs
from vega3d_ros.topics.notes import Notes

SILENCE_PERIOD_S = 0.005


class Activity:
    """Made at the activation, in which it may take seconds to see who else commands the arm, and destroyed at the end.

    joined_s, check, notes: as for `Outputs`.  now_ns: the node's clock.  Raises what `Outputs` raises, and leaves
    nothing then.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        parts: Parts,
        condition: Condition,
        joined_s: float,
        check: Callable[[], None],
        notes: Notes,
        now_ns: Callable[[], int],
    ) -> None:
        self._node, self._runner = node, parts.runner
        self._control_timer: ControlTimer | None = None
        self._silence_timer: Any = None
        guard = parts.guard
        own_clock = not node.get_parameter("use_sim_time").value
        with ExitStack() as made:
            self.outputs = Outputs(node, parameters, guard.limits, condition.qos_problems, joined_s, check, notes)
            made.callback(self._end_outputs)
            if isinstance(self._runner, Realtime):
                self._runner.confirmed = self.outputs.confirmed
            guard.ahead_ns = ahead_ns(node, parameters)
            self.commander = Commander(
                condition, parts.inputs, parts.runner, self.outputs, condition.strict, now_ns, own_clock,
                committed=guard.committed, ahead_ns=guard.ahead_ns,
            )  # fmt: skip
            self._heartbeat = Heartbeat(node, lambda: condition.running)
            made.callback(self._heartbeat.destroy)
            period_s = 1.0 / parts.runner.loop.policy.spec.action_space.rate_hz
            self.vigilance = Vigilance(node, parameters, period_s)
            made.pop_all()
        self._period_s, self._priority = period_s, parameters.control_priority

    def begin(self, tick: Callable[[], None], on_silence: Callable[[], None] | None, steady: Clock) -> None:
        """From now on `tick` is called in every control period, but in lockstep, and `on_silence` often, if given."""
        if on_silence is not None:
            self._silence_timer = self._node.create_timer(SILENCE_PERIOD_S, on_silence, clock=steady)
        if not isinstance(self._runner, Lockstep):
            self._control_timer = ControlTimer(self._node, self._period_s, self._priority, tick)

    def destroy(self) -> None:
        """Commanding has been stopped; where a path cannot be ended, the runner is told where the arm is held."""
        if self._control_timer is not None:
            self._control_timer.destroy()
        if self._silence_timer is not None:
            self._node.destroy_timer(self._silence_timer)
        self.vigilance.destroy()
        self._end_outputs()
        self._heartbeat.destroy()

    def _end_outputs(self) -> None:
        elsewhere, held = self.outputs.end()
        if elsewhere and isinstance(self._runner, Realtime):
            self._runner.release(True, held)
        self.outputs.destroy()
