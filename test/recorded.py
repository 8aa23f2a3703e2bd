"""A small LeRobot v3 dataset as the simulator's recorder writes it, of scenes that need no simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from policies.types import RobotState
from sim.demonstrations.labels import COLUMNS
from sim.results.lerobot_dataset import EEF_ACTION_NAMES, EpisodeTape, tape_path, write_dataset

CAMERAS = ("agentview", "wrist")
SIZE = 256
EVERY = 4
BASE = np.array([-0.5, 0.1, 0.9])
SENTENCES = (
    "pick up the milk and place it in the basket",
    "put the bowl on the stove",
    "open the top drawer of the cabinet",
)


class Scene:
    """An environment whose pictures, arm and labels follow from the episode and the step."""

    suite, task, max_steps, control_period_s = "s", 0, 99, 0.05
    cameras = CAMERAS
    base_position, base_quaternion = BASE, np.array([0.0, 0.0, 0.0, 1.0])

    def __init__(self, episode: int) -> None:
        self.instruction, self.episode, self.now = SENTENCES[episode % len(SENTENCES)], episode, 0
        rng = np.random.default_rng(episode)
        blocks = rng.integers(30, 225, (2, 8, 8, 3))
        self._pictures = np.kron(blocks, np.ones((1, SIZE // 8, SIZE // 8, 1))).astype(np.uint8)

    def render(self, camera: str) -> Any:
        return np.roll(self._pictures[CAMERAS.index(camera)], 8 * self.now, axis=1)

    def state(self) -> RobotState:
        position = np.array([0.4, 0.01 * self.episode, 0.3 - 0.01 * self.now])
        turned = 0.1 * self.now
        quaternion = np.array([np.cos(turned / 2), np.sin(turned / 2), 0.0, 0.0])
        return RobotState(self.now, (), np.zeros(7), np.zeros(7), np.array([0.03, 0.02]), position, quaternion)

    def action(self) -> Any:
        return np.array([*np.sin(self.now + np.arange(6)), 1.0 if self.now > 5 else -1.0])

    def labels(self) -> dict[str, Any]:
        pixel = np.array([100.0 + self.now, 60.0]) if self.now < 12 else np.full(2, -1.0)
        return {
            "teacher.point": BASE + np.array([0.5, 0.0, 0.1]),
            "teacher.progress": np.array([float(self.now >= 8)]),
            **{f"teacher.pixel.{camera}": pixel for camera in CAMERAS},
        }


def make_dataset(
    folder: Path, episodes: int = 3, steps: int = 22, labelled: bool = True, every: int = EVERY, placed: bool = True
) -> Path:
    """The dataset in `folder`: rows of `every` control steps, the last of an episode filled up.

    labelled: with what the teacher knows.  placed: with the base's place, as nobody but this package records it.
    """
    paths = []
    for episode in range(episodes):
        scene = Scene(episode)
        tape = EpisodeTape(
            scene, EEF_ACTION_NAMES, every=every, columns=COLUMNS if labelled else {}  # type: ignore[arg-type]
        )  # fmt: skip
        for step in range(steps):
            scene.now = step
            tape.step(scene.action(), {}, scene.labels() if labelled and tape.begins_row else {})
        paths.append(tape_path(folder / "tapes", 0, episode))
        tape.keep(paths[-1], success=True)
        if not placed:
            take_place_away(paths[-1])
    write_dataset(paths, folder / "set")
    return folder / "set"


def take_place_away(tape: Path) -> None:
    """Make a tape as `run_libero --record` wrote it before 2026-12: nothing says where the base stands."""
    with np.load(tape) as whole:
        kept = {key: value for key, value in whole.items() if not key.endswith("robot.base")}
    np.savez(tape, **kept)
