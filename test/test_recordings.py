"""LeRobot datasets as training reads them: the numbers and pictures that the simulator's recorder put there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import BASE, CAMERAS, EVERY, SENTENCES, Scene, make_dataset

from policies.nano.policy import prepare_image, proprioception
from policies.nano.vocabulary import Vocabulary
from policies.training import dataset as training
from policies.training.dataset import Demonstrations
from policies.training.recordings import Recording, from_rotation_vector, multiply, rotate
from policies.training.wordings import paraphrase, vocabulary
from policies.types import VegaError

pytest.importorskip("pyarrow")
STEPS = 22
ROWS = -(-STEPS // EVERY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("recorded"), steps=STEPS)


@pytest.fixture(scope="module")
def demos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return Demonstrations([folder, folder], training.CAMERAS, tmp_path_factory.mktemp("cache"))


def test_the_arm_is_read_back_in_its_base_frame(folder: Path) -> None:
    position, quaternion, fingers = Recording(folder).arm()
    scene, row = Scene(1), ROWS + 2
    scene.now = 2 * EVERY
    state = scene.state()
    np.testing.assert_allclose(position[row], state.eef_position, atol=1e-6)
    np.testing.assert_allclose(fingers[row], state.gripper_positions, atol=1e-6)
    found = proprioception(position, quaternion, fingers)[row]
    wanted = proprioception(state.eef_position, state.eef_quaternion, state.gripper_positions)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_row_has_its_control_steps_and_a_chunk_goes_on_into_the_next_rows(demos: Demonstrations) -> None:
    scene = Scene(0)
    wanted = []
    for scene.now in range(STEPS):
        wanted.append(scene.action())
    for row in range(ROWS):
        steps = np.minimum(np.arange(row * EVERY, row * EVERY + 8), STEPS - 1)
        np.testing.assert_allclose(demos.data["actions"][row], np.array(wanted)[steps], atol=1e-6)
    # Two datasets one after the other; the second begins with the same episode.
    np.testing.assert_array_equal(demos.data["actions"][3 * ROWS], demos.data["actions"][0])
    assert len(demos) == 6 * ROWS and demos.episode.max() == 5


def test_what_the_teacher_says_is_in_pixels_and_metres_of_the_policy(demos: Demonstrations) -> None:
    np.testing.assert_allclose(demos.data["target"], np.tile([0.5, 0.0, 0.1], (len(demos), 1)), atol=1e-6)
    progress, before = demos.data["progress"][:ROWS], demos.data["before"][:ROWS]
    np.testing.assert_array_equal(progress, [0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(before, [0, 0, 0, 0, 1, 1])  # a decision is two rows apart
    _, points = demos.frames("agentview", np.arange(ROWS), np.random.default_rng(0), augment=False)
    np.testing.assert_allclose(points[0], (np.array([100, 60]) + 0.5) * 160 / 256 - 0.5)
    assert np.isnan(points[3:]).all() and not np.isnan(points[:3]).any()


def test_pictures_are_those_of_their_rows(folder: Path, demos: Demonstrations) -> None:
    index = np.array([0, ROWS + 3, 3 * ROWS + 5])
    for camera in CAMERAS:
        seen, _ = demos.frames(camera, index, np.random.default_rng(0), augment=False)
        for view, episode, step in zip(seen, (0, 1, 0), (0, 3 * EVERY, 5 * EVERY), strict=True):
            scene = Scene(episode)
            scene.now = step
            wanted = prepare_image(scene.render(camera), training.CAMERAS[camera], camera)
            assert np.abs(view.astype(float) - wanted).mean() < 6.0  # as much as H.264 takes


def test_shifted_pictures_take_their_points_along(demos: Demonstrations) -> None:
    index = np.zeros(40, dtype=np.int64)
    plain, at = demos.frames("wrist", index, np.random.default_rng(0), augment=False)
    views, points = demos.frames("wrist", index, np.random.default_rng(0), augment=True)
    moved = np.rint(at - points).astype(int)
    assert len(np.unique(moved, axis=0)) > 20 and np.abs(moved).max() == training.SHIFT
    for view, (dy, dx) in zip(views, moved, strict=True):
        np.testing.assert_array_equal(view[10:-10, 10:-10], plain[0][10 + dy : 86 + dy, 10 + dx : 86 + dx])


def test_a_dataset_of_others_has_no_labels_and_one_step_a_row(tmp_path: Path) -> None:
    plain = Demonstrations([make_dataset(tmp_path, 1, 9, labelled=False, every=1)], training.CAMERAS, tmp_path / "c")
    assert len(plain) == 9 and np.isnan(plain.data["target"]).all() and np.isnan(plain.data["pixel.wrist"]).all()
    scene = Scene(0)
    # The base frame is then the world's.
    np.testing.assert_allclose(plain.data["proprio"][0][:3], BASE + scene.state().eef_position, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"codebase_version": "v2.1"}, "convert it to v3.0"),
        ({"fps": 7}, "actions of 7 numbers at 20 Hz"),
        ({"features": {"observation.state": {"dtype": "float32", "names": ["joint"]}}}, "The state in"),
    ],
)
def test_datasets_of_another_kind_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], part: str
) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] |= change.pop("features", {})  # type: ignore[arg-type]
    for sub in ("data", "meta/tasks.parquet", "meta/episodes"):
        (tmp_path / sub).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / sub).symlink_to(folder / sub)
    (tmp_path / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(VegaError, match=part):
        Demonstrations([tmp_path], training.CAMERAS, tmp_path / "cache")


@given(st.tuples(*[st.floats(-3, 3)] * 3).map(np.array), st.tuples(*[st.floats(-3, 3)] * 3).map(np.array))
def test_quaternions_are_those_of_scipy(one: np.ndarray, other: np.ndarray) -> None:
    from scipy.spatial.transform import Rotation

    ours = multiply(from_rotation_vector(one[None]), from_rotation_vector(other[None]))
    theirs = Rotation.from_rotvec(one) * Rotation.from_rotvec(other)
    vector = np.array([[0.3, -0.2, 0.9]])
    np.testing.assert_allclose(rotate(ours, vector)[0], theirs.apply(vector[0]), atol=1e-9)


def test_wordings_keep_what_is_named_and_a_vocabulary_of_the_sentences_understands_all() -> None:
    words, things = vocabulary(SENTENCES)
    assert {"milk", "basket", "bowl", "stove", "top drawer", "cabinet"} <= set(things)
    assert vocabulary(["put the milk in the basket please"])[1] == ("basket", "milk")
    known, rng, named = Vocabulary(words, things), np.random.default_rng(0), set(" ".join(things).split())
    for sentence in SENTENCES:
        for _ in range(50):
            said = paraphrase(sentence, rng)
            assert {known.known[i - 1] for i in known.encode(said)} >= named & set(sentence.split())
    # Others' words for handling, never demonstrated; then a thing that is not there, by its name.
    known.encode("Could you carefully relocate the bowl onto the stove, please?")
    for sentence, name in (("put the banana on the stove", "banana"), ("take the red milk", "red")):
        with pytest.raises(VegaError, match=f"names '{name}'"):
            known.encode(sentence)
