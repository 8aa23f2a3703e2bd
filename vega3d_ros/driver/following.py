"""How a generator that only knows targets is made to follow a path: NumPy only.

franka-rs shapes targets at 1 kHz: at every millisecond it plans, within its limits, from where the command is to *rest*
at the newest target, all joints arriving together.  Given the path itself it lags by its own stopping distance, some
80 mrad at 0.9 rad/s; given the place of the path at which it would come to rest, it is where the path is now.
"""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray

STEP_S = 0.001
# What Franka's interface takes of a joint (libfranka, include/franka/rate_limiting.h), by its version: rad/s, rad/s^2,
# and rad/s^3 of the slowest to change.  10: FR3; 5: Franka Emika Robot (Panda).
VELOCITY = {10: (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26), 5: (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)}
ACCELERATION = {10: (10.0,) * 7, 5: (15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0)}
RAMP_S = {10: 10.0 / 5000.0, 5: 0.002}  # acceleration over jerk, for the slowest joint
SHORTEST_STOP_S = 0.05


def look_ahead(positions: FloatArray, velocities: FloatArray, acceleration: FloatArray, ramp_s: float) -> FloatArray:
    """Targets (m, n) for a path.

    positions, velocities (m, n) rad, rad/s: the path every `STEP_S`, at rest at its end.  acceleration (n,) rad/s^2: of
    the generator; ramp_s: its acceleration over its jerk.

    Each joint is sent ahead along its own path.  The fastest rests after T = |v| / a; another, which arrives with it,
    keeps its speed v until it brakes for |v| / a, and so covers v (T - |v| / 2 a).  No target lies beyond the path.
    """
    stopping = np.abs(velocities) / acceleration + ramp_s
    ahead = np.max(stopping, axis=1, keepdims=True) - stopping / 2.0
    times = STEP_S * np.arange(len(positions))
    columns = [np.interp(times + ahead[:, j], times, positions[:, j]) for j in range(positions.shape[1])]
    return np.stack(columns, axis=1)


def stopping_times(velocities: FloatArray, acceleration: FloatArray) -> FloatArray:
    """Times (k,) s along a path, one every `STEP_S`, that slow it down to rest without leaving it.

    velocities (m, n) rad/s: of the path from now on, every `STEP_S`, at rest at its end.  The arm rests at the last of
    the times.  Half of the acceleration is left to what the path itself asks for.
    """
    # Time t of the path passes while it is slowed down evenly for 2 t; its fastest joint so far must have that long.
    needed = np.maximum.accumulate(np.max(np.abs(velocities) / acceleration, axis=1))
    passes = STEP_S * np.arange(len(velocities))
    enough = passes >= needed
    lasts_s = 2.0 * max(SHORTEST_STOP_S, float(passes[int(np.argmax(enough))] if enough.any() else passes[-1]))
    since = np.arange(0.0, lasts_s + STEP_S, STEP_S).clip(max=lasts_s)
    return since - since**2 / (2.0 * lasts_s)
