"""Nothing passes the guard whose whole path is not within limits, and the motion of LIBERO passes untouched.

The judge is `benchmarks/wire_judge`, which shares no code with the guard.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.wire_judge.controller import Controller, Limits, Verdict
from policies.types import ActionSpace, VegaError
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.guard.decision import GuardDecision
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import LATE, SafetyGuard
from vega3d_ros.control.kinematics import Kinematics

URDF = (Path(__file__).parents[1] / "config" / "robots" / "libero_panda.urdf").read_text()
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])
PERIOD = 0.05
PERIOD_NS = 50_000_000
STILL = np.zeros(7)
AXIS = np.eye(7)
# Franka's data sheet, rad/s^2.
FRANKA = [15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]

arm = Kinematics(URDF, [f"panda_joint{i}" for i in range(1, 8)], "panda_tcp")
LIMITS = combine_limits(
    arm,
    {
        "acceleration": FRANKA,
        "position_margin": 0.05,
        "workspace_lower": [0.2, -0.4, 0.05],
        "workspace_upper": [0.8, 0.4, 0.8],
        "min_interval_s": 0.02,
    },
)
JUDGED = Limits(LIMITS.lower, LIMITS.upper, LIMITS.velocity, LIMITS.acceleration)
# A posture inside that box.
INSIDE = np.array([0.0, 0.2, 0.0, -2.0, 0.0, 2.2, np.pi / 4])


def guard(mode: str = "reject", committed: bool = True, **changes) -> SafetyGuard:
    return SafetyGuard(arm, replace(LIMITS, **changes), PERIOD, mode, committed)  # type: ignore[arg-type]


class Follower:
    """A guard, and a controller that obeys it without lag; `time_ns` is when the next command is due."""

    def __init__(self, checker: SafetyGuard, begin=INSIDE) -> None:
        self.guard, self.time_ns = checker, 0
        self.controller = Controller(JUDGED, np.array(begin))
        self.worst = Verdict()
        lead, wait = checker.take_over(np.array(begin), STILL, 0)
        assert (lead is not None and bool(wait)) == checker.committed
        if lead is not None:
            self.run(lead)
            self.time_ns = lead.motion.start_ns + round(lead.motion.times_s[-1] * 1e9) + LATE * PERIOD_NS
            assert checker.take_over(np.array(begin), STILL, self.time_ns) == (None, "")

    def run(self, decision: GuardDecision, late_s: float = 0.0) -> None:
        motion = decision.motion
        if not decision.rejected:
            points = list(zip(motion.times_s[1:], motion.positions[1:], motion.velocities[1:], strict=True))
            self.worst.add(self.controller.take(motion.start_ns * 1e-9 + late_s, points, late_s))

    def start(self, measured=None) -> tuple[np.ndarray, np.ndarray]:
        here, rate = self.controller.state(self.time_ns * 1e-9)
        return self.guard.start(here if measured is None else measured, rate, self.time_ns)

    def check(self, q, v=STILL, gripper=0.0, **more) -> GuardDecision:
        decision = self.guard.check(q, v, gripper, self.time_ns, **more)
        self.run(decision)
        assert not self.worst.outside, self.worst
        return decision

    def step(self, q, v=STILL, seconds: float = PERIOD) -> GuardDecision:
        self.start()
        decision = self.check(q, v)
        self.time_ns += round(seconds * 1e9)
        return decision

    def tool_inside(self, room: float = 1e-6) -> bool:
        """Whether the controller's whole path, finely sampled, keeps the tool in the box."""
        end = self.controller.points[-1][0]
        places = [
            arm.tip_pose(self.controller.state(self.controller.start_s + t)[0])[0] for t in np.linspace(0, end, 40)
        ]
        low, high = self.guard.limits.workspace_lower, self.guard.limits.workspace_upper
        return all((place >= low - room).all() and (place <= high + room).all() for place in places)


ADVERSARIAL = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, np.pi, 2.8973, -2.8973, 1e6])


@pytest.mark.parametrize("mode", ["reject", "clamp"])
def test_random_and_adversarial_commands_at_uneven_times_leave_no_limit(mode: str) -> None:
    rng = np.random.default_rng(3)
    accepted = rejected = 0
    for _ in range(15):
        follower = Follower(guard(mode), INSIDE + rng.normal(0, 0.02, 7))
        drift = rng.normal(0, 0.5, 7)
        for i in range(60):
            q0, v0 = follower.start()
            size = 10.0 ** rng.uniform(-3, 0.5)
            v = v0 + 0.5 * (drift - v0) + rng.normal(0, size, 7) * PERIOD
            q = q0 + 0.5 * (v0 + v) * PERIOD + rng.normal(0, size, 7) * PERIOD**2
            if i % 7 == 6:
                q[rng.integers(7)] = rng.choice(ADVERSARIAL)
            if i % 11 == 10:
                v[rng.integers(7)] = rng.choice(ADVERSARIAL)
            gripper = float(rng.choice(ADVERSARIAL)) if i % 23 == 22 else float(rng.normal())
            decision = follower.check(q, v, gripper)
            rejected += decision.rejected
            if decision.rejected:
                assert decision.rules and decision.gripper == 0.0
            else:
                accepted += 1
                assert follower.tool_inside()
                assert mode == "clamp" or not decision.rules
            follower.time_ns += round(PERIOD_NS * rng.choice([1.0, 1.0, 0.9, 1.3, 3.0, 0.5]))
        end, rate = follower.controller.state(1e9)
        assert not rate.any() and (end >= LIMITS.lower).all() and (end <= LIMITS.upper).all()
    assert accepted > 200 and rejected > 50, (accepted, rejected)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300)
@given(
    q=hnp.arrays(np.float64, st.integers(0, 9), elements=numbers),
    v=hnp.arrays(np.float64, st.integers(0, 9), elements=numbers),
    gripper=numbers,
    mode=st.sampled_from(["reject", "clamp"]),
    committed=st.booleans(),
)
def test_no_input_raises_or_slips_through(q, v, gripper, mode, committed) -> None:
    checker = guard(mode, committed)
    follower = Follower(checker)
    follower.start()
    decision = checker.check(q, v, gripper, follower.time_ns)
    points = decision.motion
    verdict = follower.controller.take(
        follower.time_ns * 1e-9, list(zip(points.times_s[1:], points.positions[1:], points.velocities[1:], strict=True))
    ) if not decision.rejected else Verdict()  # fmt: skip
    assert not verdict.outside


@settings(deadline=None, max_examples=150)
@given(
    moves=st.lists(hnp.arrays(np.float64, 7, elements=st.floats(-3.0, 3.0)), min_size=2, max_size=12),
    gaps=st.lists(st.sampled_from([0.02, 0.045, 0.05, 0.06, 0.2]), min_size=12, max_size=12),
)
def test_what_was_refused_brakes_along_the_path_from_the_last_command(moves, gaps) -> None:
    follower = Follower(guard(workspace_lower=None, workspace_upper=None))
    for index, (move, gap) in enumerate(zip(moves, gaps, strict=False)):
        q0, v0 = follower.start()
        v = v0 + 0.6 * move / 3.0 * LIMITS.acceleration * PERIOD
        q = np.full(7, 9.0) if index % 3 == 2 else q0 + 0.5 * (v0 + v) * PERIOD
        decision = follower.check(q, v)
        follower.time_ns += round(gap * 1e9)
        there, rate = follower.controller.state(follower.time_ns * 1e-9)
        known = decision.motion.at(follower.time_ns)
        np.testing.assert_allclose(there, known[0], atol=1e-9)
        np.testing.assert_allclose(rate, known[1], atol=1e-7)


@settings(deadline=None, max_examples=100)
@given(
    moves=st.lists(hnp.arrays(np.float64, 7, elements=st.floats(-3.0, 3.0)), min_size=2, max_size=8),
    gaps=st.lists(st.integers(22, 90), min_size=8, max_size=8),
    late=st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8),
)
def test_a_command_that_leaves_ahead_may_come_at_any_time_until_it_departs(moves, gaps, late) -> None:
    follower = Follower(guard(workspace_lower=None, workspace_upper=None))
    follower.guard.ahead_ns = 10_000_000
    for move, gap_ms, share in zip(moves, gaps, late, strict=False):
        q0, v0 = follower.start()
        v = v0 + 0.6 * move / 3.0 * LIMITS.acceleration * PERIOD
        decision = follower.guard.check(q0 + 0.5 * (v0 + v) * PERIOD, v, 0.0, follower.time_ns)
        follower.run(decision, share * 0.01)
        assert decision.rejected or not follower.worst.outside
        follower.time_ns += gap_ms * 1_000_000
        there, rate = follower.controller.state(follower.time_ns * 1e-9)
        known = decision.motion.at(follower.time_ns)
        np.testing.assert_allclose(there, known[0], atol=1e-8)
        np.testing.assert_allclose(rate, known[1], atol=1e-6)


def test_a_command_that_comes_late_bends_the_path_if_it_carries_no_stamp() -> None:
    """Why commands leave ahead: at speed, what was planned for now begins where the arm is by then."""
    worst = []
    for ahead_ns in (0, 10_000_000):
        follower = Follower(guard(workspace_lower=None, workspace_upper=None))
        follower.guard.ahead_ns = ahead_ns
        speed = AXIS[6] * 1.0
        for number in range(5):
            q0, v0 = follower.start()
            late_s = 0.009 if number == 3 else 0.0
            decision = follower.guard.check(q0 + 0.5 * (v0 + speed) * PERIOD, speed, 0.0, follower.time_ns)
            assert not decision.rejected
            points = list(zip(*(a[1:] for a in (
                decision.motion.times_s, decision.motion.positions, decision.motion.velocities
            )), strict=True))  # fmt: skip
            arrives_s = follower.time_ns * 1e-9 + late_s
            follower.worst.add(follower.controller.take(arrives_s, points, late_s if ahead_ns else 0.0))
            follower.time_ns += PERIOD_NS
        worst.append(follower.worst)
    assert worst[0].outside and not worst[1].outside, worst


def test_the_judge_tells_a_jump_of_the_arm_and_lets_the_gripper_close_at_once() -> None:
    """A message that comes after the time of its first point is joined where it is by then."""
    free = Limits(
        np.append(JUDGED.lower, -np.inf), np.append(JUDGED.upper, np.inf),
        np.append(JUDGED.velocity, np.inf), np.append(JUDGED.acceleration, np.inf),
    )  # fmt: skip
    rest = np.zeros(8)
    for jump, outside in ((0.04 * np.eye(8)[7], False), (1e-3 * np.eye(8)[0], True)):
        for late in (0.0, 0.0015):  # joined at once, and along a segment shorter than a cycle
            begin = np.append(INSIDE, 0.0)
            controller = Controller(free, begin)
            points = [(0.001, begin + jump, rest), (0.06, begin + jump, rest)]
            assert controller.take(1.0, points, late).outside == outside


def test_a_withdrawn_command_leaves_the_path_as_it_was() -> None:
    follower = Follower(guard())
    follower.guard.ahead_ns = 10_000_000
    follower.step(INSIDE + AXIS[6] * 0.005, AXIS[6] * 0.2)
    follower.start()
    before = follower.controller.state(1e9)[0]
    assert not follower.guard.check(INSIDE + AXIS[6] * 0.02, AXIS[6] * 0.2, 0.0, follower.time_ns).rejected
    follower.guard.withdraw()
    follower.time_ns += 10**9
    assert follower.start()[0] == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("ahead_ns", [0, 10_000_000])
def test_braking_leaves_the_path_at_once_along_the_limits(ahead_ns) -> None:
    follower = Follower(guard(workspace_lower=None, workspace_upper=None))
    follower.guard.ahead_ns = ahead_ns
    speed = AXIS[6] * 0.6
    for _ in range(3):
        q0, v0 = follower.start()
        follower.check(q0 + 0.5 * (v0 + speed) * PERIOD, speed)
        follower.time_ns += PERIOD_NS
    follower.time_ns -= PERIOD_NS * 4 // 5
    braking = follower.guard.brake(follower.time_ns)
    assert braking is not None and not braking.rejected
    seconds = braking.motion.times_s[-1]
    assert seconds <= ahead_ns * 1e-9 + 0.6 / LIMITS.acceleration[6] + 1e-6 < PERIOD
    follower.run(braking)
    assert not follower.worst.outside
    follower.time_ns += round(seconds * 1e9) + 1
    assert not follower.controller.state(follower.time_ns * 1e-9)[1].any()
    assert follower.guard.brake(follower.time_ns) is None
    # An arm that is known to be elsewhere is told nothing.
    with pytest.raises(VegaError, match="where it was commanded"):
        follower.start(measured=INSIDE + 0.5)
    assert follower.guard.brake(follower.time_ns) is None


def test_braking_that_would_leave_the_limits_is_left_to_the_path_under_way() -> None:
    box = {"workspace_lower": np.array([0.0, -1.0, 0.0]), "workspace_upper": np.array([1.0, 1.0, 2.0])}
    follower = Follower(guard(**box))
    q0, _ = follower.start()
    follower.check(q0 + 0.5 * AXIS[6] * 0.6 * PERIOD, AXIS[6] * 0.6)

    class Wall:
        rule = "workspace"

        def allows(self, configurations) -> bool:
            return False

    follower.guard._zones.append(Wall())
    assert follower.guard.brake(follower.time_ns + PERIOD_NS // 2) is None


def test_each_rule_answers_for_its_own_fault() -> None:
    def rules(q, v=STILL, *, begin=INSIDE, checker=None, **more) -> tuple[str, ...]:
        follower = Follower(checker or guard(), begin)
        follower.start()
        return follower.check(q, v, **more).rules

    assert rules(INSIDE) == ()
    assert rules(np.full(7, np.nan)) == ("finite",)
    assert rules(INSIDE, gripper=np.inf) == ("finite",)
    assert rules(INSIDE[:6]) == ("shape",)
    assert rules(INSIDE, joint_names=tuple(reversed(arm.joint_names))) == ("shape",)
    assert rules(INSIDE, joint_names=arm.joint_names) == ()
    near_end = INSIDE.copy()
    near_end[6] = arm.upper[6] - 0.055
    assert rules(near_end + AXIS[6] * 0.007, begin=near_end) == ("position",)
    # Its end is inside and at rest nowhere: the braking after it would not be.
    assert rules(near_end + AXIS[6] * 0.0045, AXIS[6] * 0.2, begin=near_end) == ("position",)
    assert rules(INSIDE + AXIS[6] * 0.2) == ("velocity", "acceleration")
    # The mean change of velocity is within the limit; a cubic bends more than on average.
    assert rules(INSIDE + AXIS[1] * 0.001, AXIS[1] * 0.3) == ("acceleration",)
    assert rules(INSIDE + AXIS[1] * 0.0075, AXIS[1] * 0.3) == ()
    tight = guard(workspace_lower=arm.forward(INSIDE)[0] - [0.003, 1, 1], workspace_upper=np.ones(3))
    assert rules(INSIDE - AXIS[3] * 0.005, checker=tight) == ("workspace",)


def test_a_step_that_passes_by_its_end_values_is_refused() -> None:
    """v T from rest asks 1.5 v and 6 v / T inside the period."""
    follower = Follower(guard())
    decision = follower.step(INSIDE + AXIS[6] * 0.5 * LIMITS.velocity[6] * PERIOD)
    assert decision.rejected and decision.rules == ("acceleration",)


def test_a_lying_measurement_is_a_fault_and_never_a_command() -> None:
    follower = Follower(guard())
    follower.step(INSIDE + AXIS[6] * 0.002)
    with pytest.raises(VegaError, match=r"panda_joint2 is at .* 0\.500 rad from where it was commanded"):
        follower.start(measured=INSIDE + AXIS[1] * 0.5)
    # Within the tolerance it changes nothing.
    assert follower.start(measured=INSIDE + 0.05)[0] == pytest.approx(INSIDE + AXIS[6] * 0.002, abs=1e-4)


def test_zero_actions_with_a_constant_offset_do_not_drift() -> None:
    law = ImpedanceLaw(arm, ActionSpace("eef_delta"), HOME)
    checker = guard(workspace_lower=None, workspace_upper=None)
    sag = np.full(7, 0.005)
    follower = Follower(checker, HOME)
    for _ in range(1200):
        start = follower.start(measured=follower.controller.state(follower.time_ns * 1e-9)[0] - sag)
        follower.check(*law.step(*start, np.zeros(7)))
        follower.time_ns += PERIOD_NS
    assert np.abs(follower.controller.state(1e9)[0] - HOME).max() < 1e-4


def test_commands_that_come_too_fast_or_from_the_past_are_refused_even_when_clamping() -> None:
    for mode in ("reject", "clamp"):
        follower = Follower(guard(mode))
        assert follower.step(INSIDE, seconds=0.001).rules == ()
        assert follower.step(INSIDE, seconds=-0.001).rules == ("rate",)
        assert follower.step(INSIDE, seconds=0.05).rules == ("rate",)
        assert follower.step(INSIDE).rules == ()
        assert follower.guard.counts["rate"] == 2 and follower.guard.rejected_in_a_row == 0


def test_clamp_goes_as_far_as_the_limits_allow() -> None:
    follower = Follower(guard("clamp"))
    far = INSIDE + AXIS[6]
    rates = []
    for _ in range(12):
        decision = follower.step(far, AXIS[6] * LIMITS.velocity[6])
        assert not decision.rejected
        rates.append(decision.velocities[6])
    assert rates[0] > 0.2 * FRANKA[6] * PERIOD and max(rates) > 0.9 * LIMITS.velocity[6]
    assert follower.worst.velocity > 0.9 and follower.worst.acceleration > 0.9
    assert follower.controller.state(1e9)[0][6] <= LIMITS.upper[6]


@pytest.mark.parametrize("mode", ["reject", "clamp"])
def test_an_arm_driven_at_the_wall_of_its_box_stays_inside(mode: str) -> None:
    tool = arm.forward(INSIDE)[0]
    follower = Follower(guard(mode, workspace_lower=tool - [1, 1, 0.03], workspace_upper=tool + 1.0))
    law = ImpedanceLaw(arm, ActionSpace("eef_delta"), HOME)
    action = np.array([0.0, 0.0, -0.6, 0.0, 0.0, 0.0, 0.0])
    for _ in range(40):
        follower.check(*law.step(*follower.start(), action))
        follower.time_ns += PERIOD_NS
        assert follower.tool_inside()
    assert follower.guard.counts["workspace"] > 0
    assert arm.forward(follower.controller.state(1e9)[0])[0][2] < tool[2] - 0.01


def test_a_single_point_that_is_refused_brakes_from_the_last_command_not_from_the_arm() -> None:
    checker = guard(committed=False)
    checker.start(INSIDE, STILL, 0)
    q, v = INSIDE + AXIS[6] * 0.01, AXIS[6] * 0.4
    assert not checker.check(q, v, 1.0, 0).rejected
    checker.start(q - 0.03, STILL, PERIOD_NS)
    decision = checker.check(np.full(7, 9.0), v, 1.0, PERIOD_NS)
    assert decision.rejected and not decision.velocities.any()
    np.testing.assert_allclose(decision.positions, q + 0.5 * PERIOD * v)
