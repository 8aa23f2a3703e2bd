"""The limits of an arm: of what the URDF and the robot's file say the stricter, and none in LIBERO's way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policies.types import ActionSpace, VegaError
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import RULES, SafetyGuard
from vega3d_ros.control.kinematics import Kinematics

URDF = (Path(__file__).parents[1] / "config" / "robots" / "libero_panda.urdf").read_text()
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])
PERIOD = 0.05
PERIOD_NS = 50_000_000
STILL = np.zeros(7)
FRANKA = [15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]

arm = Kinematics(URDF, [f"panda_joint{i}" for i in range(1, 8)], "panda_tcp")


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
    np.testing.assert_array_equal(tight.arm_velocity, np.full(7, 0.5))


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
        ({"acceleration": 1.0, "tracking_tolerance": 0.0}, "tracking_tolerance"),
        ({"acceleration": 1.0, "max_rejections": 0}, "max_rejections"),
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
        SafetyGuard(arm, combine_limits(arm, {"acceleration": 40.0}), PERIOD, "warn")  # type: ignore[arg-type]


@pytest.mark.parametrize("committed", [False, True])
def test_full_scale_deltas_pass_untouched_with_the_limits_of_the_simulated_arm(committed: bool) -> None:
    """With what libero.yaml allows, the guard must not change what LIBERO's policies do."""
    law = ImpedanceLaw(arm, ActionSpace("eef_delta"), HOME)
    checker = SafetyGuard(arm, combine_limits(arm, {"acceleration": 40.0}), PERIOD, committed=committed)
    rng = np.random.default_rng(0)
    q, qd = HOME.copy(), STILL.copy()
    checker.take_over(q, qd, -(10**9))
    for i in range(200):
        if i % 5 == 0:
            action = np.append(rng.choice([-1.0, 0.0, 1.0], 3), [0.0, 0.0, 0.0, 1.0])
            # Back towards the middle of the table, as a task keeps an arm.
            away = arm.forward(q)[0] - arm.forward(HOME)[0]
            action[:3] = np.where(np.abs(away) > 0.1, -np.sign(away), action[:3])
        action[3:6] = rng.normal(0, 0.05, 3)
        start = checker.start(q, qd, i * PERIOD_NS)
        np.testing.assert_allclose(start[0], q, atol=1e-12)
        target, velocity = law.step(*start, action)
        decision = checker.check(target, velocity, 1.0, i * PERIOD_NS)
        assert decision.rules == ()
        assert decision.positions is not target
        np.testing.assert_array_equal(decision.positions, target)
        np.testing.assert_array_equal(decision.velocities, velocity)
        q, qd = target, velocity
    assert set(checker.counts) == set(RULES) and checker.checked == 200


class OneJoint:
    """As much of an arm as the guard looks at."""

    joint_names = ("slide",)
    lower, upper, velocity_limits = -9.0 * np.ones(1), 9.0 * np.ones(1), 2.0 * np.ones(1)
    n = 1

    def tip_pose(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([q[0], 0.0, 0.0]), np.eye(3)


class Post:
    """Stands somewhere on the way, once it is put there."""

    rule = "body"

    def __init__(self) -> None:
        self.near, self.far = np.inf, np.inf

    def allows(self, configurations: np.ndarray) -> bool:
        return not np.any((configurations > self.near) & (configurations < self.far))


def test_a_post_on_a_long_way_of_braking_is_seen_wherever_it_stands() -> None:
    """The way is looked at as closely where the arm is fast: there two looks may be on either side of the post."""
    limits = combine_limits(OneJoint(), {"acceleration": 1.0})
    way = 2.0**2 / 2.0  # rad, in 2 s
    for share in np.linspace(0.0, 1.0, 60):
        post = Post()
        guard = SafetyGuard(OneJoint(), limits, PERIOD, "reject", True, [post])
        lead, _ = guard.take_over(np.zeros(1), np.zeros(1), 0)
        assert lead is not None
        time_ns = 10**10
        assert guard.take_over(np.zeros(1), np.zeros(1), time_ns) == (None, "")
        here, speed = np.zeros(1), np.zeros(1)
        while speed[0] < 1.99:
            faster = np.minimum(speed + PERIOD, 2.0)
            guard.start(here, speed, time_ns)
            here = here + 0.5 * PERIOD * (speed + faster)
            assert not guard.check(here, faster, 0.0, time_ns).rejected
            speed, time_ns = faster, time_ns + PERIOD_NS
        guard.start(here, speed, time_ns)
        there = here + PERIOD * speed
        post.near = there[0] + share * (way - 0.13)
        post.far = post.near + 0.13
        assert guard.check(there, speed, 0.0, time_ns).rules == ("body",), share
