"""Nothing passes the guard that is outside a limit, and the motion of LIBERO passes untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policies.types import ActionSpace, VegaError
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.safety_guard import RULES, GuardDecision, GuardLimits, SafetyGuard, combine_limits

URDF = (Path(__file__).parents[1] / "config" / "robots" / "libero_panda.urdf").read_text()
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])
PERIOD = 0.05
PERIOD_NS = 50_000_000
STILL = np.zeros(7)
# Franka's data sheet, rad/s^2.
FRANKA = [15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]
TOLERANCE = 1e-8

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
# A posture inside that box.
INSIDE = np.array([0.0, 0.2, 0.0, -2.0, 0.0, 2.2, np.pi / 4])


def guard(mode: str = "reject", **changes) -> SafetyGuard:
    return SafetyGuard(arm, LIMITS, PERIOD, mode).with_limits(**changes)  # type: ignore[arg-type]


def outside(limits: GuardLimits, decision: GuardDecision, measured, rate, last) -> list[str]:
    """What an accepted command breaks: an independent statement of the rules."""
    q, v = decision.positions, decision.velocities
    broken = []
    if not (np.isfinite(q).all() and np.isfinite(v).all() and np.isfinite(decision.gripper)):
        return ["finite"]
    if (q < limits.lower - TOLERANCE).any() or (q > limits.upper + TOLERANCE).any():
        broken.append("position")
    for before_q, before_v in [(measured, rate)] + ([last] if last is not None else []):
        if (abs(q - before_q) > limits.velocity * PERIOD + TOLERANCE).any():
            broken.append("velocity")
        if (abs(v - before_v) > limits.acceleration * PERIOD + TOLERANCE).any():
            broken.append("acceleration")
    if (abs(v) > limits.velocity + TOLERANCE).any():
        broken.append("velocity")
    tool, _ = arm.forward(q)
    if (tool < limits.workspace_lower - TOLERANCE).any() or (tool > limits.workspace_upper + TOLERANCE).any():
        broken.append("workspace")
    return broken


ADVERSARIAL = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, np.pi, 2.8973, -2.8973, 1e6])


@pytest.mark.parametrize("mode", ["reject", "clamp"])
def test_a_hundred_thousand_random_and_adversarial_commands(mode: str) -> None:
    rng = np.random.default_rng(3)
    checker = guard(mode)
    accepted = rejected = 0
    measured, rate, last, stamp, last_stamp = INSIDE.copy(), STILL, None, 0, None
    for i in range(50_000):
        if i % 50 == 0:
            measured = INSIDE + rng.normal(0, 0.1, 7)
            rate = rng.normal(0, 0.3, 7)
        size = 10.0 ** rng.uniform(-4, 1)
        q, v = measured + rng.normal(0, size, 7) * PERIOD, rate + rng.normal(0, size, 7) * PERIOD
        if i % 7 == 0:
            q[rng.integers(7)] = rng.choice(ADVERSARIAL)
        if i % 11 == 0:
            v[rng.integers(7)] = rng.choice(ADVERSARIAL)
        if i % 997 == 0:
            q = q[: rng.integers(7)]
        gripper = float(rng.choice(ADVERSARIAL)) if i % 101 == 0 else float(rng.normal())
        stamp += int(PERIOD_NS * rng.choice([1.0, 1.0, 1.0, 0.1, -1.0]))
        decision = checker.check(q, v, gripper, measured, rate, stamp)
        if decision.rejected:
            rejected += 1
            last = None
            assert decision.rules
            np.testing.assert_array_equal(decision.positions, measured)
            np.testing.assert_array_equal(decision.velocities, STILL)
            assert decision.gripper == 0.0
            continue
        accepted += 1
        assert outside(LIMITS, decision, measured, rate, last) == []
        assert last_stamp is None or stamp - last_stamp >= 0.02e9 - 1
        assert mode == "clamp" or not decision.rules
        if not decision.rules:
            np.testing.assert_array_equal(decision.positions, q)
            np.testing.assert_array_equal(decision.velocities, v)
        last, last_stamp = (decision.positions, decision.velocities), stamp
        # The arm follows, more or less.
        measured = decision.positions + rng.normal(0, 1e-3, 7)
        rate = decision.velocities + rng.normal(0, 1e-2, 7)
    assert accepted > 500 and rejected > 500, (accepted, rejected)
    assert checker.checked == 50_000
    assert set(checker.counts) == set(RULES) and all(checker.counts.values())


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300)
@given(
    q=hnp.arrays(np.float64, st.integers(0, 9), elements=numbers),
    v=hnp.arrays(np.float64, st.integers(0, 9), elements=numbers),
    measured=hnp.arrays(np.float64, st.integers(6, 8), elements=numbers),
    gripper=numbers,
    mode=st.sampled_from(["reject", "clamp"]),
)
def test_no_input_raises_or_slips_through(q, v, measured, gripper, mode) -> None:
    decision = guard(mode).check(q, v, gripper, measured, STILL, 0)
    assert decision.rejected or outside(LIMITS, decision, measured, STILL, None) == []


def rules(q, v=STILL, *, measured=INSIDE, rate=STILL, gripper=0.0, checker=None, stamp=0, **more) -> tuple[str, ...]:
    decision = (checker or guard()).check(q, v, gripper, measured, rate, stamp, **more)
    assert decision.rejected == bool(decision.rules)
    return decision.rules


def test_each_rule_answers_for_its_own_fault() -> None:
    assert rules(INSIDE) == ()
    assert rules(np.full(7, np.nan)) == ("finite",)
    assert rules(INSIDE, gripper=np.inf) == ("finite",)
    assert rules(INSIDE[:6]) == ("shape",)
    assert rules(INSIDE, joint_names=tuple(reversed(arm.joint_names))) == ("shape",)
    assert rules(INSIDE, joint_names=arm.joint_names) == ()
    near_end = INSIDE.copy()
    near_end[6] = arm.upper[6] - 0.03
    assert rules(near_end, measured=near_end - np.eye(7)[6] * 0.03) == ("position",)
    far = INSIDE + np.eye(7)[6] * 0.2
    assert rules(far) == ("velocity",)
    fast = np.eye(7)[1] * 0.5
    assert rules(INSIDE, fast) == ("acceleration",)
    assert rules(INSIDE, fast, rate=np.eye(7)[1] * 0.4) == ()
    checker = guard(workspace_lower=arm.forward(INSIDE)[0] + [0.01, -1, -1], workspace_upper=np.ones(3))
    assert rules(INSIDE, checker=checker) == ("workspace",)


def test_the_last_command_counts_as_well_as_the_arm() -> None:
    checker = guard()
    ahead = INSIDE + np.eye(7)[6] * 0.1
    assert rules(ahead, checker=checker, stamp=0) == ()
    # Fine for the arm, which has not moved yet, and too far from the last command.
    back = INSIDE - np.eye(7)[6] * 0.1
    assert rules(back, checker=checker, stamp=PERIOD_NS) == ("velocity",)
    # A refused command was not commanded: only the arm counts for the next.
    assert rules(back, checker=checker, stamp=2 * PERIOD_NS) == ()


def test_commands_that_come_too_fast_or_from_the_past_are_refused_even_when_clamping() -> None:
    for mode in ("reject", "clamp"):
        checker = guard(mode)
        assert rules(INSIDE, checker=checker, stamp=PERIOD_NS) == ()
        assert rules(INSIDE, checker=checker, stamp=PERIOD_NS + 1_000_000) == ("rate",)
        assert rules(INSIDE, checker=checker, stamp=0) == ("rate",)
        assert rules(INSIDE, checker=checker, stamp=2 * PERIOD_NS) == ()
        checker.reset()
        assert rules(INSIDE, checker=checker, stamp=0) == ()
        assert checker.counts["rate"] == 2


def test_clamp_moves_no_further_than_needed() -> None:
    checker = guard("clamp")
    far = INSIDE + np.array([0, 0, 0, 0, 0, 0, 1.0])
    decision = checker.check(far, STILL, 1.0, INSIDE, STILL, 0)
    assert not decision.rejected and decision.rules == ("velocity",)
    np.testing.assert_allclose(decision.positions, INSIDE + np.eye(7)[6] * LIMITS.velocity[6] * PERIOD)
    np.testing.assert_array_equal(decision.velocities, STILL)
    assert decision.gripper == 1.0
    assert checker.counts == {**dict.fromkeys(RULES, 0), "velocity": 1}


def test_clamp_stops_at_the_wall_of_the_box() -> None:
    tool = arm.forward(INSIDE)[0]
    checker = guard("clamp", workspace_lower=tool - [1, 1, 0.01], workspace_upper=tool + 1.0)
    down = INSIDE + np.eye(7)[1] * 0.1
    decision = checker.check(down, np.eye(7)[1] * 0.1, 0.0, INSIDE, STILL, 0)
    assert not decision.rejected and decision.rules == ("workspace",)
    assert arm.forward(decision.positions)[0][2] == pytest.approx(tool[2] - 0.01, abs=1e-4)


def test_the_stricter_of_urdf_and_config_wins() -> None:
    loose = combine_limits(arm, {"acceleration": 10.0, "velocity": 100.0, "lower": -100.0, "upper": 100.0})
    np.testing.assert_array_equal(loose.lower, arm.lower)
    np.testing.assert_array_equal(loose.upper, arm.upper)
    np.testing.assert_array_equal(loose.velocity, arm.velocity_limits)
    np.testing.assert_array_equal(loose.acceleration, np.full(7, 10.0))
    np.testing.assert_array_equal(combine_limits(arm, {"acceleration": [10.0]}).acceleration, np.full(7, 10.0))
    tight = combine_limits(
        arm,
        {"acceleration": FRANKA, "velocity": [0.5] * 7, "upper": [0.1] * 3 + [-1.0] + [0.1] * 3, "lower": -2.5,
         "position_margin": 0.05, "velocity_scale": 0.5},
    )  # fmt: skip
    np.testing.assert_allclose(tight.upper, [0.05, 0.05, 0.05, -1.05, 0.05, 0.05, 0.05])
    np.testing.assert_allclose(tight.lower, np.maximum(arm.lower, -2.5) + 0.05)
    np.testing.assert_array_equal(tight.velocity, np.full(7, 0.25))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "no acceleration limit for"),
        ({"acceleration": [1.0, 2.0]}, "acceleration is .*7 of them"),
        ({"acceleration": "fast"}, "acceleration is fast"),
        ({"acceleration": 0.0}, "no room"),
        ({"acceleration": 1.0, "position_margin": 3.0}, "no room"),
        ({"acceleration": 1.0, "position_margin": -0.1}, "position_margin"),
        ({"acceleration": 1.0, "velocity_scale": 2.0}, "velocity_scale"),
        ({"acceleration": 1.0, "workspace_lower": [0, 0, 0]}, "workspace box"),
        ({"acceleration": 1.0, "workspace_lower": [0, 0, 1], "workspace_upper": [1, 1, 1]}, "workspace box"),
        ({"accelerations": 1.0}, "unknown entries .*accelerations"),
    ],
)
def test_limits_that_make_no_sense_are_refused(config, says) -> None:
    with pytest.raises(VegaError, match=says):
        combine_limits(arm, config)


def test_without_limits_there_is_no_guard() -> None:
    with pytest.raises(VegaError, match="no safety limits"):
        SafetyGuard(arm, None, PERIOD)
    with pytest.raises(VegaError, match="guard mode 'warn'"):
        SafetyGuard(arm, LIMITS, PERIOD, "warn")  # type: ignore[arg-type]


def test_full_scale_deltas_pass_untouched_with_the_limits_of_the_simulated_arm() -> None:
    """With what libero.yaml allows, the guard must not change what LIBERO's policies do."""
    law = ImpedanceLaw(arm, ActionSpace("eef_delta"), HOME)
    checker = SafetyGuard(arm, combine_limits(arm, {"acceleration": 40.0}), PERIOD)
    rng = np.random.default_rng(0)
    q, qd = HOME.copy(), STILL.copy()
    for i in range(200):
        if i % 5 == 0:
            action = np.append(rng.choice([-1.0, 0.0, 1.0], 3), [0.0, 0.0, 0.0, 1.0])
            # Back towards the middle of the table, as a task keeps an arm.
            away = arm.forward(q)[0] - arm.forward(HOME)[0]
            action[:3] = np.where(np.abs(away) > 0.1, -np.sign(away), action[:3])
        action[3:6] = rng.normal(0, 0.05, 3)
        target, velocity = law.step(q, qd, action)
        decision = checker.check(target, velocity, 1.0, q, qd, i * PERIOD_NS)
        assert decision.rules == ()
        assert decision.positions is not target
        np.testing.assert_array_equal(decision.positions, target)
        np.testing.assert_array_equal(decision.velocities, velocity)
        q, qd = target, velocity
