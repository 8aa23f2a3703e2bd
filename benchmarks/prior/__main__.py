"""What the prior is worth, in numbers: `python -m benchmarks.prior --study FOLDER`.

Evaluates the checkpoints of a study (`python -m policies.training.study`) with `sim/run_libero.py` on the same initial
states, then prints what was asked: that all of it ran, what each arm has over the semantic stream alone, what the best
arm and the shipped default lose when their tokens become noise, how encoders find places again, what a distilled
encoder loses and saves, and whether the study repeats itself.
Episodes that were run are read again; `--print-only` runs none.  A row of what is missing is a FAIL that says so.
`--record FILE` keeps what a study's runs have solved, and `--recorded FILE ...` joins it with another study's;
`--picture FILE` draws it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.closed_loop import act_medians_ms
from benchmarks.prior.correspondence import correspondence, read_table
from benchmarks.prior.evaluations import (
    Condition,
    Episodes,
    Evaluations,
    Found,
    Trained,
    of_all,
    of_arm,
    percent,
    read_study,
    said,
    whole,
)
from benchmarks.prior.picture import draw
from benchmarks.prior.recorded import joined, record, recorded
from benchmarks.prior.repeated import repeat
from benchmarks.rows import Rows
from policies.checkpoints import checkpoint_sha256, find_checkpoint
from policies.files.command_line import command, command_parser, results_folder
from policies.types import DEFAULT_POLICY, VegaError
from sim.results.paired import ArmDifference, compare_arms

CONDITIONS = ["libero_object", "libero_object_swap", "libero_object_temp_x0.2", "libero_object:camera"]
PLAIN = "libero_object"  # everything else has something moved
ARMS = ("semantic", "prior", "noise", "untrained", "vae", "imagenet", "window")
SEEDS, EPISODES, TASKS = 3, 200, 10
CLEAR_OF_ZERO = 0.01  # points
POINTS, FASTER = 3.0, 4.0
BASE, PRIOR, WITHOUT_TOKENS = "semantic", "prior", ("semantic", "noise")
DISTILLED_FILE = "distilled.json"


def difference(rows: Rows, name: str, found: ArmDifference) -> None:
    """Information about two arms, second less first."""
    rows.information(f"{name}_points", found.difference)
    rows.information(f"{name}_points_at_least", found.interval_95[0])
    rows.information(f"{name}_points_at_most", found.interval_95[1])
    rows.information(f"{name}_states", found.states)
    rows.information(f"{name}_tasks", found.tasks)


def gather(rows: Rows, trained: Sequence[Trained], conditions: Sequence[Condition], runs: Evaluations) -> Found:
    """Episodes of every run, and the rows that say whether they are all there."""
    found: dict[Trained, dict[Condition, Episodes]] = {}
    for run in trained:
        if not run.unchanged:
            print(f"# {run.name}: its checkpoint is not the one that the study has made", flush=True)
            continue
        parts = {condition: runs.episodes(run, condition) for condition in conditions}
        lacking = [condition.name for condition, episodes in parts.items() if episodes is None]
        if lacking:
            print(f"# {run.name}: no complete run of {', '.join(lacking)}", flush=True)
        found[run] = {condition: episodes for condition, episodes in parts.items() if episodes is not None}
    complete = {run: parts for run, parts in found.items() if len(parts) == len(conditions)}
    asked = [min(SEEDS, sum(run.arm == arm for run in complete)) for arm in ARMS]  # a sweep's are not among them
    rows.at_least("arm_seed_runs_finished_with_checkpoint_hash", sum(asked), SEEDS * len(ARMS))
    counts = [sum(map(len, parts.values())) for parts in complete.values()]
    rows.at_least("episodes_of_each_run", min(counts, default=0), EPISODES)
    tried = [episode for parts in found.values() for episodes in parts.values() for episode in episodes]
    if tried:
        rows.at_most("episodes_with_errors", sum(bool(episode["error"]) for episode in tried), 0)
    else:
        rows.missing("episodes_with_errors", "there are no episodes")
    return found


def arms(rows: Rows, found: Found, conditions: Sequence[Condition]) -> None:
    """What each arm solves, what it has over the semantic stream alone, and what the prior has over each other arm."""
    present = list(dict.fromkeys((BASE, PRIOR, *(run.arm for run in found))))
    suites = {c.name: {arm: of_arm(found, arm, c) for arm in present} for c in conditions}
    if len(conditions) > 1:
        suites["all_suites"] = {arm: of_all(found, arm, conditions) for arm in present}
    for suite, of in suites.items():
        for arm in present:
            if of[arm]:
                rows.information(f"{arm}_{suite}_success_percent", percent(list(of[arm].values())))
        for more, less in [(arm, BASE) for arm in present] + [(PRIOR, arm) for arm in present[2:]]:
            seeds, name = sorted(of[more].keys() & of[less].keys()), f"{more}_minus_{less}_{suite}"
            if more != less and seeds:
                difference(rows, name, compare_arms([of[less][s] for s in seeds], [of[more][s] for s in seeds]))
            if (more, less) == (PRIOR, BASE) and len(seeds) < SEEDS:
                rows.missing(name, f"{len(seeds)} of {SEEDS} seeds have runs of both arms")


def noise(rows: Rows, found: Found, conditions: Sequence[Condition], runs: Evaluations) -> None:
    """What the best arm loses when noise takes the place of its tokens, where something is moved; others, if tried."""
    name, moved = "best_arm_points_lost_to_noise", [c for c in conditions if c.name != PLAIN]
    whole_runs = {run: parts for run, parts in found.items() if len(parts) == len(conditions)}
    by_arm = {run.arm: [r for r in whole_runs if r.arm == run.arm] for run in whole_runs}
    able = {arm: own for arm, own in by_arm.items() if arm not in WITHOUT_TOKENS and len(own) >= SEEDS}
    if not able or not moved:
        rows.missing(name, f"no arm with generative tokens has {SEEDS} seeds with all runs")
        return
    best = max(able, key=lambda arm: percent([whole(whole_runs[run]) for run in able[arm]]))
    print(f"# the best arm with generative tokens is {best}", flush=True)
    lost: dict[str, ArmDifference] = {}
    for arm, condition in itertools.product(able, moved):
        look = runs.episodes if arm == best else runs.kept  # the best one's are run where they are missing
        pairs = [(look(run, condition, "noise"), whole_runs[run][condition]) for run in able[arm]]
        noisy = [one for one, _ in pairs if one is not None]
        if len(noisy) == len(pairs):
            gained = compare_arms(noisy, [other for _, other in pairs])
            difference(rows, f"{arm}_minus_noise_in_its_place_{condition.name}", gained)
            if arm == best:
                lost[condition.name] = gained
        elif arm == best:
            rows.missing(f"{name}_{condition.name}", f"{len(pairs) - len(noisy)} runs with noise in place")
    where_most(rows, name, list(lost.values()), moved)


def where_most(rows: Rows, name: str, lost: Sequence[ArmDifference], moved: Sequence[Condition]) -> None:
    """The row of the suite where the least that can have been lost is most, once all have been tried."""
    if moved and len(lost) == len(moved):
        rows.at_least(f"{name}_at_least_where_most", max(found.interval_95[0] for found in lost), CLEAR_OF_ZERO)


def shipped(rows: Rows, conditions: Sequence[Condition], runs: Evaluations) -> None:
    """What the shipped default loses when noise takes the place of its tokens, where something is moved.

    It is no arm of a study: it was trained for longer, and on more.
    """
    name, moved = "shipped_default_points_lost_to_noise", [c for c in conditions if c.name != PLAIN]
    default, lost = Trained(DEFAULT_POLICY, 0, find_checkpoint(DEFAULT_POLICY), {}), list[ArmDifference]()
    for condition in moved:
        own, noisy = (runs.episodes(default, condition, control) for control in ("on", "noise"))
        if own is None or noisy is None:
            rows.missing(f"{name}_{condition.name}", "there are no runs of it, leave --print-only out")
            continue
        lost.append(compare_arms([noisy], [own]))
        difference(rows, f"{name}_{condition.name}", lost[-1])
    where_most(rows, name, lost, moved)


def distilled(
    rows: Rows, folder: Path | None, found: Found, conditions: Sequence[Condition], runs: Evaluations
) -> None:
    """The small encoder in the place of the whole chain: what is solved, and how long a decision takes."""
    names = ("distilled_minus_full_chain_points", "distilled_act_times_faster")
    if folder is None or not (folder / DISTILLED_FILE).is_file():
        for name in names:
            rows.missing(name, "no policy of `python -m policies.training.distil` is given as --distilled")
        return
    teacher = said(folder / DISTILLED_FILE, "policy_sha256")
    live = [run for run in found if run.recorded is None]  # an act of the whole chain is timed
    full = next((run for run in live if run.record["checkpoint_sha256"] == teacher), None)
    if full is None:
        for name in names:
            rows.missing(name, "what it was distilled from is no run of this study")
        return
    small = Trained("distilled", full.seed, folder, full.record)
    parts = {condition: runs.episodes(small, condition) for condition in conditions}
    own = {condition: episodes for condition, episodes in parts.items() if episodes is not None}
    if len(own) < len(conditions) or len(found[full]) < len(conditions):
        rows.missing(names[0], f"{folder.name} or {full.name} lacks runs")
    elif not percent([whole(found[full])]):
        rows.missing(names[0], f"{full.name} solves nothing that could be lost")
    else:
        gained = compare_arms([whole(found[full])], [whole(own)])
        difference(rows, "distilled_minus_full_chain_one_seed", gained)
        rows.at_least(names[0], gained.difference, -POINTS)
    whole_ms, part_ms = act_medians_ms(str(full.folder))
    small_ms, small_part_ms = act_medians_ms(str(folder))
    for name, value in (("full_chain", whole_ms), ("distilled", small_ms)):
        rows.information(f"{name}_act_median_ms", value)
    rows.information("world_simulators_part_of_act_times_faster", part_ms / small_part_ms)
    rows.at_least(names[1], whole_ms / small_ms, FASTER)


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m benchmarks.prior", __doc__, paragraphs=2)
    parser.add_argument("--study", type=Path, help="folder of the study (default: outputs/study; none if --recorded)")
    parser.add_argument("--recorded", type=Path, nargs="+", default=[], help="records of other studies, to be joined")
    parser.add_argument("--record", type=Path, help="file to write, of what this study's runs have solved")
    parser.add_argument("--picture", type=Path, help="PNG file to draw, of what each arm and seed has solved")
    parser.add_argument("--suites", nargs="+", default=CONDITIONS, help="SUITE, or SUITE:KINDS with perturbed views")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each arm and seed, over all suites")
    parser.add_argument("--distilled", type=Path, help="checkpoint folder of policies.training.distil")
    parser.add_argument("--correspondence", type=Path, help="table that policies.correspondence wrote")
    parser.add_argument("--scored-as", default="world_simulator", help="the study's world simulator's name in it")
    parser.add_argument("--workers", type=int, default=2, help="processes; the results do not depend on it")
    parser.add_argument("--output", type=Path, help="folder of the runs (default: evaluations/ in the study's)")
    parser.add_argument("--repeat-arm", default=PRIOR, help="of the study's first seed, trained again for a while")
    parser.add_argument("--print-only", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args(argv)
    return judge(args)


def judge(args: argparse.Namespace) -> int:
    conditions = [Condition.read(text) for text in dict.fromkeys(args.suites)]
    trials, rest = divmod(args.episodes, TASKS * len(conditions))
    if rest or trials < 1:
        raise VegaError(
            f"{args.episodes} episodes cannot be shared by {len(conditions)} suites of {TASKS} tasks: give a multiple "
            f"of {TASKS * len(conditions)} as --episodes."
        )
    study = args.study or (None if args.recorded else Path("outputs/study"))
    own = [] if study is None else read_study(study)
    records = list(dict.fromkeys(args.recorded))
    trained = joined([*((path, recorded(path)) for path in records), *([(study, own)] if study else [])])
    for path in records:
        print(f"# {path}: as recorded, checkpoints not looked at", flush=True)
    if args.record is not None:
        if study is None:
            raise VegaError("--record keeps what a study has solved: give its folder as --study.")
        results_folder(args.record.parent, "--record")
    if args.picture is not None:
        results_folder(args.picture.parent, "--picture")
    # Before hours of episodes.
    readings = None if args.correspondence is None else read_table(args.correspondence, args.scored_as)
    output = args.output or (study or Path("outputs")) / "evaluations"
    runs = Evaluations(output, trials, args.workers, not args.print_only)
    if args.distilled is not None:
        if args.distilled.name in {run.name for run in trained}:
            raise VegaError(f"The folder {args.distilled} is named as a run of the study: rename it.")
        print(f"# distilled: {checkpoint_sha256(str(args.distilled))}", flush=True)
    rows = Rows()
    found = gather(rows, trained, conditions, runs)
    arms(rows, found, conditions)
    noise(rows, found, conditions, runs)
    shipped(rows, conditions, runs)
    correspondence(rows, readings, args.scored_as, found)
    distilled(rows, args.distilled, found, conditions, runs)
    repeat(rows, own, args.repeat_arm, run=not args.print_only)
    if args.record is not None:
        record(args.record, own, conditions, runs)
    if args.picture is not None:
        draw(args.picture, found, list(dict.fromkeys((*ARMS, *(run.arm for run in found)))), BASE, conditions, runs)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
