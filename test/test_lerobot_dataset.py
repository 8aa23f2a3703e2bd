"""Recorded episodes as a LeRobot v3.0 dataset: read back with pyarrow, ffmpeg and, where installed, lerobot itself."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from recorded import take_place_away

from policies.types import RobotState, VegaError
from sim.demonstrations import collect_skills
from sim.results.lerobot.ownership import MARK
from sim.results.lerobot.statistics import STATS_STRIDE, column_stats, combine, image_stats
from sim.results.lerobot_dataset import EEF_ACTION_NAMES, EpisodeTape, check_target, tape_path, write_dataset

pq = pytest.importorskip("pyarrow.parquet")
CAMERAS = ("agentview", "wrist")
SIZE = 32
EPISODES = {(0, 0): 7, (0, 1): 4, (3, 0): 5}  # (task, trial) -> steps


class Scene:
    """An environment in which the brightness of the picture and the arm's height tell the step."""

    suite, task, max_steps, control_period_s = "s", 0, 9, 0.05
    cameras = CAMERAS
    base_position, base_quaternion = np.array([-0.5, 0.1, 0.0]), np.array([0.0, 0.0, 0.6, 0.8])

    def __init__(self, instruction: str) -> None:
        self.instruction, self.now, self.drawn = instruction, 0, 0

    def render(self, camera: str) -> Any:
        self.drawn += 1
        return np.full((SIZE, SIZE, 3), 20 * self.now + 5 * CAMERAS.index(camera), np.uint8)

    def state(self) -> RobotState:
        down = np.array([1.0, 0.0, 0.0, 0.0])
        position = np.array([0.4, 0.0, 0.1 * self.now])
        return RobotState(self.now, (), np.zeros(7), np.zeros(7), np.full(2, 0.03), position, down)


def record(folder: Path) -> list[Path]:
    """Tapes of EPISODES; the first step's picture of one camera is given, the others are drawn."""
    paths = []
    for (task, trial), steps in EPISODES.items():
        scene = Scene(f"do thing {task}")
        tape = EpisodeTape(scene, EEF_ACTION_NAMES)  # type: ignore[arg-type]
        for step in range(steps):
            scene.now = step
            drawn = {"wrist": scene.render("wrist")} if step == 0 else {}
            tape.step(np.full(7, step / 10), drawn)
        assert scene.drawn == 2 * steps
        paths.append(tape_path(folder, task, trial))
        tape.keep(paths[-1], success=trial == 0)
    return paths


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    paths = record(folder / "tapes")
    assert write_dataset([*paths, folder / "tapes" / "task9_trial9.npz"], folder / "set") == len(EPISODES)
    return folder / "set"


def test_rows_say_what_was_seen_and_done(dataset: Path) -> None:
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet")
    rows = table.to_pydict()
    steps = [step for count in EPISODES.values() for step in range(count)]
    assert rows["index"] == list(range(16)) and rows["frame_index"] == steps
    assert rows["episode_index"] == [0] * 7 + [1] * 4 + [2] * 5 and rows["task_index"] == [0] * 11 + [1] * 5
    np.testing.assert_allclose(rows["timestamp"], np.array(steps) / 20, rtol=1e-6)
    np.testing.assert_allclose(np.array(rows["action"])[:, 0], np.array(steps) / 10, rtol=1e-6)
    np.testing.assert_allclose(np.array(rows["observation.state"])[:, 2], np.array(steps) / 10, atol=1e-6)
    assert [i for i, done in enumerate(rows["next.done"]) if done] == [6, 10, 15]
    assert [i for i, won in enumerate(rows["next.success"]) if won] == [6, 15]
    np.testing.assert_allclose(rows["robot.base"], np.tile([-0.5, 0.1, 0.0, 0.0, 0.0, 0.6, 0.8], (16, 1)), atol=1e-6)
    assert str(table.schema.field("action").type) == "fixed_size_list<element: float>[7]"


def test_what_info_names_is_there(dataset: Path) -> None:
    info = json.loads((dataset / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["splits"] == {"train": "0:3"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 16, 2)
    columns = pq.read_schema(dataset / info["data_path"].format(chunk_index=0, file_index=0)).names
    videos = {key for key, feature in info["features"].items() if feature["dtype"] == "video"}
    assert videos == {f"observation.images.{camera}" for camera in CAMERAS}
    assert set(columns) == set(info["features"]) - videos
    stats = json.loads((dataset / "meta/stats.json").read_text())
    assert set(stats) == set(info["features"])
    assert np.shape(stats["observation.images.wrist"]["mean"]) == (3, 1, 1)
    assert stats["action"]["count"] == [16] and stats["action"]["max"][0] == pytest.approx(0.6)
    tasks = pq.read_table(dataset / "meta/tasks.parquet").to_pydict()
    assert tasks == {"task_index": [0, 1], "task": ["do thing 0", "do thing 3"]}
    if importlib.util.find_spec("pandas") is not None:
        frame = pytest.importorskip("pandas").read_parquet(dataset / "meta/tasks.parquet")
        assert frame.index.name == "task" and frame.loc["do thing 3", "task_index"] == 1
    head, card = (dataset / "README.md").read_text().split("---\n")[1:3]
    assert yaml.safe_load(head)["tags"][0] == "LeRobot"
    assert yaml.safe_load(head)["configs"][0]["data_files"] == "data/*/*.parquet"
    assert "3 episodes" in card and "- do thing 3" in card
    begin = 0
    for row in pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist():
        assert row["dataset_from_index"] == begin
        begin = row["dataset_to_index"]
        assert row["length"] == list(EPISODES.values())[row["episode_index"]]
        for key in videos:
            where = {"chunk_index": row[f"videos/{key}/chunk_index"], "file_index": row[f"videos/{key}/file_index"]}
            assert (dataset / info["video_path"].format(video_key=key, **where)).is_file()
            span = row[f"videos/{key}/to_timestamp"] - row[f"videos/{key}/from_timestamp"]
            assert span == pytest.approx(row["length"] / 20)


def test_films_show_each_step(dataset: Path) -> None:
    reader = imageio_ffmpeg.read_frames(str(dataset / "videos/observation.images.wrist/chunk-000/file-000.mp4"))
    details = next(reader)
    assert details["fps"] == 20 and details["size"] == (SIZE, SIZE)
    brightness = [np.frombuffer(frame, np.uint8).mean() for frame in reader]
    np.testing.assert_allclose(brightness, 5 + 20 * np.arange(7), atol=3)


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason="lerobot is not installed")
def test_lerobot_reads_it(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    read = LeRobotDataset("nobody/nothing", root=dataset, video_backend="pyav")
    assert len(read) == 16 and read.meta.total_episodes == 3
    item = read[9]  # step 2 of the second episode
    assert item["task"] == "do thing 0" and int(item["episode_index"]) == 1
    assert item["action"].tolist() == pytest.approx([0.2] * 7)
    assert 255 * float(item["observation.images.agentview"].mean()) == pytest.approx(40, abs=3)


def test_only_a_dataset_of_the_run_that_goes_on_is_replaced(tmp_path: Path) -> None:
    tapes, dataset = record(tmp_path / "tapes"), tmp_path / "set"
    check_target(dataset, [])
    assert write_dataset(tapes[:2], dataset) == 2
    check_target(dataset, tapes)
    assert write_dataset(tapes, dataset) == 3  # the run has gone on
    (tmp_path / "mine" / "meta").mkdir(parents=True)
    (tmp_path / "mine" / "meta" / "info.json").write_text("{}")
    shutil.copytree(dataset, tmp_path / "odd")
    (tmp_path / "odd" / MARK).write_text('{"tapes": 1, "episodes": "x"}')
    for folder, whose, what in (
        (dataset, [], "was not recorded by this run"),
        (dataset, record(tmp_path / "others"), "was not recorded by this run"),
        (dataset, tapes[:2], "holds episodes that it would not hold any more, such as task3_trial0"),
        (tmp_path / "mine", tapes, "does not say which tapes it was made of"),
        (tmp_path / "odd", tapes, "was not recorded by this run"),
    ):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(VegaError, match=f"exists already.* {what}"):
            check_target(folder, whose)
        if whose:
            with pytest.raises(VegaError, match=f"exists already.* {what}"):
                write_dataset(whose, folder)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "tapes").rename(tmp_path / "moved")
    check_target(dataset, sorted((tmp_path / "moved").glob("*.npz")))


@pytest.mark.parametrize("left", [MARK, "meta"])
def test_a_kill_while_a_dataset_is_replaced_leaves_none_in_the_way(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def cut_off(folder: Path, ignore_errors: bool = False) -> None:
        if (folder / left).is_dir():
            remove(folder / left)
            raise Killed
        if (folder / left).is_file():
            (folder / left).unlink()
            raise Killed

    tapes, dataset, remove = record(tmp_path / "tapes"), tmp_path / "set", shutil.rmtree
    assert write_dataset(tapes[:2], dataset) == 2
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", cut_off)
        write_dataset(tapes, dataset)
    check_target(dataset, tapes)
    assert write_dataset(tapes, dataset) == 3
    assert json.loads((dataset / "meta/info.json").read_text())["total_episodes"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "tapes"]


def test_skills_of_other_tasks_do_not_take_the_place_of_those_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect_skills, "each_in_its_process", lambda *_: [])  # all episodes are there
    record(tmp_path / "tapes" / "libero_goal_seed7")
    words = ["--output", str(tmp_path), "--tasks"]
    assert collect_skills.main([*words, "0", "3", "--episodes", "2"]) == 0
    for fewer in (["3", "--episodes", "2"], ["0", "3", "--episodes", "1"]):
        assert collect_skills.main([*words, *fewer]) == 2
        assert "holds episodes that it would not hold any more" in capsys.readouterr().err
    assert json.loads((tmp_path / "dataset" / "meta/info.json").read_text())["total_episodes"] == 3
    assert collect_skills.main([*words, "0", "1", "3", "--episodes", "5"]) == 0


def test_a_run_that_began_before_tapes_told_where_the_base_stands_goes_on_to_a_dataset(tmp_path: Path) -> None:
    """Then no row tells it: half a column is none."""
    tapes = record(tmp_path / "tapes")
    take_place_away(tapes[1])
    assert write_dataset(tapes, tmp_path / "set") == 3
    columns = pq.read_schema(tmp_path / "set/data/chunk-000/file-000.parquet").names
    told = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    assert "action" in columns and "robot.base" not in {*columns, *told}


@pytest.mark.parametrize("folder", ["/proc", "file"])
def test_where_no_dataset_can_be_written_is_told_at_the_start(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VegaError, match=r"cannot be written to .*: give another --record\."):
        check_target(tmp_path / folder / "set", [])


def test_without_episodes_nothing_is_written(tmp_path: Path) -> None:
    assert write_dataset([tmp_path / "task0_trial0.npz"], tmp_path / "set") == 0
    assert not list(tmp_path.iterdir())


@given(st.lists(st.integers(1, 9).flatmap(lambda n: arrays(np.float64, (n, 2), elements=st.floats(-9, 9))), min_size=1))
def test_statistics_of_parts_are_those_of_the_whole(parts: list[Any]) -> None:
    total = combine([{"x": column_stats(part)} for part in parts])["x"]
    whole = column_stats(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(total[name], whole[name], atol=1e-7)


@given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_statistics_of_pictures_are_those_of_their_numbers(frames: np.ndarray) -> None:
    """What NumPy makes of the same pixels one by one."""
    found = image_stats(list(frames))
    pixels = frames[:, ::STATS_STRIDE, ::STATS_STRIDE].reshape(-1, 3) / 255.0
    wanted = column_stats(pixels) | {"count": np.array([len(frames)])}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        shape = (1,) if name == "count" else (3, 1, 1)
        np.testing.assert_allclose(found[name], value.reshape(shape), atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda tape: tape.write_bytes(b""), "is damaged"),
        (lambda tape: tape.write_bytes(tape.read_bytes()[:-30]), "is damaged"),
        (lambda tape: tape.with_name(f"{tape.stem}.wrist.mp4").unlink(), "has no video of 'wrist'"),
        (lambda tape: np.savez(tape, **{**np.load(tape), "fps": 10}), "differ in fps"),
    ],
)
def test_recordings_that_are_damaged_or_of_two_kinds_are_no_dataset(spoil: Any, part: str, tmp_path: Path) -> None:
    paths = record(tmp_path / "tapes")
    spoil(paths[1])
    with pytest.raises(VegaError, match=part):
        write_dataset(paths, tmp_path / "set")
    assert not (tmp_path / "set").exists() and not (tmp_path / ".set.partial").exists()
