"""One of the processes that train the runs of a study."""

from __future__ import annotations

from policies.training.study import page
from policies.training.study.runs import Study, claimed, records


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
