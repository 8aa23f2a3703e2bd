"""What betrays that time or a switch is not what it seems.  No ROS; times are seconds of a steady clock unless said.

A frozen process, a clock that was set, a button whose cable was cut: nothing arrives that would be wrong, so somebody
has to look for what does not arrive.
"""

from __future__ import annotations

import time

# A step of the system's clock against the steady one, s; a machine too busy to read two clocks in a row is no step.
STEP_S = 0.5
# A simulator may run so many times as fast as the world, and may skip so many s when it is reset.
FASTEST, SKIP_S = 10.0, 1.5
BACK_S = 0.001
# Messages of a switch that may wait to be heard: of more, Fast DDS would leave out not the oldest but the newest.
KEPT = 5000
# One message may overtake another by so much, s; what was sent before the last by more comes from a clock that was set.
OVERTAKEN_S = 1.0


class LastValue:
    """The last value of a switch, whatever the order in which it is heard.

    safe: the value that counts where nobody knows which of two came last.  value: None before the first.
    heard_s: when it was said last.
    """

    def __init__(self, safe: bool) -> None:
        self.value: bool | None = None
        self.heard_s = float("-inf")
        self._safe = safe
        self._sent_ns = 0

    def take(self, value: bool, sent_ns: int, now_s: float) -> None:
        """sent_ns: when the publisher sent it, on its clock, which may be set; 0 if unknown.  now_s: when it came."""
        overtaken = bool(sent_ns) and 0 < self._sent_ns - sent_ns <= OVERTAKEN_S * 1e9
        if overtaken and value is not self._safe:
            return
        if not overtaken:
            self._sent_ns = sent_ns
        self.value, self.heard_s = value, now_s

    def age_s(self, now_s: float) -> float:
        """Since it was said last; infinite before the first."""
        return now_s - self.heard_s


def came_s(received_ns: int, now_s: float) -> float:
    """When a message came that DDS received at received_ns of the system's clock (0 if unknown), and is taken now."""
    waited_s = (time.time_ns() - received_ns) * 1e-9 if received_ns else 0.0
    return now_s - max(0.0, waited_s)


class Gap:
    """Says when control periods were missed: the process stood, or the machine did something else.

    period_s: of the control timer.  periods: so many may pass between two; 0: any number.
    """

    def __init__(self, period_s: float, periods: int) -> None:
        self._period_s, self._periods = period_s, periods
        self._last_s: float | None = None

    def reset(self) -> None:
        self._last_s = None

    def tick(self, now_s: float) -> str:
        """To be called in each control period, with the time of the timer's clock; '' if none was missed."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or not self._periods:
            return ""
        gap_s = now_s - last_s
        if gap_s <= (self._periods + 0.5) * self._period_s:
            return ""
        return (
            f"Nothing was decided for {gap_s:.2f} s, {gap_s / self._period_s:.0f} control periods: see what stopped "
            "this process or keeps the machine busy, then call ~/start again."
        )


class ClockWatch:
    """Says when the node's clock stands still or jumps.

    simulated: it follows /clock, and may run slower or faster than the world.  stand_s: so long it may stand.
    """

    def __init__(self, simulated: bool, stand_s: float) -> None:
        self._simulated, self._stand_s = simulated, stand_s
        self._last: tuple[float, float] | None = None
        self._moved_s = 0.0

    def reset(self) -> None:
        self._last = None

    def observe(self, time_s: float, now_s: float, moving: bool) -> str:
        """time_s: the node's clock; now_s: a steady one.  moving: the arm is, so that a clock that jumped ahead or
        stands means more than a simulator that is being started.  '' if all is well."""
        last, self._last = self._last, (time_s, now_s)
        if last is None:
            self._moved_s = now_s
            return ""
        passed_s, steady_s = time_s - last[0], now_s - last[1]
        if passed_s != 0.0:
            self._moved_s = now_s
        allowed_s = FASTEST * steady_s + SKIP_S if self._simulated else steady_s + STEP_S
        remedy = "see who sets it, then call ~/start again."
        if passed_s < -BACK_S and (self._simulated or passed_s < steady_s - STEP_S):
            return f"The clock jumped back by {-passed_s:.2f} s: {remedy}"
        if moving and passed_s > allowed_s:
            return f"The clock jumped ahead by {passed_s - steady_s:.2f} s: {remedy}"
        if moving and self._simulated and now_s - self._moved_s > self._stand_s:
            return (
                f"The clock has been standing still for {now_s - self._moved_s:.2f} s: let the simulation run, then "
                "call ~/start again."
            )
        return ""
