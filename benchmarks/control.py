"""What a real arm may rely on, in numbers: `python -m benchmarks.control`.

Rows `name value threshold ok|FAIL`: for each fault the longest time until a stand-in arm rests (and stays
so), and random and adversarial commands through the safety guard.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks import fault_matrix
from benchmarks.rows import Rows
from policies.types import VegaError
from vega3d_ros.kinematics import Kinematics
from vega3d_ros.resources import resolve
from vega3d_ros.safety_guard import GuardLimits, SafetyGuard

REST_MS = 200.0
URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"


def commands_outside(count: int, seed: int = 0) -> int:
    """Commands outside any limit among `count` hostile ones that the guard let pass, half of them in mode clamp."""
    rng = np.random.default_rng(seed)
    names = [f"panda_joint{i}" for i in range(1, 8)]
    kinematics = Kinematics(resolve(URDF).read_text(), names, "panda_tcp")
    limits = GuardLimits(
        kinematics.lower + 0.05, kinematics.upper - 0.05, np.full(7, 2.0), np.full(7, 10.0), stop_within_limits=True
    )
    period_s, outside = 0.05, 0
    guards = [SafetyGuard(kinematics, limits, period_s, mode) for mode in ("reject", "clamp")]  # type: ignore[arg-type]
    middle = (limits.lower + limits.upper) / 2
    hostile = np.array([np.nan, np.inf, -np.inf, 1e300, 0.0, 100.0])
    for index in range(count):
        guard = guards[index % 2]
        measured = middle + rng.uniform(-0.52, 0.52) * (limits.upper - limits.lower)
        rate = rng.uniform(-1.0, 1.0, 7)
        scale = 10.0 ** rng.uniform(-3, 1)
        position = measured + scale * rng.standard_normal(7) * 0.1
        velocity = rate + scale * rng.standard_normal(7) * 0.5
        if index % 10 == 0:
            (position if index % 20 else velocity)[rng.integers(7)] = rng.choice(hostile)
        if index % 100 == 0:
            guard.reset()
        decision = guard.check(position, velocity, 1.0, measured, rate, index * 50_000_000)
        if decision.rejected:
            good = np.array_equal(decision.positions, measured) and not decision.velocities.any()
        else:
            p, v = decision.positions, decision.velocities
            good = bool(
                np.all(p >= limits.lower - 1e-6)
                and np.all(p <= limits.upper + 1e-6)
                and np.all(np.abs(v) <= limits.velocity + 1e-6)
                and np.all(np.abs(p - measured) <= limits.velocity * period_s + 1e-6)
                and np.all(np.abs(v - rate) <= limits.acceleration * period_s + 1e-6)
            )
        outside += not good
    return outside


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20, help="of each fault")
    parser.add_argument("--faults", nargs="*", default=list(fault_matrix.FAULTS), choices=list(fault_matrix.FAULTS))
    parser.add_argument("--actions", type=int, default=1_000_000, help="through the guard; 0: none")
    options = parser.parse_args(argv)
    rows = Rows()

    def say(name: str, times: list[float]) -> None:
        rows.at_most(f"at_rest_ms_max_{name}", max(times), REST_MS)

    try:
        if options.actions:
            rows.at_most(f"commands_outside_of_{options.actions}", commands_outside(options.actions), 0.0)
        if options.faults:
            fault_matrix.run(options.faults, options.repetitions, say)
    except VegaError as error:
        print(error, file=sys.stderr)
        return 1
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
