"""Is the arm asked for nothing beyond its limits, whatever the node believes?  `python -m benchmarks.wire`

Rows `name value threshold ok|FAIL`, exit 1 where one fails; rows without a threshold are information; lines with `#`
tell of progress.  A whole run takes about an hour and a half on two cores.  `--rows`:

    offline     random and adversarial command sequences through the guard, judged as whole polynomials (s14: the box),
                and the arm's body led below a floor (s16)
    situations  what was once seen to go wrong (`arm/situations.py`), against a live node
    policies    s05, s06: policies that throw the tool about, so that much is refused at speed; s12: all is refused
    faults      the faults of `benchmarks.control`, against the same judge
    drift       zero actions with 5 mrad between commanded and measured
    time        guard and braking path against the control law's own time, in the same loop
    franka      franka-sim, whose limits are enforced, moved through franka_driver: circles, reversals, five faults
    relay       image to command, without the policy, against a bare relay of the same images, and against --base

The judge is a process that imports nothing of ours (`wire_judge/driver.py`): a driver with offset, lag and noise that
runs each message as joint_trajectory_controller would, from its own state, and judges its whole path.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.arm import situations as known
from benchmarks.arm.fault_matrix import FAULTS
from benchmarks.arm.judged import ACCELERATION, OFFSET_RAD, Follow, Judged, arm
from benchmarks.arm.stand_in import HOME
from benchmarks.rows import Rows
from policies.files.command_line import command_parser
from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import SafetyGuard

REST_MS, DRIFT_RAD = 200.0, 0.002
WILD_S = 2.0
RELAY_RATIO, FASTER = 2.5, 1.5


class StillPolicy:
    """Answers zero, always."""

    spec = PolicySpec("still", ("agentview", "wrist"), ActionSpace("eef_delta"), chunk_length=8, open_loop_horizon=8)

    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.zeros((8, 7)), observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """Nothing is remembered."""


class WildPolicy(StillPolicy):
    """Throws the tool about at all scales."""

    def act(self, observation: Observation) -> ActionChunk:
        rng = np.random.default_rng(observation.stamp_ns % 2**32)
        actions = rng.uniform(-1.0, 1.0, (8, 7)) * 10.0 ** rng.uniform(-1.5, 0.0, (8, 1))
        return ActionChunk(actions, observation.stamp_ns, observation.instruction)


class ReversingPolicy(StillPolicy):
    """Full speed one way, and of a sudden the other."""

    def act(self, observation: Observation) -> ActionChunk:
        actions = np.zeros((8, 7))
        actions[:, :3] = np.sign(np.sin(observation.stamp_ns * 1e-9 * 7.0)) * np.array([0.3, 1.0, -0.5])
        return ActionChunk(actions, observation.stamp_ns, observation.instruction)


def chosen(options: argparse.Namespace, name: str) -> bool:
    return not options.only or name in options.only


def _told(rows: Rows, judged: Judged, name: str, messages: int, outside: int) -> None:
    rows.at_most(f"messages_outside_of_{messages}_{name}", outside, 0)
    if outside:
        print(f"# first: {judged.first}", flush=True)


def offline(rows: Rows, options: argparse.Namespace) -> None:
    if chosen(options, "s14_braking_point_against_the_box"):
        from benchmarks.arm.guard import judged_commands

        judged = judged_commands(options.commands)
        rows.at_most(f"paths_outside_limits_of_{judged.commands}_commands", judged.outside, 0)
        box = f"paths_outside_the_box_of_{judged.commands}_commands_s14_braking_point_against_the_box"
        rows.at_most(box, judged.out_of_box, 0)
        rows.information("commands_that_the_guard_passed", judged.passed)
    if chosen(options, "s16_body_below_a_floor"):
        from benchmarks.arm.low_body import FLOOR_M, below_floor

        messages, outside, lowest = below_floor(options.repetitions)
        rows.at_most(f"messages_outside_of_{messages}_s16_body_below_a_floor", outside, 0)
        rows.information(f"lowest_vertex_m_above_a_floor_at_{FLOOR_M:g}", lowest - FLOOR_M)


def _play(rows: Rows, judged: Judged, name: str, live: known.Live, repetitions: int) -> None:
    before, outside, times, wrong, began_s = judged.messages, judged.outside, [], [], time.monotonic()
    for number in range(repetitions):
        live.before(judged)
        times.append(judged.rest(live.fault))
        wrong += [found for found in [live.after(judged)] if found]
        if name == "qos_mismatch" and judged.bench.state() == "inactive":
            judged.bench.change("CLEANUP")  # what could not be heard is remembered until then
        if (number + 1) % 5 == 0:
            spent_s = time.monotonic() - began_s
            print(f"# {name}: {number + 1} of {repetitions} in {spent_s:.0f} s, {max(times):.0f} ms", flush=True)
    seen = judged.messages - before
    _told(rows, judged, name, seen, judged.outside - outside)
    rows.at_most(f"at_rest_ms_max_of_{repetitions}_{name}", max(times), REST_MS)
    if live.after is not known.nothing_wrong:
        rows.at_most(f"wrong_afterwards_of_{repetitions}_{name}", len(wrong), 0)
    for found in wrong[:1]:
        print(f"# {name}: {found}", flush=True)
    if not seen:
        raise VegaError(f"The judge heard no message during {name}: read the driver's output.")


def _play_all(rows: Rows, all_of_them: dict[str, known.Live], options: argparse.Namespace) -> None:
    """One node for all of a setting."""
    for setting, parameters in known.SETTINGS.items():
        mine = {n: live for n, live in all_of_them.items() if live.setting == setting and chosen(options, n)}
        if not mine:
            continue
        judged = Judged(parameters=parameters)
        try:
            for name, live in mine.items():
                _play(rows, judged, name, live, options.repetitions)
        finally:
            judged.close()


def situations(rows: Rows, options: argparse.Namespace) -> None:
    _play_all(rows, known.LIVE, options)
    for name, wrong_ones in known.REFUSALS.items():
        if not chosen(options, name):
            continue
        judged = Judged()
        try:
            judged.bench.node.stop(3.0)
            found = [
                known.refused(judged, wrong_ones[number % len(wrong_ones)], number)
                for number in range(options.repetitions)
            ]
            accepted = [text for text in found if text]
            rows.at_most(f"messages_sent_in_{len(found)}_{name}", judged.messages, 0)
            rows.at_most(f"accepted_of_{len(found)}_{name}", len(accepted), 0)
            for text in accepted[:1]:
                print(f"# {name}: {text}", flush=True)
        finally:
            judged.close()


def faults(rows: Rows, options: argparse.Namespace) -> None:
    _play_all(rows, {name: known.Live(fault) for name, fault in FAULTS.items()}, options)


def policies(rows: Rows, options: argparse.Namespace) -> None:
    for name, policy in (
        ("s05_commands_that_pass_by_their_end_values", "WildPolicy"),
        ("s06_rejection_at_speed", "ReversingPolicy"),
    ):
        if not chosen(options, name):
            continue
        judged = Judged(f"benchmarks.wire:{policy}", {"safety.max_rejections": [1000.0]})
        try:
            for _ in range(options.repetitions):
                judged.bring_up()
                judged.bench.client.until(lambda: False, WILD_S)
            _told(rows, judged, name, judged.messages, judged.outside)
            rows.information("latest_arrival_ms_after_its_stamp", judged.told["latest_ms"])
            rows.information("most_of_the_velocity_limit_on_the_wire", judged.told["velocity"])
            rows.information("most_of_the_acceleration_limit_on_the_wire", judged.told["acceleration"])
        finally:
            judged.close()
    if chosen(options, "s12_every_command_rejected"):
        _rejected(rows, options)


def _rejected(rows: Rows, options: argparse.Namespace) -> None:
    """With limits that no command keeps: nothing but the lead, and /diagnostics says why."""
    from std_srvs.srv import Trigger

    name, silent = "s12_every_command_rejected", 0
    judged = Judged(parameters={"safety.acceleration": [0.5], "after_problem": "wait"})
    client = judged.bench.client
    try:
        client.until(lambda: judged.bench.instruction.get_subscription_count() > 0 or judged.bench.state() != "", 60.0)
        for _ in range(options.repetitions):
            judged.activate()
            judged.sentence = ""
            client.call(Trigger, "policy_node/start", Trigger.Request(), 30.0)
            silent += not client.until(lambda: "in a row" in judged.sentence, 15.0)
        _told(rows, judged, name, judged.messages, judged.outside)
        rows.at_most(f"diagnostics_silent_of_{options.repetitions}_{name}", silent, 0)
    finally:
        judged.close()


def drift(rows: Rows, options: argparse.Namespace) -> None:
    # Its home is where the arm says that it is: else the redundant arm, taken over 5 mrad beside it, would bring its
    # elbow there while the tool stands still (2.5 mrad within 10 s), which is no drift.
    home = [q + OFFSET_RAD for q in HOME[:7]]
    judged = Judged("benchmarks.wire:StillPolicy", {"home": home})
    client, follow = judged.bench.client, Follow(judged)
    try:
        judged.bring_up()
        follow.clear()
        before = judged.messages
        client.until(lambda: False, options.drift_s)
        moved = float(np.abs(follow.places - follow.places[0]).max())
        rows.at_least("drift_messages", judged.messages - before, 10.0 * options.drift_s)
        rows.at_most(f"drift_rad_in_{options.drift_s:g}_s_with_5_mrad_of_offset", moved, DRIFT_RAD)
        _told(rows, judged, "drift", judged.messages, judged.outside)
    finally:
        judged.close()


def cost(rows: Rows, options: argparse.Namespace) -> None:
    kinematics = arm()
    home = np.array(HOME[:7])
    box = {"workspace_lower": [0.0, -0.6, 0.0], "workspace_upper": [0.9, 0.6, 1.2]}
    guard = SafetyGuard(kinematics, combine_limits(kinematics, {"acceleration": ACCELERATION, **box}), 0.05)
    guard.ahead_ns = 10_000_000
    law = ImpedanceLaw(kinematics, ActionSpace("eef_delta"), home)
    rng, now = np.random.default_rng(0), 0
    lead, _ = guard.take_over(home, np.zeros(7), now)
    assert lead is not None
    now += round(lead.motion.times_s[-1] * 1e9)
    spent: dict[str, list[float]] = {"law": [], "guard": []}
    measured = home
    for index in range(2000):
        action = 0.2 * np.append(np.sin(0.1 * index + np.arange(6)), 0.0) * rng.uniform(0.5, 1.0)
        began = time.perf_counter()
        start = guard.start(measured, np.zeros(7), now)
        middle = time.perf_counter()
        target = law.step(*start, action)
        end = time.perf_counter()
        decision = guard.check(*target, 1.0, now)
        spent["guard"].append(middle - began + time.perf_counter() - end)
        spent["law"].append(end - middle)
        now += 50_000_000
        measured = decision.motion.at(now)[0]
    p99 = {name: 1e3 * float(np.percentile(values, 99.0)) for name, values in spent.items()}
    rows.information("control_law_ms_p99", p99["law"])
    rows.information("guard_and_braking_path_ms_p99", p99["guard"])
    rows.at_most("guard_over_control_law_p99", p99["guard"] / p99["law"], 1.0)


def franka(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.franka.row import measure

    measure(rows, options.minutes)


def relay(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm.relay import measure

    seen = measure(options.relay_s, options.base)
    for name, p99 in seen.p99_ms.items():
        rows.information(f"image_to_command_ms_p99_{name}", p99)
        rows.information(f"image_to_command_ms_p50_{name}", seen.p50_ms[name])
    rows.at_most("image_to_command_p99_over_relay", seen.p99_ms["node"] / seen.p99_ms["relay"], RELAY_RATIO)
    if options.base:
        # What no node could surpass, since it looks at the same images and decides.
        rows.information("image_to_command_p99_base_over_relay", seen.p99_ms["base"] / seen.p99_ms["relay"])
        rows.at_least("image_to_command_p99_base_over_this", seen.p99_ms["base"] / seen.p99_ms["node"], FASTER)


MEASURES: dict[str, Callable[[Rows, argparse.Namespace], None]] = {
    "offline": offline,
    "situations": situations,
    "policies": policies,
    "faults": faults,
    "drift": drift,
    "time": cost,
    "franka": franka,
    "relay": relay,
}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = command_parser("python -m benchmarks.wire", __doc__, paragraphs=4)
    parser.add_argument("--rows", nargs="+", choices=MEASURES, default=list(MEASURES), help="which (default: all)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of these rows, situations and faults")
    parser.add_argument("--commands", type=int, default=1_000_000, help="offline: commands")
    parser.add_argument("--repetitions", type=int, default=20, help="of each situation and fault")
    parser.add_argument("--drift-s", type=float, default=60.0, help="drift: for so long, s")
    parser.add_argument("--minutes", type=float, default=10.0, help="franka: for so long, its faults apart")
    parser.add_argument("--relay-s", type=float, default=60.0, help="relay: so long, s, for each process")
    parser.add_argument("--base", type=Path, help="relay: another checkout with its own .venv to compare with")
    options, rows = parser.parse_args(argv), Rows()
    try:
        for name in options.rows:
            MEASURES[name](rows, options)
    except VegaError as error:
        print(error, file=sys.stderr)
        return 1
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
