"""What must hold at every moment at which an arm is commanded, beside its inputs: the enabling switch, and time itself.

Everything runs in the executor's thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool

from policies.types import VegaError
from vega3d_ros.node.watches import KEPT, ClockWatch, Gap, LastValue
from vega3d_ros.ros.node_parameters import NodeParameters

SENT = "source_timestamp"
STAND_S = 1.0  # for which a simulated clock may stand at least


class Vigilance:
    """Exists while the node is active.  In lockstep, where the world waits for the node, time is not judged."""

    def __init__(self, node: Node, parameters: NodeParameters, period_s: float) -> None:
        self._node, self._parameters = node, parameters
        self._simulated = bool(node.get_parameter("use_sim_time").value)
        self._timed = parameters.clock_mode == "realtime"
        self._gap = Gap(period_s, parameters.max_gap_periods)
        stand_s = max(STAND_S, parameters.max_age_s, parameters.max_gap_periods * period_s)
        self._clock = ClockWatch(self._simulated, stand_s)
        self._enabling = LastValue(safe=False)
        self._let_go = False  # if only for a moment, since the last reset
        self._switch: Any = None
        if parameters.enable_topic:
            # Best effort hears every publisher; one that is lost is like one that is late.
            every = QoSProfile(depth=KEPT, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._switch = node.create_subscription(Bool, parameters.enable_topic, self._on_switch, every)

    def reset(self) -> None:
        """An episode begins.  Raises VegaError where it may not."""
        self._let_go = False
        released = self._released()
        if released:
            raise VegaError(released)
        self._gap.reset()
        self._clock.reset()

    def problem(self, moving: bool) -> str:
        """Why commanding must end, '' if it need not; to be asked often, also where the node's clock stands."""
        released = self._released()
        if released or not self._timed:
            return released
        return self._clock.observe(self._node.get_clock().now().nanoseconds / 1e9, time.monotonic(), moving)

    def check(self, moving: bool, is_period: bool) -> None:
        """To be called before anything is decided; is_period: by the control timer.  Raises VegaError where commanding
        must end."""
        gap = ""
        if is_period:
            # The timer runs on a steady clock, as that of the system may be set; a simulated one has a pace of its own.
            now_s = self._node.get_clock().now().nanoseconds / 1e9 if self._simulated else time.monotonic()
            gap = self._gap.tick(now_s)
        sentence = self.problem(moving) or (gap if moving else "")
        if sentence:
            raise VegaError(sentence)

    def destroy(self) -> None:
        if self._switch is not None:
            self._node.destroy_subscription(self._switch)

    def _on_switch(self, message: Bool, info: Mapping[str, Any] | None = None) -> None:
        self._enabling.take(bool(message.data), (info or {}).get(SENT, 0), time.monotonic())
        self._let_go = self._let_go or not message.data

    def _released(self) -> str:
        topic, enabling = self._parameters.enable_topic, self._enabling
        if not topic:
            return ""
        if enabling.value is None:
            return f"The enabling switch has said nothing on '{topic}': connect and hold it, then call ~/start again."
        if not enabling.value:
            return f"The enabling switch on '{topic}' is not held: hold it, then call ~/start again."
        if self._let_go:
            return (
                f"The enabling switch on '{topic}' was released, if only for a moment: hold it, then call ~/start "
                "again."
            )
        age_s = enabling.age_s(time.monotonic())
        if age_s > self._parameters.enable_timeout_s:
            return (
                f"The enabling switch on '{topic}' has been silent for {age_s:.2f} s: hold it so that it says true "
                f"every {self._parameters.enable_timeout_s:g} s, then call ~/start again."
            )
        return ""
