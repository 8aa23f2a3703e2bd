"""Train the arms of a study at equal budget: `python -m policies.training.study --data DATASET ... --output FOLDER`.

Every arm (policies/training/study/arms.py) begins at random weights and learns the same rows in the same order for the
same number of steps, with as many parameters.  Goes on after any end, a kill included, to the same numbers.  Writes a
checkpoint for each arm and seed below FOLDER/runs, FOLDER/study.json and FOLDER/study.png; `--plan` only says what
would be done and how long it takes.  `python -m benchmarks.prior --study FOLDER` evaluates them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from policies.files.command_line import command, command_parser, results_folder
from policies.files.processes import each_in_its_process
from policies.training import train_nano
from policies.training.nano.world_tokens import BLOCK, VARIANTS, CachedWorldTokens
from policies.training.study import page
from policies.training.study.arms import SEVEN, WINDOW
from policies.training.study.runs import Run, Study, claimed, records
from policies.types import VegaError

MEASURED = 4  # steps, for a plan; one more before them
LONGEST_MIN = 30.0  # of a run, where a study is to end


def work(study: Study, jobs: int) -> int:
    """Do runs that nobody does, until none is left; returns how many."""
    runs, done = study.runs, 0
    for number, run in enumerate(runs, 1):
        with claimed(run.folder) as ours:
            if not ours or run.record is not None:
                continue
            ahead = sum(other.record is None for other in runs[number:]) / jobs
            run.train(ahead, f"[{number}/{len(runs)}] {run.name}: ")
        done += 1
        page.write(study.output, runs)
        tell(study)
    return done


def tell(study: Study) -> None:
    found = records(study.runs)
    print(f"{len(found)} of {len(study.runs)} runs are finished: {study.output / page.SUMMARY}", flush=True)


def plan(study: Study, steps: int, batch: int, jobs: int) -> None:
    """Say what would be done, from what a few steps of each arm take: now, and of the processor's time.

    Pictures are decoded for it, and kept for the study; generative tokens are not computed.
    """
    missing = [run for run in study.runs if run.record is None]
    columns = ("parameters", "rows/s now", "with a core", "min a run", "min of tokens", "runs missing")
    print(f"{'arm':12}" + "".join(f"{column:>14}" for column in columns))
    total = 0.0
    for arm in study.arms:
        own = [run for run in missing if run.arm == arm]
        with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
            run = own[0] if own else Run(study, arm, study.seeds[0])
            size, rate, alone, tokens_s = measure(run, Path(folder))
        run_s = steps * batch / alone
        total += len(own) * run_s + tokens_s * bool(own)
        longer = f"  longer than {LONGEST_MIN:.0f} min: fewer --steps" if run_s > 60 * LONGEST_MIN else ""
        told = f"{arm:12}{size:14}{rate:14.0f}{alone:14.0f}{run_s / 60:14.1f}{tokens_s / 60:14.1f}{len(own):14}"
        print(told + longer, flush=True)
    hours = f"{total / 3600:.1f} h in all" + (f", {total / jobs / 3600:.1f} h with --jobs {jobs}" if jobs > 1 else "")
    print(f"{len(missing)} of {len(study.runs)} runs are missing, of {steps} steps each: {hours}, each with a core")


def measure(run: Run, folder: Path) -> tuple[int, float, float, float]:
    """Parameters; rows per second by the clock and by the processor's; seconds of processor for the tokens."""
    training = train_nano.open_training(train_nano.arguments(run.told(folder)), blank=True)
    training.optimise()
    begun, used = time.perf_counter(), time.process_time()
    for _ in range(MEASURED):
        training.optimise()
    took, used = time.perf_counter() - begun, (time.process_time() - used) / training.args.threads
    size = sum(p.numel() for p in training.learner.policy.parameters() if p.requires_grad)
    tokens_s, cached = 0.0, training.demos.world_tokens
    if isinstance(cached, CachedWorldTokens):
        before = time.process_time()
        cached.compute_block()
        tokens_s = (time.process_time() - before) / training.args.threads / BLOCK * len(training.demos) * VARIANTS
    rows = MEASURED * training.args.batch
    return size, rows / took, rows / used, tokens_s


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.study", __doc__, paragraphs=2)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LeRobot v3 datasets")
    parser.add_argument("--world-simulator", type=Path, required=True, help="folder of the prior")
    parser.add_argument("--output", type=Path, default=Path("outputs/study"), help="the study's folder")
    parser.add_argument("--arms", nargs="+", default=SEVEN, help="what enters the fusion; kN, blockN for a sweep")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and rows")
    parser.add_argument("--steps", type=int, default=3000, help="optimisation steps of each run")
    parser.add_argument("--batch", type=int, default=64, help="rows per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--hold-out", type=int, default=10, metavar="N", help="learn nothing from every N-th episode")
    parser.add_argument("--drop-semantic", type=float, default=0.2, metavar="P", help="see train_nano")
    parser.add_argument("--mask-patches", type=float, default=0.2, metavar="P", help="see train_nano")
    parser.add_argument("--language-teacher", action="store_true", help="see train_nano")
    parser.add_argument("--window", type=int, default=WINDOW, help="frames of the arm of that name, 1 + 4 n")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each")
    parser.add_argument("--plan", action="store_true", help="only say what would be done, and how long it takes")
    args = parser.parse_args(argv)
    study = study_of(args)
    results_folder(args.output)
    study.prepare(keep=not args.plan)
    if args.plan:
        plan(study, args.steps, args.batch, args.jobs)
        return 0
    if args.jobs == 1:
        work(study, 1)
    else:
        for _ in each_in_its_process(work, [(study, args.jobs)] * args.jobs, args.jobs):
            pass
    page.write(args.output, study.runs)
    tell(study)
    if len(records(study.runs)) < len(study.runs):
        raise VegaError(f"Another process still trains runs of {args.output}: wait for it, then run the command again.")
    return 0


def study_of(args: argparse.Namespace) -> Study:
    """What the options ask for."""
    if len(set(args.seeds)) < len(args.seeds):
        raise VegaError("A seed is given twice: give each of --seeds once.")
    words = [
        "--steps", args.steps, "--batch", args.batch, "--lr", args.lr, "--save-every", args.save_every, "--hold-out",
        args.hold_out, "--drop-semantic", args.drop_semantic, "--mask-patches", args.mask_patches,
    ]  # fmt: skip
    words += ["--language-teacher"] if args.language_teacher else []
    return Study(
        args.output, tuple(args.data), args.world_simulator, tuple(dict.fromkeys(args.arms)), tuple(args.seeds),
        tuple(map(str, words)), args.window, args.threads,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
