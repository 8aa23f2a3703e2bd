"""Random and adversarial commands through the safety guard; what it lets pass is checked against every limit, again.

Half of the commands meet a guard in mode `reject`, half in mode `clamp`.  Three kinds take turns in runs of `RUN`:

- `random`: commands at all scales around an arm that is anywhere, a little beyond its limits too;
- `edge`: commands within 0.01 of a limit of position, velocity or acceleration, on either side;
- `pursuit`: an arm that follows what it is told, driven at full acceleration into its joint limits.

One in ten carries a NaN, an infinity or another hostile number in the command or in the measured state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.types import FloatArray
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import resolve
from vega3d_ros.control.safety_guard import GuardLimits, SafetyGuard

URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"
PERIOD_S = 0.05
RUN = 100
HOSTILE = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 100.0])
ROOM = 1e-6  # rad, rad/s, m: rounding between two ways to compute the same bound


@dataclass
class Passed:
    """One run: what was measured, what the guard made of it, and whether it commanded it; (RUN, n) or (RUN,)."""

    measured: FloatArray
    rate: FloatArray
    positions: FloatArray
    velocities: FloatArray
    grippers: FloatArray
    commanded: FloatArray


def limits_of(kinematics: Kinematics) -> GuardLimits:
    """Limits of every kind at once."""
    return GuardLimits(
        kinematics.lower + 0.05,
        kinematics.upper - 0.05,
        np.full(kinematics.n, 2.0),
        np.full(kinematics.n, 10.0),
        workspace_lower=np.array([-0.6, -0.6, 0.0]),
        workspace_upper=np.array([0.8, 0.6, 1.0]),
        stop_within_limits=True,
    )


def commands_outside(count: int, seed: int = 0) -> tuple[int, int]:
    """(commands that the guard passed and that break a limit, commands passed) of `count`, a multiple of RUN."""
    rng = np.random.default_rng(seed)
    kinematics = Kinematics(resolve(URDF).read_text(), [f"panda_joint{i}" for i in range(1, 8)], "panda_tcp")
    limits = limits_of(kinematics)
    guards = [SafetyGuard(kinematics, limits, PERIOD_S, "reject"), SafetyGuard(kinematics, limits, PERIOD_S, "clamp")]
    outside = passed = 0
    for number in range(count // RUN):
        guard = guards[number % 2]
        guard.reset()
        kind = (_random, _edge, _pursuit)[number // 2 % 3]
        run = kind(guard, rng)
        outside += int(_breaks(run, limits, kinematics).sum())
        passed += int(run.commanded.sum())
    return outside, passed


def _through(
    guard: SafetyGuard, commands: tuple[FloatArray, FloatArray], state: tuple[FloatArray, FloatArray]
) -> Passed:
    """A run of commands (positions, velocities) for measured states (positions, velocities) known beforehand."""
    decisions = [
        guard.check(p, v, 1.0, q, rate, i * 50_000_000)
        for i, (p, v, q, rate) in enumerate(zip(*commands, *state, strict=True))
    ]
    return Passed(
        *state,
        np.array([d.positions for d in decisions]),
        np.array([d.velocities for d in decisions]),
        np.array([d.gripper for d in decisions]),
        np.array([not d.rejected for d in decisions]),
    )


def _spoil(rng: np.random.Generator, *arrays: FloatArray) -> None:
    """Puts a hostile number into one row in ten of one of the arrays each."""
    for row in rng.choice(RUN, RUN // 10, replace=False):
        arrays[rng.integers(len(arrays))][row, rng.integers(arrays[0].shape[1])] = rng.choice(HOSTILE)


def _random(guard: SafetyGuard, rng: np.random.Generator) -> Passed:
    limits = guard.limits
    shape = (RUN, len(limits.lower))
    middle, width = (limits.lower + limits.upper) / 2, limits.upper - limits.lower
    measured = middle + rng.uniform(-0.52, 0.52, (RUN, 1)) * width
    rate = rng.uniform(-1.0, 1.0, shape)
    scale = 10.0 ** rng.uniform(-3, 1, (RUN, 1))
    positions = measured + scale * rng.standard_normal(shape) * 0.1
    velocities = rate + scale * rng.standard_normal(shape) * 0.5
    _spoil(rng, positions, velocities, measured, rate)
    return _through(guard, (positions, velocities), (measured, rate))


def _edge(guard: SafetyGuard, rng: np.random.Generator) -> Passed:
    limits = guard.limits
    shape = (RUN, len(limits.lower))

    def near(size: float) -> FloatArray:
        return size * 10.0 ** rng.uniform(-8, 0, shape) * rng.choice([-1.0, 1.0], shape)

    measured = np.where(rng.random(shape) < 0.5, limits.lower, limits.upper) + near(0.01)
    rate = rng.choice([-1.0, 0.0, 1.0], shape) * limits.velocity + near(0.01)
    positions = measured + rng.choice([-1.0, 0.0, 1.0], shape) * limits.velocity * PERIOD_S + near(0.01)
    velocities = rate + rng.choice([-1.0, 0.0, 1.0], shape) * limits.acceleration * PERIOD_S + near(0.01)
    _spoil(rng, positions, velocities, measured, rate)
    return _through(guard, (positions, velocities), (measured, rate))


def _pursuit(guard: SafetyGuard, rng: np.random.Generator) -> Passed:
    limits = guard.limits
    n = len(limits.lower)
    q = limits.lower + rng.uniform(0.1, 0.9, n) * (limits.upper - limits.lower)
    rate = np.zeros(n)
    towards = rng.choice([-1.0, 1.0], n)
    rows: list[tuple[FloatArray, FloatArray, FloatArray, FloatArray, float, bool]] = []
    for i in range(RUN):
        velocity = np.clip(rate + towards * limits.acceleration * PERIOD_S, -limits.velocity, limits.velocity)
        position = q + velocity * PERIOD_S
        if i % 10 == 9:
            (position if i % 20 == 9 else velocity)[rng.integers(n)] = rng.choice(HOSTILE)
        decision = guard.check(position, velocity, 1.0, q, rate, i * 50_000_000)
        rows.append((q, rate, decision.positions, decision.velocities, decision.gripper, not decision.rejected))
        q, rate = decision.positions, decision.velocities
    return Passed(*(np.array(column) for column in zip(*rows, strict=True)))


def _breaks(run: Passed, limits: GuardLimits, kinematics: Kinematics) -> np.ndarray:
    """(RUN,) whether a command breaks a limit, or a refusal is anything but rest where the arm was measured."""
    p, v, go = run.positions, run.velocities, run.commanded
    brake_s = np.maximum(0.01, np.max(np.abs(v) / limits.acceleration, axis=1, keepdims=True))
    distance, change = limits.velocity * PERIOD_S + ROOM, limits.acceleration * PERIOD_S + ROOM
    wrong = np.zeros(len(p), dtype=bool)
    with np.errstate(invalid="ignore", over="ignore"):
        for place in (p, p + 0.5 * brake_s * v):
            wrong |= ~np.all((place >= limits.lower - ROOM) & (place <= limits.upper + ROOM), axis=1)
        wrong |= ~np.all(np.abs(v) <= limits.velocity + ROOM, axis=1)
        wrong |= ~np.all(np.abs(p - run.measured) <= distance, axis=1)
        wrong |= ~np.all(np.abs(v - run.rate) <= change, axis=1)
        # Beside the arm, the last command counts, where there is one.
        after = np.append(False, go[:-1])
        wrong[1:] |= after[1:] & ~np.all(np.abs(p[1:] - p[:-1]) <= distance, axis=1)
        wrong[1:] |= after[1:] & ~np.all(np.abs(v[1:] - v[:-1]) <= change, axis=1)
    tools = np.array([kinematics.tip_pose(row)[0] if ok else np.zeros(3) for row, ok in zip(p, go, strict=True)])
    assert limits.workspace_lower is not None and limits.workspace_upper is not None
    wrong |= ~np.all((tools >= limits.workspace_lower - ROOM) & (tools <= limits.workspace_upper + ROOM), axis=1)
    # What is refused holds the measured position; where that is no number, so is the hold, and nothing is sent.
    known = np.isfinite(run.measured).all(axis=1, keepdims=True)
    held = np.where(known, p == run.measured, np.isnan(p)).all(axis=1) & ~v.any(axis=1) & (run.grippers == 0.0)
    return np.asarray(np.where(go, wrong, ~held))
