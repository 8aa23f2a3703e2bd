"""LeRobot datasets as training reads them: the numbers and pictures that the simulator's recorder put there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import BASE, CAMERAS, EVERY, SENTENCES, Scene, make_dataset

from policies.nano.policy import prepare_image, proprioception
from policies.nano.vocabulary import Vocabulary
from policies.training import dataset as training
from policies.training import recordings
from policies.training.dataset import Demonstrations
from policies.training.recordings import Recording, from_rotation_vector, multiply, rotate
from policies.training.wordings import paraphrase, vocabulary
from policies.types import Image, VegaError
from sim.results.video import write_video

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
STEPS = 22
ROWS = -(-STEPS // EVERY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("recorded"), steps=STEPS)


@pytest.fixture(scope="module")
def demos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return Demonstrations([folder, folder], training.CAMERAS, tmp_path_factory.mktemp("cache"))


def test_the_arm_is_read_back_in_its_base_frame(folder: Path) -> None:
    recording = Recording(folder)
    position, quaternion, fingers = recording.arm(recording.base())
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
    data = make_dataset(tmp_path, 1, 9, labelled=False, every=1)
    plain = Demonstrations([data], training.CAMERAS, tmp_path / "c")
    assert len(plain) == 9 and np.isnan(plain.data["target"]).all() and np.isnan(plain.data["pixel.wrist"]).all()
    assert np.isnan(plain.data["progress"]).all() and not plain.data["before"].any()
    scene = Scene(0)
    np.testing.assert_allclose(plain.data["proprio"][0][:3], scene.state().eef_position, atol=1e-6)


def test_what_the_teacher_heads_for_turns_with_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a metre along the world's x lies on the right of a base that is turned to the left."""
    monkeypatch.setattr(Scene, "base_quaternion", np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]))
    turned = Demonstrations([make_dataset(tmp_path, 1)], training.CAMERAS, tmp_path / "cache")
    np.testing.assert_allclose(turned.data["target"], np.tile([0.0, -0.5, 0.1], (len(turned), 1)), atol=1e-6)


def test_where_the_base_stands_is_known_or_has_to_be_said(folder: Path, tmp_path: Path) -> None:
    """At run time a policy is told of its arm in the base frame: what it learned in the world's means another pose."""
    bare, cache = make_dataset(tmp_path, placed=False), tmp_path / "cache"
    with pytest.raises(VegaError, match=r"does not say where .* base stands.*--base X Y Z"):
        Demonstrations([folder, bare], training.CAMERAS, cache)
    assert not cache.exists(), "it took its time with the pictures first"
    both = Demonstrations([folder, bare], training.CAMERAS, cache, base=tuple(BASE))
    assert both.told_base
    for name in ("proprio", "target"):
        own, given = np.split(both.data[name], 2)
        np.testing.assert_allclose(own, given, atol=1e-6)
    elsewhere = Demonstrations([folder], training.CAMERAS, cache, base=(9.0, 9.0, 9.0))
    assert not elsewhere.told_base  # what a dataset says itself holds
    np.testing.assert_array_equal(elsewhere.data["proprio"], both.data["proprio"][: len(elsewhere)])


def telling_of(*cameras: str) -> Callable[[dict[str, Any]], Any]:
    def other(info: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in info["features"].items() if not name.startswith("observation.images.")}
        video = info["features"]["observation.images.wrist"]
        return info | {"features": kept | {f"observation.images.{camera}": video for camera in cameras}}

    return other


def test_cameras_that_the_policy_has_not_may_be_in_some_datasets(folder: Path, tmp_path: Path) -> None:
    more = altered(folder, tmp_path / "more", telling_of(*CAMERAS, "overhead"))
    for folders in ([more, folder], [folder, more]):
        both = Demonstrations(folders, training.CAMERAS, tmp_path / "cache")
        assert {name for name in both.data if name.startswith("pixel.")} == {f"pixel.{name}" for name in CAMERAS}
        np.testing.assert_array_equal(both.data["pixel.wrist"][: 3 * ROWS], both.data["pixel.wrist"][3 * ROWS :])
    less = altered(folder, tmp_path / "less", telling_of("agentview"))
    for folders in ([less, folder], [folder, less]):
        with pytest.raises(VegaError, match="no camera 'wrist'"):
            Demonstrations(folders, training.CAMERAS, tmp_path / "cache")


def test_episodes_that_failed_are_in_neither_part(folder: Path, tmp_path: Path) -> None:
    """`run_libero --record` keeps them too.  Which episodes are held out stays as it was."""

    def lost(*episodes: int) -> Callable[[pa.Table], pa.Table]:
        return lambda table: with_column(
            table, "next.success", lambda rows: [won and row // ROWS not in episodes for row, won in enumerate(rows)]
        )

    one = altered(folder, tmp_path / "one", data=lost(1))
    demos = Demonstrations([folder, one], training.CAMERAS, tmp_path / "cache")
    learned, held = demos.split(3)
    assert np.unique(demos.episode[learned]).tolist() == [0, 1, 3] and np.unique(demos.episode[held]).tolist() == [2, 5]
    assert demos.left_out == 1 and len(demos) == 6 * ROWS
    none = altered(folder, tmp_path / "none", data=lambda table: table.drop_columns(["next.success"]))
    assert Demonstrations([none], training.CAMERAS, tmp_path / "cache").left_out == 0
    with pytest.raises(VegaError, match=r"No episode .* ended in success"):
        Demonstrations([altered(folder, tmp_path / "all", data=lost(0, 1, 2))], training.CAMERAS, tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"codebase_version": "v2.1"}, "convert it to v3.0"),
        ({"fps": 7}, "actions of 7 numbers at 20 Hz"),
        ({"features": {"observation.state": {"dtype": "float32", "names": ["joint"]}}}, "The state in"),
        ({"features": {"action": {"dtype": "float32", "names": ["joint_velocity"]}}}, "The actions in"),
    ],
)
def test_datasets_of_another_kind_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    def other(info: dict[str, Any]) -> dict[str, Any]:
        info["features"] |= change.pop("features", {})
        return info | change

    with pytest.raises(VegaError, match=part):
        Demonstrations([altered(folder, tmp_path, other)], training.CAMERAS, tmp_path / "cache")


TABLES = {
    "data": "data/chunk-000/file-000.parquet",
    "episodes": "meta/episodes/chunk-000/file-000.parquet",
    "tasks": "meta/tasks.parquet",
}


def altered(
    folder: Path, target: Path, info: Callable[[dict[str, Any]], Any] = dict, **tables: Callable[[pa.Table], pa.Table]
) -> Path:
    """The dataset with another meta/info.json and other tables; videos are linked."""
    for name, path in TABLES.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(tables.get(name, lambda table: table)(pq.read_table(folder / path)), target / path)
    (target / "videos").symlink_to(folder / "videos")
    (target / "meta/info.json").write_text(json.dumps(info(json.loads((folder / "meta/info.json").read_text()))))
    return target


def with_column(table: pa.Table, name: str, change: Callable[[list[Any]], list[Any]]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(change(table[name].to_pylist())))


def third(value: Any) -> Callable[[list[Any]], list[Any]]:
    """Another row 2 of a column of lists."""
    return lambda rows: [*rows[:2], value and [value, *rows[2][1:]], *rows[3:]]


def motors(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The numbers of the state are named as LeRobot's robots have it."""
    state = {"dtype": "float32", "shape": [len(names)], "names": {"motors": list(names)}}
    return lambda info: info | {"features": info["features"] | {"observation.state": state}}


def still(info: dict[str, Any]) -> dict[str, Any]:
    """Pictures lie in the tables, one by one."""
    features = {key: f | {"dtype": f["dtype"].replace("video", "image")} for key, f in info["features"].items()}
    return info | {"features": features}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"info": lambda info: []}, "There is no LeRobot dataset"),
        ({"info": lambda info: {k: v for k, v in info.items() if k != "features"}}, "'features' is missing"),
        ({"info": lambda info: info | {"fps": 0}}, "has 0 rows a second"),
        ({"info": lambda info: info | {"video_path": None}}, "does not say where the videos of 'agentview' are"),
        ({"info": still}, "keeps the pictures of 'agentview' one by one"),
        ({"info": motors("j1", "j2")}, "is j1, j2: give x, y"),
        ({"data": lambda t: with_column(t, "observation.state", lambda rows: [[*r, 0.0] for r in rows])}, "9 numbers"),
        ({"data": lambda t: with_column(t, "action", third(float("nan")))}, "number in 1 rows, the first row 2"),
        ({"data": lambda t: with_column(t, "action", third(None))}, "as many numbers in 'action'"),
        ({"data": lambda t: t.drop_columns(["action"])}, "has no column 'action'"),
        ({"data": lambda t: t.slice(0, 0), "episodes": lambda t: t.slice(0, 0)}, "has no episodes"),
        ({"data": lambda t: t.slice(0, len(t) - 2)}, "is not whole"),
        ({"data": lambda t: t.take(list(range(len(t)))[::-1])}, "is not whole"),
        ({"episodes": lambda t: t.slice(1)}, "is not whole"),
        ({"episodes": lambda t: t.slice(0, 2)}, "is not whole"),
        ({"tasks": lambda t: t.slice(0, 1)}, "what is asked in task 1"),
        ({"tasks": lambda t: with_column(t, "task", lambda rows: [""] * len(rows))}, "what is asked in task 0"),
        ({"tasks": lambda t: t.drop_columns(["task"])}, "'task' is missing"),
    ],
)
def test_a_dataset_that_is_not_whole_or_of_other_numbers_is_one_sentence(
    folder: Path, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    with pytest.raises(VegaError, match=part) as told:
        Demonstrations([altered(folder, tmp_path / "set", **change)], training.CAMERAS, tmp_path / "cache")
    assert "\n" not in str(told.value)


def test_a_dataset_of_version_2_is_told_its_version_though_its_files_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(VegaError, match=r"has version v2\.1: convert it"):
        Recording(tmp_path)


def test_what_other_versions_of_lerobot_write_is_read(folder: Path, tmp_path: Path) -> None:
    def unnamed(tasks: pa.Table) -> pa.Table:
        return tasks.rename_columns(["task_index", "__index_level_0__"]).add_column(0, "source", pa.array(["x"] * 3))

    def double(table: pa.Table) -> pa.Table:  # lists of any length, in place of fixed ones of float32
        return with_column(with_column(table, "action", list), "observation.state", list)

    names = motors("x", "y", "z", "rx", "ry", "rz", "finger_1", "finger_2")
    ours, theirs = Recording(folder), Recording(altered(folder, tmp_path, names, tasks=unnamed, data=double))
    assert theirs.instructions() == ours.instructions()
    np.testing.assert_array_equal(theirs.actions(7, 20.0), ours.actions(7, 20.0))
    np.testing.assert_array_equal(theirs.arm(theirs.base())[0], ours.arm(ours.base())[0])


def in_one_file(folder: Path, target: Path, order: Sequence[int]) -> Path:
    """The dataset as LeRobot writes it, with many episodes in a video: here all of them, in this order."""
    films, name = "videos/observation.images.agentview", "chunk-000/file-000.mp4"
    begins, frames = dict[int, int](), list[Image]()
    honest = Recording(folder)
    pictures = [picture for _, picture in honest.pictures("agentview")]
    for number in order:
        begins[number] = len(frames)
        frames += pictures[honest.episodes[number].begin : honest.episodes[number].end]

    def told(table: pa.Table) -> pa.Table:
        for column in ("chunk_index", "file_index"):
            table = with_column(table, f"{films}/{column}", lambda rows: [0] * len(rows))
        seconds = [begins[number] / honest.fps for number in range(len(table))]
        return with_column(table, f"{films}/from_timestamp", lambda _: seconds)

    altered(folder, target, episodes=told)
    (target / "videos").unlink()
    (target / films / name).parent.mkdir(parents=True)
    write_video(target / films / name, frames, honest.fps, 2)
    return target


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 0, 1, 4, 2)])
def test_episodes_that_share_a_video_are_decoded_once_each(
    order: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(in_one_file(make_dataset(tmp_path, 5, STEPS), tmp_path / "one", order))
    wanted = []
    for episode, (path, start) in zip(recording.episodes, recording.videos("agentview"), strict=True):
        film = cv2.VideoCapture(str(path))  # each from the file's first frame on
        frames = [film.read()[1][:, :, ::-1] for _ in range(round(start * recording.fps) + episode.end - episode.begin)]
        wanted += frames[episode.begin - episode.end :]
        film.release()
    decoded, opened = [], []

    class Counted:
        def __init__(self, path: str) -> None:
            self._film = cv2.VideoCapture(path)
            opened.append(self)
            self.isOpened, self.release = self._film.isOpened, self._film.release

        def grab(self) -> bool:
            decoded.append("grab")
            return self._film.grab()

        def read(self) -> tuple[bool, Any]:
            decoded.append("read")
            return self._film.read()

    monkeypatch.setattr(recordings, "cv2", SimpleNamespace(VideoCapture=Counted))
    found = list(recording.pictures("agentview"))
    assert [row for row, _ in found] == list(range(len(recording)))
    for (_, picture), frame in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(picture, frame)
    if order == tuple(sorted(order)):
        assert len(opened) == 1 and len(decoded) == len(recording)
    else:
        assert len(opened) == 2  # anew only where an episode lies before the last


def test_a_video_that_is_missing_or_none_is_told_as_such_and_others_are_not_mistaken_for_it(
    folder: Path, tmp_path: Path
) -> None:
    other = altered(folder, tmp_path / "set")
    (other / "videos").unlink()
    shutil.copytree(folder / "videos", other / "videos")
    cache = tmp_path / "cache"
    before = Demonstrations([other], training.CAMERAS, cache).frames_of["wrist"][0]
    films = sorted((other / "videos/observation.images.wrist").rglob("*.mp4"))
    films[0].rename(films[0].with_suffix(".aside"))
    films[1].rename(films[0])
    films[0].with_suffix(".aside").rename(films[1])
    after = Demonstrations([other], training.CAMERAS, cache).frames_of["wrist"][0]
    assert not np.array_equal(before, after)  # the same numbers, but exchanged films
    films[0].write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(VegaError, match="cannot be read"):
        Demonstrations([other], training.CAMERAS, cache)
    films[0].unlink()
    with pytest.raises(VegaError, match="is missing"):
        Demonstrations([other], training.CAMERAS, cache)


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
