"""Puts the questions of a benchmark to a model, scene by scene; handed to every worker."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from policies.checkpoints import check_scene_model, checkpoint_sha256
from policies.spatial.models import GroundingModel, PosedModel, SpatialModel, load_spatial_model, nano_folder
from policies.types import VegaError
from sim.evaluation.spatial.benchmarks import GROUNDED, read_items
from sim.results.spatial.answers import AnswerRecord
from sim.results.spatial.frames import read_frames, read_poses
from sim.results.spatial.items import Answer, Grounding, Item, Scores, chosen, score

SHORT, LONG = 16, 512  # tokens of an answer: VSI-Bench's, and those of the benchmarks in words
NEEDS_BOXES = (
    "The model '{model}' points at no boxes, which {benchmark} asks for: choose one that has ground(prompt), or leave "
    "libero_space's out with --no-grounding."
)


@dataclass(frozen=True)
class SpatialSettings:
    """How questions are asked; see the options of the same names.

    grounding: whether it is asked for boxes.  poses: whether it is told where the cameras are.
    """

    benchmark: str
    data: Path
    model: str
    split: str | None = None
    frames: int = 32
    device: str = "cpu"
    threads: int = 1
    grounding: bool = True
    poses: bool = False
    world_simulator: str = "on"

    @property
    def unit(self) -> str:
        return "question"

    def build(self) -> Asker:
        model = load_spatial_model(self.model, self.device, self.threads, self.world_simulator)
        if self.poses and not isinstance(model, PosedModel):
            raise VegaError(f"The model '{self.model}' takes no poses: leave --poses out.")
        if not isinstance(model, GroundingModel) and any(item.part in GROUNDED for item in self.items.values()):
            raise VegaError(NEEDS_BOXES.format(model=self.model, benchmark=self.benchmark))
        return Asker(self, model)

    def run_trial(self, runner: Asker, task: int, trial: int) -> AnswerRecord:
        return runner.ask(task, trial)

    def lost(self, task: int, trial: int, error: str) -> AnswerRecord:
        return AnswerRecord(task, trial, self.items[task, trial].kind, "", error=error)

    @cached_property
    def items(self) -> dict[tuple[int, int], Item]:
        """By scene and question."""
        return {i.key: i for i in read_items(self.benchmark, self.data, self.split, self.grounding)}

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "items"}


def model_sha256(name: str) -> str:
    """Hash of a model's checkpoint, "" of a class of one's own.  Raises VegaError where there is none."""
    check_scene_model(name)
    folder = nano_folder(name)
    if folder is None and ":" in name:
        return ""
    if folder is None:
        from policies.files.weight_files import CHECKPOINT_FILES, resolve_folder  # torch, for those who need it

        folder = resolve_folder(name, CHECKPOINT_FILES)
    weights, rules = checkpoint_sha256(str(folder)), folder / "generation_config.json"
    if not rules.is_file():
        return weights
    return hashlib.sha256(weights.encode() + rules.read_bytes()).hexdigest()  # they decide what is answered


class Asker:
    """A model and the scene that it watches now."""

    def __init__(self, settings: SpatialSettings, model: SpatialModel) -> None:
        self.settings, self.model = settings, model
        self._watched: int | None = None

    def ask(self, task: int, trial: int) -> AnswerRecord:
        """One question; what the model refuses is an error of the record.  Raises VegaError without frames."""
        begun, item = time.monotonic(), self.settings.items[task, trial]
        if self._watched != task:
            self._watch(item.scene)
            self._watched = task
        asked = time.monotonic()
        words, error = "", ""
        boxes: list[tuple[float, ...]] = []
        scores: Scores = {}
        corrected: Scores = {}
        try:
            answer = self._answer(item)
            scores, corrected = score(item, answer)
            if isinstance(answer, Grounding):
                boxes = [tuple(round(float(value), 4) for value in box) for box in chosen(item, answer)]
            else:
                words = answer
        except VegaError as refused:
            error = str(refused)
        now = time.monotonic()
        return AnswerRecord(
            task, trial, item.kind, words, tuple(boxes), scores, corrected, error, round(now - begun, 3),
            round(1e3 * (now - asked), 2),
        )  # fmt: skip

    def _watch(self, scene: str) -> None:
        frames = read_frames(self.settings.data, scene, self.settings.frames)
        if isinstance(self.model, PosedModel) and self.settings.poses:
            poses = read_poses(self.settings.data, scene, self.settings.frames)
            if len(poses) != len(frames):
                raise VegaError(
                    f"Scene '{scene}' has {len(frames)} frames and {len(poses)} poses: film it again, or leave --poses "
                    "out."
                )
            self.model.watch_from(frames, poses)
        else:
            self.model.watch(frames)

    def _answer(self, item: Item) -> Answer:
        if item.part in GROUNDED:
            assert isinstance(self.model, GroundingModel)
            return Grounding(*self.model.ground(item.prompt))
        if not item.prompt:  # without a place there is nothing to describe: the reference leaves such captions empty
            return ""
        if item.part == "question":
            return self.model.answer(item.prompt, SHORT)  # as it was said: the reference looks before the first space
        return self.model.answer(item.prompt, LONG).strip()  # as the references of words and captions do

    def close(self) -> None:
        """Nothing is open."""
