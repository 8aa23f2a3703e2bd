"""The runs of a study: which there are, what each is told, and who of several processes does the next.

A seed's arms come one after the other, so that whatever ends a study leaves whole blocks to compare.  Any number of
processes may work on a study's folder; a run is claimed by a lock, which ends with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from policies.checkpoints import checkpoint_sha256
from policies.files.json_config import read_json
from policies.files.made_once import write_whole
from policies.fusion.imagenet import ImageNetEncoder
from policies.training import train_nano
from policies.training.curves import LOG, read_log
from policies.training.recordings import Recording
from policies.training.study.arms import arm_named, simulator_of
from policies.types import VegaError

OPTIONS_FILE, RUN_FILE = "options.json", "run.json"
# The study whose numbers are published learned so, and more runs of it are to be comparable: no arm remembers anything,
# and held-out episodes are among those by which proprioception is normalised.
AS_PUBLISHED = ("--progress-loss", "l1", "--normalise", "all")


@dataclass(frozen=True)
class Study:
    """output: its folder.  options: all that decides its numbers, seeds and arms aside; kept in the folder."""

    output: Path
    data: tuple[Path, ...]
    simulator: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    words: tuple[str, ...]
    window: int
    threads: int = 1

    @cached_property
    def options(self) -> dict[str, Any]:
        return {
            "data_sha256": [data_sha256(folder) for folder in self.data],
            "world_simulator_sha256": checkpoint_sha256(str(self.simulator)),
            "words": list(self.words),
            "window": self.window,
        }

    def prepare(self, keep: bool) -> None:
        """Make the arms' world simulators, and keep what decides the numbers, unless something is wrong with it.

        Raises VegaError where the folder has a study of other ones, or a package is missing that an arm needs.
        """
        if not self.simulator.is_dir():
            raise VegaError(f"There is no world simulator in {self.simulator}: give its folder as --world-simulator.")
        if any(arm_named(arm).tokens == "imagenet" for arm in self.arms):
            ImageNetEncoder.from_package()  # before hours of other arms
        path = self.output / OPTIONS_FILE
        if path.is_file():
            before = read_json(path)
            other = [name for name, value in self.options.items() if before.get(name) != value]
            if other:
                raise VegaError(
                    f"The study in {self.output} has another {other[0]} ({before.get(other[0])}, now "
                    f"{self.options[other[0]]}): go on with the same, or give another --output."
                )
        told = [train_nano.arguments(run.told()) for run in self.runs]
        for args in told:
            train_nano.check(args)
        for folder in self.data if told else ():
            Recording(folder).base(told[0].base)
        if keep and not path.is_file():
            write_whole(path, json.dumps(self.options, indent=1) + "\n")

    def simulator_of(self, arm: str) -> Path:
        given = self.options["world_simulator_sha256"][:12]  # a plan may have been made with another one
        folder = self.output / "simulators" / given
        return simulator_of(arm_named(arm, self.window), self.simulator, folder, self.data)

    @property
    def runs(self) -> list[Run]:
        return [Run(self, arm, seed) for seed in self.seeds for arm in self.arms]


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    study: Study
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The checkpoint's."""
        return self.study.output / "runs" / self.name

    @property
    def record(self) -> Mapping[str, Any] | None:
        """What is told about it, None until it is finished."""
        path = self.folder / RUN_FILE
        return read_json(path) if path.is_file() else None

    def told(self, output: Path | None = None) -> list[str]:
        """The words of `train_nano`.  output: in place of the run's own folder."""
        study = self.study
        data = [str(folder.resolve()) for folder in study.data]
        simulator, cache = study.simulator_of(self.arm).resolve(), (study.output / "cache").resolve()
        return [
            "--data", *data, "--output", str(output or self.folder), "--name", self.name,
            "--world-simulator", str(simulator), "--tokens", arm_named(self.arm).tokens, "--cache", str(cache),
            "--seed", str(self.seed), "--threads", str(study.threads), *AS_PUBLISHED, *study.words,
        ]  # fmt: skip

    def train(self, ahead: float, label: str) -> None:
        """To the end, from wherever it was; then write what is told about it."""
        state = self.folder / train_nano.STATE_FILE
        aside = state.with_suffix(".aside")
        if aside.exists():
            aside.rename(state)
        training = train_nano.open_training(train_nano.arguments(self.told()))
        training.ahead, training.label = ahead, label
        training.run()
        last = read_log(self.folder / LOG)[-1]
        policy = training.average.policy
        state.rename(aside)  # no part of the checkpoint, and it holds times
        record = {
            "arm": self.arm,
            "seed": self.seed,
            "words": self.told(),
            "parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
            "steps": training.step,
            "seconds": last["seconds"],
            "train": last["train"],
            "held_out": last.get("held_out", {}),
            "checkpoint_sha256": checkpoint_sha256(str(self.folder)),
            "data_sha256": self.study.options["data_sha256"],
        }
        write_whole(self.folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
        aside.unlink()


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours for now; false where another process works there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claimed").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def data_sha256(folder: Path) -> str:
    """Hash of a LeRobot dataset: numbers, sentences and videos.  Raises VegaError where there is none."""
    found = sorted(path for part in ("meta", "data", "videos") for path in (folder / part).rglob("*") if path.is_file())
    if not found:
        raise VegaError(f"There is no LeRobot dataset in {folder}: give its folder as --data.")
    digest = hashlib.sha256()
    for path in found:
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while piece := file.read(2**24):
                digest.update(piece)
    return digest.hexdigest()


def records(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """Of the runs that are finished."""
    return [record for run in runs if (record := run.record) is not None]
