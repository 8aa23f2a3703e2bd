"""Train the arms of a study at equal budget: `python -m policies.training.study --data DATASET ... --output FOLDER`.

Every arm (policies/training/study/arms.py) begins at random weights and learns the same rows in the same order for the
same number of steps, with as many parameters.  Goes on after any end, a kill included, to the same numbers.  Writes a
checkpoint for each arm and seed below FOLDER/runs, FOLDER/study.json and FOLDER/study.png; `--plan` only says what
would be done and how long it takes.  `python -m benchmarks.prior --study FOLDER` evaluates them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from policies.files.command_line import (
    MOST_SEED,
    add_threads,
    command,
    command_parser,
    positive,
    results_folder,
    whole,
)
from policies.files.processes import each_in_its_process
from policies.training import train_nano
from policies.training.study import page
from policies.training.study.arms import SEVEN, WINDOW
from policies.training.study.planning import plan
from policies.training.study.runs import Study, records
from policies.training.study.working import tell, work
from policies.types import VegaError


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.study", __doc__, paragraphs=2)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LeRobot v3 datasets")
    parser.add_argument("--world-simulator", type=Path, required=True, help="folder of the prior")
    parser.add_argument("--output", type=Path, default=Path("outputs/study"), help="the study's folder")
    parser.add_argument("--arms", nargs="+", default=SEVEN, help="what enters the fusion; kN, blockN for a sweep")
    seed = whole("--seeds", 0, MOST_SEED)
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of weights and rows")
    parser.add_argument("--steps", type=int, default=3000, help="optimisation steps of each run")
    parser.add_argument("--batch", type=int, default=64, help="rows per step")
    parser.add_argument("--lr", type=positive("--lr"), default=1e-3, help="peak learning rate")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--hold-out", type=int, default=10, metavar="N", help="learn nothing from every N-th episode")
    parser.add_argument("--drop-semantic", type=float, default=0.2, metavar="P", help="see train_nano")
    parser.add_argument("--mask-patches", type=float, default=0.2, metavar="P", help="see train_nano")
    parser.add_argument("--language-teacher", action="store_true", help="see train_nano")
    train_nano.add_base(parser)
    parser.add_argument("--window", type=int, default=WINDOW, help="frames of the arm of that name, 1 + 4 n")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="runs at the same time")
    add_threads(parser, "torch threads of each")
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
    # Without exponents, whose minus sign argparse takes for an option's.
    words += ["--base", *(np.format_float_positional(value, trim="0") for value in args.base)] if args.base else []
    return Study(
        args.output, tuple(args.data), args.world_simulator, tuple(dict.fromkeys(args.arms)), tuple(args.seeds),
        tuple(map(str, words)), args.window, args.threads,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
