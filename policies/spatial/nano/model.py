"""vega-nano-spatial as others use it: frames are encoded when they come, questions cost the map and the answer alone.

see ─► Sightings, kept by who asks ─► map of them, kept until another frame comes ─► answer, ground
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from policies.fusion.fused_policy import StageClock, read_weights, write_policy
from policies.fusion.sources import keep_inside
from policies.spatial.nano.answers import Answerer
from policies.spatial.nano.config import SpatialConfig
from policies.spatial.nano.network import CAMERA, Seen, SpatialNetwork
from policies.spatial.nano.nouns import Nouns
from policies.spatial.nano.pictures import finite_matrix, fitted
from policies.spatial.nano.placing import World, placed_map
from policies.spatial.nano.questions import read, read_expression
from policies.spatial.nano.scene_map import Found, SceneMap
from policies.spatial.nano.sightings import Sightings, sightings
from policies.types import FloatArray, Image, SceneAnswer, SceneObject, SceneView, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator

TEMPERATURE, ENOUGH = 0.07, 0.4  # with which Multi3DRefer's scores are read, see policies/spatial/scores/boxes.py


def build_network(config: SpatialConfig, simulator: LatentWorldSimulator) -> SpatialNetwork:
    """With random weights.  Raises VegaError."""
    return SpatialNetwork(config, len(Nouns(config.things)), simulator)


def save_network(network: SpatialNetwork, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and the world simulator's folder, all of it inside."""
    kept = keep_inside(network.world.simulator, network.config.world_simulator, folder)
    write_policy(folder, replace(network.config, world_simulator=kept), network.state_dict())


def load_network(folder: Path, device: torch.device | str = "cpu") -> SpatialNetwork:
    """Raises VegaError on a missing or corrupt file."""
    config = SpatialConfig.load(folder)
    source = folder / config.world_simulator
    if not source.is_dir():
        raise VegaError(f"The checkpoint {folder} has no folder {config.world_simulator}/: get the checkpoint again.")
    simulator = LatentWorldSimulator.from_pretrained(source, device=device, dtype=torch.float32)
    network = build_network(config, simulator)
    read_weights(network, folder, "model")
    return network.to(device).eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Frame:
    """What is kept of a view.  camera_to_world: (4, 4), where it is known.  picture: as the encoder got it."""

    sightings: Sightings
    camera_to_world: FloatArray | None
    picture: NDArray[np.uint8]


class NanoScene:
    """A `policies.types.SceneModel`.  Boxes lie in the world frame where the views' poses are known in it, else in the
    map's own: its origin in the middle of the surface on which things stand, z up."""

    grounds = True

    def __init__(self, network: SpatialNetwork) -> None:
        self.network, self.config = network, network.config
        self.nouns = Nouns(self.config.things)
        self.timings_ms: Mapping[str, float] = {}
        device = next(network.parameters()).device
        with torch.inference_mode():
            self._queries = network.queries(self.nouns.ids().to(device))
        self._device = device
        self._of: list[Frame] = []
        self._world: World | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def about(self) -> str:
        """In one sentence."""
        looks = "looks through its small world simulator" if self.config.world_control == "on" else "has a closed gate"
        return f"{self.name} {looks} and knows {len(self.config.things)} kinds of things."

    @torch.inference_mode()
    def see(self, view: SceneView) -> Frame:
        pose = None if view.camera_to_world is None else finite_matrix(view.camera_to_world, 4)
        if pose is None and view.camera_to_world is not None:
            raise VegaError(
                f"The camera_to_world of camera '{view.camera}' is no (4, 4) matrix of finite numbers: give the pose "
                "of its optical frame, or none."
            )
        clock = StageClock(self._device, True)
        picture = fitted(view.image, self.config, view.intrinsics)
        frames = torch.from_numpy(np.ascontiguousarray(picture))[None].to(self._device)
        clock.lap("preprocess")
        both = torch.cat([frames, frames.flip(2)]) if self.config.mirrored else frames
        f_gen, _ = self.network.world.look({CAMERA: both[:, None]})
        clock.lap("world_simulator")
        seen = self.network(both.permute(0, 3, 1, 2).float() / 127.5 - 1.0, f_gen)
        if self.config.mirrored:
            parts = Seen(*(part[:1] for part in seen)), self.network.unmirrored(Seen(*(part[1:] for part in seen)))
            seen = Seen(*((a + b) / 2 for a, b in zip(*parts, strict=True)))
        clock.lap("network")
        found = sightings(self.network, seen, self._queries)[0]
        clock.lap("sightings")
        self.timings_ms = clock.laps
        return Frame(found, pose, picture)

    def answer(self, seen: Sequence[Frame], question: str) -> SceneAnswer:
        asked = read(question)
        clock = StageClock(self._device, True)
        world = self._map(seen)
        clock.lap("map")
        answer = SceneAnswer(*Answerer(world.scene, self.nouns, self.config.score).answer(asked))
        clock.lap("answer")
        self.timings_ms = clock.laps
        return answer

    def ground(self, seen: Sequence[Frame], expression: str) -> SceneObject | None:
        clock = StageClock(self._device, True)
        world = self._map(seen)
        clock.lap("map")
        found = Answerer(world.scene, self.nouns, self.config.score).means(expression)
        clock.lap("answer")
        self.timings_ms = clock.laps
        if not found or found[0][0].score < self.config.score:
            return None
        thing, score = max(found, key=lambda pair: pair[1])
        box = world.box(thing)
        return SceneObject(box[:3], box[3:], min(score, 1.0))

    def things(self, seen: Sequence[Frame]) -> list[tuple[str, Found]]:
        """Everything on the map that counts as there, with its name, strongest first."""
        return [(self.nouns.things[t.kind], t) for t in self.scene_map(seen).things
                if t.score >= self.config.score]  # fmt: skip

    def scene_map(self, seen: Sequence[Frame]) -> SceneMap:
        """Of these frames, in its own frame."""
        return self._map(seen).scene

    def boxes(self, seen: Sequence[Frame], expression: str) -> tuple[FloatArray, FloatArray]:
        """Boxes that may be meant, (M, 6), and scores (M + 1,), "no such thing" last, as Multi3DRefer reads them."""
        world = self._map(seen)
        found = Answerer(world.scene, self.nouns, self.config.score).means(expression)
        if not read_expression(expression)[1]:
            scores = [score for _, score in found]
            return _stacked([world.box(thing) for thing, _ in found]), np.array([*scores, self.config.score])
        meant = [thing for thing, score in found if score >= self.config.score]
        others = [thing for thing in world.scene.things if thing not in meant]
        shares = _shares(len(meant), len(others))
        return _stacked([world.box(thing) for thing in (*meant, *others)]), TEMPERATURE * np.log(shares)

    def forget(self) -> None:
        self._of, self._world = [], None

    def _map(self, seen: Sequence[Frame]) -> World:
        """Of these frames; made again where they are others than the last time.  Raises VegaError for none."""
        if not seen:
            raise VegaError("There is no frame to look at yet: wait for the camera.")
        known = len(seen) == len(self._of) and all(a is b for a, b in zip(seen, self._of, strict=True))
        if self._world is None or not known:
            poses = [frame.camera_to_world for frame in seen]
            self._world = placed_map([frame.sightings for frame in seen], poses, self.config.focal)
            self._of = list(seen)
        return self._world


def _stacked(boxes: list[FloatArray]) -> FloatArray:
    return np.stack(boxes) if boxes else np.zeros((0, 6))


def _shares(meant: int, others: int) -> FloatArray:
    """Of the softmax from which boxes are taken until `ENOUGH` is reached: the first `meant` are, and no others."""
    if meant == 0:
        each, first = 0.4 / max(others, 1), 0.0
    elif meant == 1:
        each, first = 0.1 / (others + 1), 0.9
    else:
        first = 0.97 * ENOUGH / (meant - 1)
        each = max(1.0 - meant * first, 0.0) / (others + 1)
    none = 0.6 if meant == 0 else each
    return np.array([*[first] * meant, *[max(each, 1e-9)] * others, max(none, 1e-9)])


class NanoWatching:
    """The same for `sim/run_spatial.py`: a GroundingModel and PosedModel of `policies.spatial.models`."""

    def __init__(self, scene: NanoScene) -> None:
        self.scene = scene
        self._seen: list[Frame] = []

    def watch(self, frames: Sequence[Image]) -> None:
        self._watch(frames, [None] * len(frames))

    def watch_from(self, frames: Sequence[Image], poses: Sequence[FloatArray]) -> None:
        self._watch(frames, poses)

    def _watch(self, frames: Sequence[Image], poses: Sequence[FloatArray | None]) -> None:
        self.scene.forget()
        views = [
            SceneView("film", i, frame, camera_to_world=pose)
            for i, (frame, pose) in enumerate(zip(frames, poses, strict=True))
        ]
        self._seen = [self.scene.see(view) for view in views]

    def answer(self, prompt: str, max_tokens: int) -> str:
        return self.scene.answer(self._frames(), prompt).text

    def ground(self, prompt: str) -> tuple[FloatArray, FloatArray]:
        return self.scene.boxes(self._frames(), prompt)

    def _frames(self) -> list[Frame]:
        if not self._seen:
            raise VegaError("There is no frame to look at: watch some first.")
        return self._seen


def load_scene(folder: Path, device: torch.device | str = "cpu", world_simulator: str = "on") -> NanoScene:
    """From a checkpoint folder.  world_simulator: what stands in for its tokens, one of WORLD_CONTROLS.

    Raises VegaError, too where the checkpoint's gate is closed to them.
    """
    network = load_network(folder, device)
    if world_simulator != "on":
        if network.world.control != "on":
            raise VegaError(f"The gate of {folder} is closed to its world simulator: leave --world-simulator at on.")
        network.world.control = world_simulator
    return NanoScene(network)
