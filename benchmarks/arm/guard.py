"""Random and adversarial commands through the safety guard, as sequences; what leaves is judged as whole polynomials.

The judge is `benchmarks/wire_judge`: a controller that runs what it is sent from its own state, and shares no code with
the guard.  Half of the sequences meet a guard in mode `reject`, half in mode `clamp`.  Kinds take turns:

- `random`: commands at all scales about the path under way, hostile numbers among them;
- `edge`: ends within 0.01 of what the limits of position, velocity and acceleration allow, on either side;
- `pursuit`: driven at full acceleration into joint limits and the walls of the box;
- `stop`: at speed, and then one refused command after the other, or none.

Commands come at uneven times, as a busy machine sends them; what is measured is beside the path by up to the tolerance.
Every second sequence leaves ahead, with a stamp, and reaches the controller at any time until it departs from its path.
Now and then one is withdrawn that would come too late, or the arm is told to brake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.wire_judge.controller import Controller, Limits, Verdict
from policies.types import FloatArray
from vega3d_ros.control.guard.decision import GuardDecision
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.control.guard.motion import Motion
from vega3d_ros.control.guard.safety_guard import LATE, SafetyGuard
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import resolve

URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"
PERIOD_S, PERIOD_NS = 0.05, 50_000_000
RUN = 50
HOSTILE = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 100.0])
MIDDLE = np.array([0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.785])
ROOM_M = 1e-6
BOX_LOOKS = 8
AHEAD_NS = 10_000_000
SELDOM = 0.03
LONGEST_DEAF = 4  # periods, of a controller that comes up
SAY_EVERY = 20_000


@dataclass
class Judged:
    """commands: given to the guard.  passed: that it let pass.  outside: messages whose path leaves position, velocity
    or acceleration limits.  out_of_box: messages whose path leaves the box.  worst: of all."""

    commands: int = 0
    passed: int = 0
    outside: int = 0
    out_of_box: int = 0
    worst: Verdict | None = None


def limits_of(kinematics: Kinematics) -> GuardLimits:
    """Limits of every kind at once."""
    return GuardLimits(
        kinematics.lower + 0.05,
        kinematics.upper - 0.05,
        np.full(kinematics.n, 2.0),
        np.full(kinematics.n, 10.0),
        workspace_lower=np.array([0.0, -0.6, 0.0]),
        workspace_upper=np.array([0.8, 0.6, 1.0]),
    )


class Sequence:
    """One guard, and a controller that runs what it lets pass."""

    def __init__(self, guard: SafetyGuard, kinematics: Kinematics, rng: np.random.Generator, judged: Judged) -> None:
        self.guard, self.rng, self.judged = guard, rng, judged
        self._kinematics = kinematics
        limits = guard.limits
        begin = MIDDLE + rng.normal(0.0, 0.1, kinematics.n)
        away = rng.uniform(-2.0, 2.0, kinematics.n) * limits.tolerance
        self.controller = Controller(
            Limits(limits.lower, limits.upper, limits.velocity, limits.acceleration), begin + away
        )
        self.time_ns = int(rng.integers(10**15))
        guard.ahead_ns = int(rng.choice([0, AHEAD_NS]))
        self._led_s = 0.0
        deaf, said, heard = int(rng.integers(LONGEST_DEAF)), 0, True
        while True:  # until the arm is taken over, of which a controller that comes up may not hear the first
            lead, wait = guard.take_over(begin, np.zeros(kinematics.n), self.time_ns, heard)
            if not wait:
                break
            if lead is not None and said >= deaf:
                # Where the controller holds the arm beside its measured place, nobody who sends messages knows.
                self._judge_lead(lead)
            said += lead is not None
            # What is heard may be known a period later.
            heard = said > deaf and bool(rng.random() < 0.5)
            self.time_ns += PERIOD_NS

    def start(self) -> tuple[FloatArray, FloatArray]:
        here, rate = self.controller.state(self.time_ns * 1e-9)
        lie = self.rng.uniform(-0.99, 0.99, here.shape) * self.guard.limits.tolerance
        return self.guard.start(here + lie, rate, self.time_ns)

    def command(self, positions: FloatArray, velocities: FloatArray) -> None:
        self.judged.commands += 1
        decision = self.guard.check(positions, velocities, 1.0, self.time_ns)
        if not decision.rejected:
            self.judged.passed += 1
            if self.rng.random() < SELDOM:
                self.guard.withdraw()
            else:
                self._judge(decision)
                self._brake()
        self.time_ns += round(PERIOD_NS * self.rng.choice([1.0, 1.0, 1.0, 0.9, 1.1, 0.4, 1.7, 8.0]))

    def _brake(self) -> None:
        if self.rng.random() < SELDOM:
            self.time_ns += self.guard.ahead_ns + int(self.rng.integers(PERIOD_NS))
            braking = self.guard.brake(self.time_ns)
            if braking is not None:
                self._judge(braking)
                self.time_ns += self.guard.ahead_ns

    def _judge_lead(self, lead: GuardDecision) -> None:
        """It begins when it arrives, after those before it."""
        late_s = self.rng.uniform(0.0, LATE * PERIOD_S)
        self._led_s = max(self._led_s, lead.motion.start_ns * 1e-9 + late_s)
        self._take(self._led_s, lead.motion, 0.0)

    def _judge(self, decision: GuardDecision) -> None:
        late_s = 1e-9 * int(self.rng.integers(self.guard.ahead_ns + 1))
        self._take(decision.motion.start_ns * 1e-9 + late_s, decision.motion, late_s)
        self.judged.out_of_box += not self._in_box()

    def _take(self, now_s: float, motion: Motion, begun_s: float) -> None:
        points = list(zip(motion.times_s[1:], motion.positions[1:], motion.velocities[1:], strict=True))
        verdict = self.controller.take(now_s, points, begun_s)
        self.judged.outside += verdict.outside
        self.judged.worst = self.judged.worst or Verdict()
        self.judged.worst.add(verdict)

    def _in_box(self) -> bool:
        low, high = self.guard.limits.workspace_lower, self.guard.limits.workspace_upper
        if low is None or high is None:
            return True
        start, points = self.controller.start_s, self.controller.points
        for since_s in self.rng.uniform(points[0][0], points[-1][0], BOX_LOOKS):  # from where it was joined on
            tool, _ = self._kinematics.tip_pose(self.controller.state(start + since_s)[0])
            if np.any(tool < low - ROOM_M) or np.any(tool > high + ROOM_M):
                return False
        return True


def judged_commands(count: int, seed: int = 0) -> Judged:
    """`count` commands, a multiple of RUN, through guards of both modes."""
    rng, judged = np.random.default_rng(seed), Judged()
    kinematics = Kinematics(resolve(URDF).read_text(), [f"panda_joint{i}" for i in range(1, 8)], "panda_tcp")
    limits = limits_of(kinematics)
    for number in range(count // RUN):
        guard = SafetyGuard(kinematics, limits, PERIOD_S, "reject" if number % 2 else "clamp")
        sequence = Sequence(guard, kinematics, rng, judged)
        KINDS[number // 2 % len(KINDS)](sequence, rng)
        if judged.commands % SAY_EVERY == 0:
            print(f"# {judged.commands}: {judged.outside} outside, {judged.out_of_box} out of the box", flush=True)
    return judged


def _spoiled(rng: np.random.Generator, *arrays: FloatArray) -> tuple[FloatArray, ...]:
    """One in ten times a hostile number in one of the arrays."""
    if rng.random() < 0.1:
        arrays[rng.integers(len(arrays))][rng.integers(arrays[0].size)] = rng.choice(HOSTILE)
    return arrays


def _random(sequence: Sequence, rng: np.random.Generator) -> None:
    drift = rng.normal(0.0, 0.8, 7)
    for _ in range(RUN):
        q, v = sequence.start()
        size = 10.0 ** rng.uniform(-3.0, 1.5)
        v1 = v + 0.3 * (drift - v) + size * PERIOD_S * rng.standard_normal(7)
        q1 = q + 0.5 * PERIOD_S * (v + v1) + size * PERIOD_S**2 * rng.standard_normal(7)
        sequence.command(*_spoiled(rng, q1, v1))


def _edge(sequence: Sequence, rng: np.random.Generator) -> None:
    limits = sequence.guard.limits
    for _ in range(RUN):
        q, v = sequence.start()
        beside = 0.01 * 10.0 ** rng.uniform(-8.0, 0.0, 7) * rng.choice([-1.0, 1.0], 7)
        change = rng.choice([-1.0, 0.0, 1.0], 7) * limits.acceleration * PERIOD_S
        v1 = np.clip(v + change, -limits.velocity, limits.velocity) + beside
        even = q + 0.5 * PERIOD_S * (v + v1)
        room = np.maximum(0.0, limits.acceleration - np.abs(v1 - v) / PERIOD_S) * PERIOD_S**2 / 6.0
        q1 = even + rng.choice([-1.0, 0.0, 1.0], 7) * room + PERIOD_S * beside * rng.integers(0, 2)
        sequence.command(*_spoiled(rng, q1, v1))


def _pursuit(sequence: Sequence, rng: np.random.Generator) -> None:
    limits = sequence.guard.limits
    towards, share = rng.choice([-1.0, 0.0, 1.0], 7), rng.uniform(0.2, 1.0)
    for _ in range(RUN):
        q, v = sequence.start()
        v1 = np.clip(v + towards * share * limits.acceleration * PERIOD_S, -limits.velocity, limits.velocity)
        sequence.command(*_spoiled(rng, q + 0.5 * PERIOD_S * (v + v1), v1))


def _stop(sequence: Sequence, rng: np.random.Generator) -> None:
    limits = sequence.guard.limits
    towards = rng.uniform(-1.0, 1.0, 7)
    for index in range(RUN):
        q, v = sequence.start()
        v1 = v + 0.9 * np.clip(3.0 * towards - v, -1.0, 1.0) * limits.acceleration * PERIOD_S
        if index % 10 >= 7:
            v1 = v + rng.choice([-1.0, 1.0], 7) * 2.0 * limits.velocity
        sequence.command(q + 0.5 * PERIOD_S * (v + v1), v1)


KINDS: tuple[Callable[[Sequence, np.random.Generator], None], ...] = (_random, _edge, _pursuit, _stop)
