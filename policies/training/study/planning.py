"""What a study would do, and how long that takes here."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from policies.training import train_nano
from policies.training.nano.world_tokens import BLOCK, VARIANTS, CachedWorldTokens
from policies.training.study.runs import Run, Study

MEASURED = 4  # steps; one more before them
LONGEST_MIN = 30.0  # of a run, where a study is to end


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
