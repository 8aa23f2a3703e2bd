"""What a real arm may rely on, in numbers: `python -m benchmarks.control`.

Prints rows `name value threshold ok|FAIL` and exits with 1 if one fails; rows without a threshold are information.
`--rows` chooses among:

    guard     random and adversarial commands through the safety guard: paths that leave a limit, judged as polynomials
    cost      guard, braking path and body of a command against the control law's own time
    inputs    fuzzed ROS messages to a live node: crashes, and commands that malformed input caused
    latency   libero_object with a policy that answers late, against lockstep on the same trials
    seams     the jump in joint velocity where a chunk takes over, `latest` against `align`, in those same runs
    faults    for each fault the longest time until a stand-in arm rests, and stays so (`fault_matrix.py`)
    period    the 20 Hz command period with the simulator beside
    memory    how much policy_node grows in an hour; draws the curve in --output

All of them take about three hours and want a machine of at least two cores with nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.rows import Rows
from policies.files.command_line import command_parser
from policies.types import VegaError

COST_RATIO = 1.0
REST_MS = 200.0
POINTS = 10.0
SEAM_RATIO = 3.0
PERIOD_MS = 5.0
GROWTH_MB = 20.0
HIDDEN_MS, TOO_LATE_MS = (100, 200), 300


def guard(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm.guard import judged_commands

    judged = judged_commands(options.actions)
    rows.at_most(f"paths_outside_limits_of_{judged.commands}_commands", judged.outside, 0)
    rows.at_most(f"paths_outside_the_box_of_{judged.commands}_commands", judged.out_of_box, 0)
    rows.information("commands_that_the_guard_passed", judged.passed)
    if judged.worst is not None:
        rows.information("most_of_the_velocity_limit_that_a_path_used", judged.worst.velocity)
        rows.information("most_of_the_acceleration_limit_that_a_path_used", judged.worst.acceleration)


def cost(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm.cost import measure

    seen = measure(options.commands)
    for name, times in (("law", seen.law), ("guard_and_body", seen.guard)):
        rows.information(f"{name}_us_p50", float(np.percentile(times, 50.0)))
    rows.information("pairs_of_the_body", seen.pairs)
    rows.at_most(f"guard_and_body_over_law_p99_of_{len(seen.law)}", seen.share(99.0), COST_RATIO)


def inputs(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm.fuzz import fuzz

    seen = fuzz(options.messages)
    rows.at_most(f"crashes_of_{seen.messages}_malformed_messages", seen.crashes, 0)
    rows.at_most(f"commands_caused_by_{seen.messages}_malformed_messages", seen.commands, 0)
    rows.at_least("commands_per_phase_once_the_input_is_right", seen.commands_after, 1)


def latency(rows: Rows, options: argparse.Namespace) -> None:
    """Also the row `seams`, which looks at the same runs."""
    from benchmarks.arm import realtime
    from policies.checkpoints import load_policy

    policy = load_policy(options.policy)
    trials = [(task, trial) for task in range(10) for trial in range(options.trials)]
    count = f"{len(trials)}_trials"

    late = {}
    for ms in HIDDEN_MS:
        late[ms] = realtime.run(policy, trials, ms / 1e3, "align")
        rows.information(f"realtime_{ms}ms_percent_of_{count}", late[ms].percent)
    if "latency" in options.rows:
        lockstep = realtime.lockstep(policy, trials)
        rows.information(f"lockstep_percent_of_{count}", lockstep)
        for ms in HIDDEN_MS:
            rows.at_most(f"points_lost_at_{ms}ms", lockstep - late[ms].percent, POINTS)
        slow = realtime.run(policy, trials, TOO_LATE_MS / 1e3, "align")
        rows.information(f"realtime_{TOO_LATE_MS}ms_synchronous_percent_of_{count}", slow.percent)
        rows.at_least(f"episodes_that_said_{TOO_LATE_MS}ms_is_too_slow_and_waited", slow.slowed, len(trials))
    if "seams" in options.rows:
        jumps = {"align": [x for ms in HIDDEN_MS for x in late[ms].seam_jumps], "latest": []}
        for ms in HIDDEN_MS:
            jumps["latest"] += realtime.run(policy, trials, ms / 1e3, "latest").seam_jumps
        for merge, found in jumps.items():
            rows.information(f"largest_jump_rad_s_of_{len(found)}_seams_{merge}", np.max(found))
        rows.at_least("largest_jump_latest_over_align", np.max(jumps["latest"]) / np.max(jumps["align"]), SEAM_RATIO)


def faults(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm import fault_matrix

    unknown = sorted(set(options.faults) - set(fault_matrix.FAULTS))
    if unknown:
        raise VegaError(f"There are no faults {unknown}: choose among {', '.join(fault_matrix.FAULTS)}.")
    names = options.faults or list(fault_matrix.FAULTS)

    def say(name: str, times: list[float]) -> None:
        rows.at_most(f"at_rest_ms_max_of_{len(times)}_{name}", max(times), REST_MS)

    fault_matrix.run(names, options.repetitions, options.results, say)


def period(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm import running

    with running.simulator_beside():
        seen = running.run(options.period_minutes, options.policy)
    share = 100.0 * sum(seen.intervals_ms) / (60e3 * options.period_minutes)
    rows.information(f"percent_of_{options.period_minutes:g}_minutes_in_episodes", share)
    rows.information("period_off_ms_p50", seen.off_ms(50.0))
    rows.at_most(f"period_off_ms_p99_of_{len(seen.intervals_ms)}", seen.off_ms(99.0), PERIOD_MS)


def memory(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm import running

    seen = running.run(options.memory_minutes, options.policy, lambda text: print(f"# {text}", flush=True))
    running.draw_memory(seen, options.output / "memory.png")
    rows.at_most(f"memory_growth_mb_in_{options.memory_minutes:g}_minutes", seen.growth_mb(), GROWTH_MB)


MEASURES: dict[str, Callable[[Rows, argparse.Namespace], None]] = {
    "guard": guard,
    "cost": cost,
    "inputs": inputs,
    "latency": latency,
    "seams": latency,
    "faults": faults,
    "period": period,
    "memory": memory,
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m benchmarks.control", __doc__, paragraphs=4)
    parser.add_argument("--rows", nargs="+", choices=MEASURES, default=list(MEASURES), help="which (default: all)")
    parser.add_argument("--policy", default="vega-nano", help="of latency, seams, period and memory")
    parser.add_argument("--actions", type=int, default=1_000_000, help="guard: commands")
    parser.add_argument("--commands", type=int, default=20_000, help="cost: commands")
    parser.add_argument("--messages", type=int, default=100_000, help="inputs: messages")
    parser.add_argument("--trials", type=int, default=3, help="latency and seams: of each of the ten tasks")
    parser.add_argument("--repetitions", type=int, default=20, help="faults: of each")
    parser.add_argument("--faults", nargs="+", default=[], help="faults: only these (default: all)")
    parser.add_argument(
        "--results", type=Path, help="faults: a file that keeps the times; what it holds is not repeated"
    )
    parser.add_argument("--period-minutes", type=float, default=10.0, help="period: for so long, minutes")
    parser.add_argument("--memory-minutes", type=float, default=60.0, help="memory: for so long, minutes")
    parser.add_argument("--output", type=Path, default=Path("outputs/control"), help="folder of the memory's curve")
    options = parser.parse_args(argv)
    for name in ("actions", "commands", "messages", "trials", "repetitions", "period_minutes", "memory_minutes"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    return options


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options, rows = parse(argv), Rows()
    try:
        # latency and seams share their runs
        for measure in dict.fromkeys(MEASURES[name] for name in MEASURES if name in options.rows):
            measure(rows, options)
    except VegaError as error:
        print(error, file=sys.stderr)
        return 1
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
