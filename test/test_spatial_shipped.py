"""The shipped vega-nano-spatial, on films of libero_space that it was not trained on: alone, and over ROS."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scene_harness import scene_node
from scipy.spatial.transform import Rotation
from visualization_msgs.msg import Marker

from policies.checkpoints import find_checkpoint, load_scene_model, shipped_policies
from policies.spatial.live.memory import SceneMemory
from policies.spatial.models import GroundingModel, PosedModel, load_spatial_model, shipped_scene_models
from policies.spatial.nano.config import SpatialConfig
from policies.spatial.nano.pictures import fitted
from policies.spatial.scores import vsi
from policies.spatial.scores.boxes import overlap
from policies.types import Image, SceneAnswer, SceneObject, SceneView, VegaError
from sim.results.spatial.frames import read_frames
from vega3d_ros.ros import conversions

NAME = "vega-nano-spatial"
FILMS = Path(__file__).parent / "films"
SCENES = tuple(f"libero_kitchen/{path.stem}" for path in sorted(FILMS.glob("*/*.json")))


def film(scene: str) -> tuple[list[Image], dict[str, Any]]:
    return read_frames(FILMS, scene, 8), json.loads((FILMS / f"{scene}.json").read_text())


def test_it_answers_clearly_better_than_chance() -> None:
    """Means over three films; chance is a half, a third and a quarter for the three levels of direction."""
    model = load_spatial_model(NAME)
    scores: dict[str, list[float]] = defaultdict(list)
    for scene in SCENES:
        frames, content = film(scene)
        model.watch(frames)
        for row in content["questions"]:
            question = vsi.question_of(row)
            scores[question.kind].append(vsi.score(question, model.answer(question.prompt, 16)))
    directions = [value for kind in vsi.DIRECTIONS for value in scores[kind]]
    assert len(directions) >= 20 and np.mean(directions) >= 0.7, scores
    assert np.mean(scores["object_abs_distance"]) >= 0.45 and np.mean(scores["object_size_estimation"]) >= 0.6, scores


def test_a_hub_id_of_one_trained_here_is_downloaded_and_is_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, Any]] = []

    def download(name: str, allow_patterns: Any = None) -> str:
        asked.append((name, allow_patterns))
        return str(shipped_scene_models()[NAME])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    view = SceneView("film", 0, film(SCENES[0])[0][0])
    found, expected = (load_scene_model(name).see(view).sightings for name in ("someone/rooms", NAME))
    assert np.array_equal(found.score, expected.score)
    assert isinstance(load_spatial_model("someone/rooms", world_simulator="off"), GroundingModel)
    assert {name for name, _ in asked} == {"someone/rooms"} and all("*.safetensors" in kept for _, kept in asked)


def camera(across: float, down: float, middle: float = 160.0) -> np.ndarray:
    return np.array([[across, 0, middle], [0, down, 120.0], [0, 0, 1]])


@pytest.mark.parametrize(
    "intrinsics",
    [
        camera(0.9, 0.9),  # in shares of the picture
        camera(0.0, 0.0),
        camera(-230.0, -230.0),
        camera(230.0, np.nan),
        camera(230.0, np.inf),
        camera(230.0, 230.0, np.nan),
        camera(230.0, 1e5),
        camera(200.0, 13.0),  # pixels 15 times as high as wide
        camera(230.0, 230.0)[:2],
        np.zeros((3, 3)),
        np.eye(4),
        "230",
    ],
)
def test_intrinsics_that_no_camera_has_are_one_sentence(intrinsics: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "resize", lambda *_, **__: pytest.fail("a picture is made of it"))
    view = SceneView("front", 0, np.zeros((240, 320, 3), np.uint8), intrinsics=intrinsics)
    with pytest.raises(VegaError, match=r"intrinsics.*give") as caught:
        load_scene_model(NAME).see(view)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("across", "down"), [(230.0, 230.0), (17.0, 17.0), (460.0, 230.0), (20000.0, 20000.0)])
def test_intrinsics_of_any_camera_are_taken(across: float, down: float) -> None:
    view = SceneView("front", 0, film(SCENES[0])[0][0][:240, :320], intrinsics=camera(across, down))
    assert load_scene_model(NAME).see(view).picture.dtype == np.uint8


@pytest.mark.parametrize(("across", "down"), [(600.0, 600.0), (300.0, 600.0), (700.0, 175.0), (90.0, 360.0)])
def test_a_ball_is_round_whatever_the_shape_of_the_cameras_pixels(across: float, down: float) -> None:
    """As wide as high in what the encoder sees, to a pixel of the camera, and as large as with square pixels."""
    config = SpatialConfig.load(shipped_scene_models()[NAME])
    rows, columns = np.mgrid[:480, :640]
    ball = np.hypot((columns - 319.5) / across, (rows - 239.5) / down) < 0.15
    matrix = np.array([[across, 0, 320.0], [0, down, 240.0], [0, 0, 1]])
    seen = fitted(np.where(ball, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2), config, matrix)
    middle = seen[config.image_size[0] // 2, :, 0] > 191, seen[:, config.image_size[1] // 2, 0] > 191
    assert [int(line.sum()) for line in middle] == pytest.approx([0.3 * config.focal] * 2, abs=3)


@pytest.mark.parametrize("pose", [np.full((4, 4), np.nan), np.eye(3), np.diag([1, 1, 1, np.inf]), "here"])
def test_a_pose_that_is_none_is_one_sentence(pose: Any) -> None:
    view = SceneView("front", 0, film(SCENES[0])[0][0], camera_to_world=pose)
    with pytest.raises(VegaError, match=r"camera_to_world.*give"):
        load_scene_model(NAME).see(view)


def test_a_question_about_no_frame_is_one_sentence() -> None:
    model = load_scene_model(NAME)
    for ask in (model.answer, model.ground):
        with pytest.raises(VegaError, match="no frame to look at"):
            ask([], "how far is the milk from the basket?")


def test_boxes_lie_on_the_things_where_the_cameras_are_known() -> None:
    """ScanRefer's bound of a quarter, over all descriptions of three films, with and without the poses."""
    model = load_spatial_model(NAME)
    assert isinstance(model, PosedModel) and isinstance(model, GroundingModel)
    overlaps: dict[bool, list[float]] = defaultdict(list)
    for scene in SCENES:
        frames, content = film(scene)
        for posed in (True, False):
            if posed:
                model.watch_from(frames, [np.array(pose) for pose in content["camera_to_world"]])
            else:
                model.watch(frames)
            for row in content["scanrefer"]:
                found, scores = model.ground(row["conversations"][0]["value"])
                overlaps[posed].append(overlap(found[int(scores[:-1].argmax())], row["box"]))
    hits = {posed: np.mean(np.array(values) >= 0.25) for posed, values in overlaps.items()}
    assert len(overlaps[True]) >= 8 and hits[True] >= 0.6 and hits[True] >= hits[False], hits


def test_the_checkpoint_is_small_and_no_policy() -> None:
    folder = shipped_scene_models()[NAME]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 25e6
    assert NAME not in shipped_policies()
    with pytest.raises(VegaError, match="There is no policy 'vega-nano-spatial'"):
        find_checkpoint(NAME)
    with pytest.raises(VegaError, match="leave framing at auto"):
        load_scene_model(NAME, framing="official")


def test_the_same_frames_give_the_same_answers_whatever_came_between() -> None:
    frames, _ = film(SCENES[1])
    memory = SceneMemory(load_scene_model(NAME), 8)
    answers = []
    for _ in range(2):
        memory.forget()
        for stamp, frame in enumerate(frames):
            memory.see(SceneView("eye", stamp, frame))
        first = memory.answer("how far is the milk from the frying pan?")
        second = memory.answer("how tall is the milk?")
        assert isinstance(first.value, SceneAnswer) and isinstance(second.value, SceneAnswer)
        assert 0.0 < first.value.confidence <= 1.0
        answers.append((first.value, second.value))
        # A second question makes no new map.
        assert second.timings_ms["map"] < first.timings_ms["map"]
    assert answers[0] == answers[1]


def test_over_ros_it_answers_and_points_as_it_does_here() -> None:
    frames, content = film(SCENES[1])
    frames = frames[::3]  # each waits for a report of the node
    pose = np.array(content["camera_to_world"][0])
    with scene_node(NAME, scene__frames=3, cameras__eye__pose_topic="eye/pose") as (camera, _):
        camera.bring_up()
        turned = Rotation.from_matrix(pose[:3, :3]).as_quat()
        camera.pose.publish(conversions.pose_message(pose[:3, 3], turned, 0, "world"))
        camera.show(frames[0])
        assert camera.until(
            lambda: "pose" not in camera.ask("the milk", expression=True)["error"], again=lambda: camera.show(frames[0])
        )
        camera.client.trigger("scene_node/forget")
        for frame in frames:
            camera.show(frame)
        answer = camera.ask("how far is the milk from the frying pan?")
        memory = SceneMemory(load_scene_model(NAME), 3)
        for stamp, frame in enumerate(camera.used(answer)):
            memory.see(SceneView("eye", stamp, frame, camera_to_world=pose))
        value = memory.answer("how far is the milk from the frying pan?").value
        assert isinstance(value, SceneAnswer) and answer["error"] == ""
        assert (answer["answer"], answer["confidence"]) == (value.text, round(value.confidence, 4))
        pointed = camera.ask("the milk", expression=True)
        assert pointed["error"] == "", pointed
        there = memory.ground("the milk").value
        assert isinstance(there, SceneObject)
        assert pointed["object"]["centre"] == pytest.approx(there.centre.tolist(), abs=1e-6)
        height = pytest.approx(float(there.size[2]))
        assert camera.until(lambda: bool(camera.markers) and camera.markers[-1].scale.z == height)
        assert camera.markers[-1].action == Marker.ADD and camera.objects
        refused = camera.ask("how far is the banana from the milk?")["error"]
        assert refused.startswith("'banana' is nothing that this model was shown")
        assert "is no question that this model answers" in camera.ask("why is the sky blue?")["error"]
        assert camera.ask("how tall is the milk?")["error"] == "", "what was refused has ended nothing"
