"""What a full-size policy learns from: what was seen beside the action that was chosen on it, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from recorded import make_dataset

from benchmarks.training import make_policy
from policies.checkpoints import load_policy
from policies.openvla.preprocessing import jpeg_round_trip, mirror, policy_image, rotate_180
from policies.training.recordings import Recording
from policies.training.vega import readers
from policies.training.vega import tokens as caches
from policies.training.vega.batches import Batches
from policies.training.vega.demonstrations import EVERY, Demonstration, Samples, held_out
from policies.training.vega.readers import read_demonstrations
from policies.training.vega.tokens import TokenCache, native_tokens, pooled
from policies.types import VegaError

CAMERAS = ("agentview", "wrist")
STEPS = 9
WHOLE = (0.0, 0.0, 1.0, 1.0)


class Told(list[str]):
    """What a reader says, sentence by sentence."""

    def __call__(self, text: str) -> None:
        self.append(text)


def libero_file(
    folder: Path, late: bool, joints: bool = True, convention: str | None = None, moving: bool = True
) -> list[float]:
    """A file of one episode whose arm is at x = joint 0; where it was when each action was chosen.

    late: `obs` is what each action led to.  The first state is that from before the arm has settled, as
    OpenVLA-OFT's script keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x = np.cumsum(np.full(STEPS + 1, 0.1 if moving else 0.0))
    seen = x[1:] if late else x[:-1]
    states = np.zeros((STEPS, 20))
    states[:, 0], states[:, 1] = np.arange(STEPS), x[:-1]
    if not late:
        states[0, 1] += 0.5
    actions = np.zeros((STEPS, 7))
    actions[:, 0], actions[:, 6] = np.arange(1, STEPS + 1) / 10, -1
    actions[4, :6] = 0.0  # it idles
    pictures = np.zeros((STEPS, 8, 8, 3), np.uint8)
    pictures[:, 0] = np.arange(STEPS)[:, None, None] + 100  # brighter than all else
    pictures[:, 5, 1] = 50
    with h5py.File(folder / "SCENE1_pick_up_the_milk_demo.hdf5", "w") as file:
        group = file.create_group("data/demo_0")
        group["actions"], group["states"] = actions, states
        if joints:
            group["obs/joint_states"] = np.pad(seen[:, None], ((0, 0), (0, 6)))
        group["obs/ee_states"] = np.pad(seen[:, None], ((0, 0), (0, 5)))
        group["obs/gripper_states"] = np.zeros((STEPS, 2))
        group["obs/agentview_rgb"] = group["obs/eye_in_hand_rgb"] = pictures
        if convention is not None:
            file["data"].attrs["macros_image_convention"] = convention
    return list(x[:-1])


@pytest.mark.parametrize("late", [False, True])
def test_what_was_seen_is_beside_the_action_that_was_chosen_on_it(late: bool, tmp_path: Path) -> None:
    """LIBERO's own files hold what each action led to, those of OpenVLA-OFT's script what it was chosen on."""
    before, told = libero_file(tmp_path, late), Told()
    (demo,) = read_demonstrations(tmp_path, CAMERAS, told)
    steps = [step for step in range(1 if late else 0, STEPS) if step != 4]  # on what the first was chosen nobody saw
    np.testing.assert_allclose(demo.actions[:, 0], [(step + 1) / 10 for step in steps])
    np.testing.assert_allclose(demo.states[:, 0], [before[step] for step in steps])
    shown = [int(demo.picture("wrist", row).max()) - 100 for row in range(len(steps))]
    assert shown == [step - late for step in steps]
    assert [("1 of 1" in text and "after each action" in text) for text in told] == [True] * late


@pytest.mark.parametrize("change", [{"joints": False}, {"moving": False}])
def test_where_that_cannot_be_told_obs_is_what_the_action_was_chosen_on(
    change: dict[str, bool], tmp_path: Path
) -> None:
    libero_file(tmp_path, True, **change)
    told = Told()
    (demo,) = read_demonstrations(tmp_path, CAMERAS, told)
    assert len(demo.actions) == STEPS - 1 and demo.actions[0, 0] == pytest.approx(0.1) and not told


def test_a_file_says_which_way_up_its_pictures_are(tmp_path: Path) -> None:
    for convention, turned in ((None, rotate_180), ("opengl", rotate_180), ("opencv", mirror)):
        folder = tmp_path / str(convention)
        libero_file(folder, False, convention=convention)
        with h5py.File(next(folder.glob("*.hdf5"))) as file:
            raw = file["data/demo_0/obs/agentview_rgb"][2]
        (demo,) = read_demonstrations(folder, CAMERAS)
        assert np.array_equal(demo.picture("agentview", 2), turned(raw)), convention
    libero_file(tmp_path / "other", False, convention="sideways")
    with pytest.raises(VegaError, match=r"'sideways'.*opengl or opencv"):
        read_demonstrations(tmp_path / "other", CAMERAS)


def relabelled(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    return folder


def lerobot(folder: Path, every: int = 1, **names: Sequence[str]) -> Path:
    def change(info: dict[str, Any]) -> None:
        for key, value in names.items():
            info["features"]["observation.state" if key == "state" else key]["names"] = list(value)

    return relabelled(make_dataset(folder, episodes=3, steps=12, labelled=False, every=every, placed=False), change)


def test_numbers_that_are_said_to_be_others_are_not_learned(tmp_path: Path) -> None:
    """A Franka's seven joints and its gripper are as many as a pose and two fingers."""
    joints = [*(f"joint_{number}" for number in range(1, 8)), "gripper"]
    speeds = [f"joint_velocity_{number}" for number in range(1, 8)]
    with pytest.raises(VegaError, match=r"The state in .* is joint_1, .*: give x, y"):
        read_demonstrations(lerobot(tmp_path / "state", state=joints), CAMERAS, Told())
    with pytest.raises(VegaError, match=r"The actions in .* are joint_velocity_1, .*: give dx, dy"):
        read_demonstrations(lerobot(tmp_path / "action", action=speeds), CAMERAS, Told())
    told = Told()
    assert len(read_demonstrations(lerobot(tmp_path / "none", action=[], state=[]), CAMERAS, told)) == 3
    assert not any("rows a second" in text for text in told)


def test_a_row_of_several_control_steps_has_a_picture_of_the_first_alone(tmp_path: Path) -> None:
    with pytest.raises(VegaError, match=r"4 control steps in a row.*--every 1"):
        read_demonstrations(lerobot(tmp_path, every=4), CAMERAS, Told())


def test_a_rate_that_is_not_liberos_is_told(tmp_path: Path) -> None:
    """Public sets of LIBERO are labelled 10 Hz: only their label is."""
    folder, told = relabelled(lerobot(tmp_path), lambda info: info.update(fps=10)), Told()
    assert len(read_demonstrations(folder, CAMERAS, told)) == 3
    assert any("10 rows a second" in text and "20" in text for text in told)


def failed(folder: Path, episodes: Sequence[int]) -> Path:
    """The last row of these did not succeed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = next((folder / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    success = [
        won and episode not in episodes
        for won, episode in zip(*(table[name].to_pylist() for name in ("next.success", "episode_index")), strict=True)
    ]
    at = table.column_names.index("next.success")
    pq.write_table(table.set_column(at, "next.success", pa.array(success)), path)
    return folder


def test_what_failed_is_not_learned(tmp_path: Path) -> None:
    """`run_libero --record` keeps failed episodes too."""
    folder, told = failed(lerobot(tmp_path), [1]), Told()
    every = Recording(folder)
    demos = read_demonstrations(folder, CAMERAS, told)
    wanted = [every.column("observation.state")[episode.begin] for episode in every.episodes]
    assert np.array_equal([demo.states[0] for demo in demos], [wanted[0], wanted[2]])
    assert any("1 of 3 episodes" in text and "success" in text for text in told)
    with pytest.raises(VegaError, match=r"No episode .* ended in success"):
        read_demonstrations(failed(folder, [0, 1, 2]), CAMERAS, Told())


def test_pictures_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = lerobot(tmp_path), Told()
    read_demonstrations(folder, CAMERAS, told)
    size = 2 * 36 * 256 * 256 * 3
    assert any(f"{size / 1e9:.3g} GB" in text for text in told)
    monkeypatch.setattr(Recording, "pictures", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(readers, "available_bytes", lambda _: size - 1)
    with pytest.raises(VegaError, match="GB are free"):
        read_demonstrations(folder, CAMERAS, Told())
    monkeypatch.setattr(readers, "available_bytes", lambda _: 2 * size - 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(VegaError, match=r"in every process \(2 here\)"):
        read_demonstrations(folder, CAMERAS, Told())


class Rlds:
    """tensorflow_datasets, of episodes that are one step times the number in their folder's name."""

    def __init__(self, **step: Any) -> None:
        self._step = step

    def builder_from_directory(self, directory: Path) -> Any:
        value = float(directory.parent.name.rpartition("_")[2])
        step = {
            "action": np.full(7, value, np.float32), "language_instruction": b"fold",
            "observation": {"state": np.zeros(8, np.float32)} | {
                name: np.full((48, 48, 3), value, np.uint8) for name in ("image", "wrist_image")
            },
        } | self._step  # fmt: skip
        steps = SimpleNamespace(as_numpy_iterator=lambda: iter([step] * 12))
        return SimpleNamespace(as_dataset=lambda split: [{"steps": steps}])


@pytest.fixture
def rlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", Rlds())  # type: ignore[arg-type]
    for number in (3, 1, 2):
        folder = tmp_path / f"suite_{number}" / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "features.json").write_text("{}")
    return tmp_path


def test_all_data_sets_of_an_rlds_folder_are_read(rlds: Path) -> None:
    told = Told()
    demos = read_demonstrations(rlds, CAMERAS, told)
    assert [demo.actions[0, 0] for demo in demos] == [1.0, 2.0, 3.0]
    assert any("suite_1/1.0.0, suite_2/1.0.0, suite_3/1.0.0" in text for text in told)
    assert len(read_demonstrations(rlds / "suite_2", CAMERAS, told)) == 1


def test_pictures_of_rlds_that_do_not_fit_into_memory_are_one_sentence(
    rlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are, nobody says before they are read: those of the first that is too much are the last read."""
    told, read = Told(), []
    demos = read_demonstrations(rlds, CAMERAS, told)
    size = sum(demo.picture(camera, i).nbytes for demo in demos for camera in CAMERAS for i in range(len(demo.actions)))
    assert any(f"{size / 1e9:.3g} GB of memory in every process" in text for text in told)
    one = readers._rlds_episode
    monkeypatch.setattr(readers, "_rlds_episode", lambda *given: read.append(given) or one(*given))
    monkeypatch.setattr(readers, "available_bytes", lambda device: size)
    assert len(read_demonstrations(rlds, CAMERAS, told)) == len(read) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each holds them
    read.clear()
    with pytest.raises(VegaError, match=r"take more than .* \(2 here\) .* are free: give fewer episodes"):
        read_demonstrations(rlds, CAMERAS, told)
    assert len(read) == 2


def test_two_versions_of_an_rlds_data_set_are_not_learned_twice(rlds: Path) -> None:
    newer = rlds / "suite_2" / "1.0.1"
    newer.mkdir()
    (newer / "features.json").write_text("{}")
    with pytest.raises(VegaError, match=r"versions 1\.0\.0 and 1\.0\.1 of one data set, .*suite_2: give the"):
        read_demonstrations(rlds, CAMERAS)
    assert len(read_demonstrations(newer, CAMERAS)) == 1


def test_cameras_and_steps_that_are_not_liberos_are_one_sentence(
    rlds: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arms = ("high", "left_wrist", "right_wrist")
    with pytest.raises(VegaError, match=r"agentview, wrist.*'high'"):
        read_demonstrations(rlds, arms)
    raw = tmp_path_factory.mktemp("raw")
    libero_file(raw, False)
    with pytest.raises(VegaError, match=r"agentview, wrist.*'high'"):
        read_demonstrations(raw, arms)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", Rlds(observation={"state": np.zeros(8)}))  # type: ignore[arg-type]
    with pytest.raises(VegaError, match=r"suite_1.*\('image'\)"):
        read_demonstrations(rlds, CAMERAS)


def test_a_folder_of_two_kinds_is_not_read_in_part(rlds: Path) -> None:
    libero_file(rlds, False)
    with pytest.raises(VegaError, match="both"):
        read_demonstrations(rlds, CAMERAS)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_policy(str(make_policy(tmp_path_factory.mktemp("policy"))))


def shapes(episodes: int = 3, steps: int = 10, jpeg: bool = False, flip_from: int = 99) -> list[Demonstration]:
    """Episodes of pictures that all differ; from step `flip_from` on upside down."""
    tall = np.random.default_rng(0).integers(0, 255, (episodes, steps, 2, 6, 6, 3))
    pictures = np.kron(tall, np.ones((1, 1, 1, 8, 8, 1))).astype(np.uint8)
    numbers = np.random.default_rng(1).normal(size=(episodes, steps, 8))

    def picture(episode: int) -> Callable[[str, int], np.ndarray]:
        return lambda camera, step: pictures[episode, step, CAMERAS.index(camera)][:: -1 if step >= flip_from else 1]

    return [
        Demonstration("fold", numbers[episode, :, :7], numbers[episode], picture(episode), jpeg)
        for episode in range(episodes)
    ]


def test_as_many_episodes_are_held_out_as_are_asked_for() -> None:
    """And the same as before wherever the share was kept then: a half, a third, ..., a hundredth."""
    for share in (0.0, 0.005, 0.05, 0.1, 0.3, 0.33, 0.34, 0.4, 0.45, 0.49):
        for count in (1, 2, 19, 20, 500):
            learned, kept = held_out(list(range(count)), share)  # type: ignore[arg-type]
            assert len(kept) == int(count * share + 1e-9) and sorted([*learned, *kept]) == list(range(count))
    for every in range(2, 101):
        numbers = list(range(5000))
        kept = held_out(numbers, 1 / every)[1]  # type: ignore[arg-type]
        assert kept == numbers[every - 1 :: every] == held_out(numbers, 1 / every, EVERY)[1]  # type: ignore[arg-type]


def test_pictures_that_were_jpeg_files_are_not_made_so_again(policy: Any) -> None:
    """OpenVLA-OFT's were once, when its RLDS was written; those of the other formats never were."""
    from policies.openvla.preprocessing import pixel_values

    for was in (False, True):
        samples = Samples(shapes(jpeg=was), policy.model.info.chunk_length)
        plain = samples.picture("agentview", 0)
        seen = Batches(policy, samples, None, 0, augment=False).fixed(1, 1)[0].pixels[0, :6]
        twice = pixel_values([policy_image(plain)], policy.model.info.image_mean_std)
        assert np.array_equal(seen.numpy(), twice) == (not was)
    stored = jpeg_round_trip(plain)  # as RLDS gives it
    demo = Demonstration("fold", np.zeros((10, 7)), np.zeros((10, 8)), lambda camera, step: stored, jpeg=True)
    seen = Batches(policy, Samples([demo], 8), None, 0, augment=False).fixed(1, 1)[0].pixels[0, :6]
    assert np.array_equal(seen.numpy(), pixel_values([policy_image(plain)], policy.model.info.image_mean_std))


def test_rlds_gives_what_were_jpeg_files(rlds: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    raw = tmp_path_factory.mktemp("raw")
    libero_file(raw, False)
    assert all(demo.jpeg for demo in read_demonstrations(rlds, CAMERAS, Told()))
    assert not any(demo.jpeg for demo in read_demonstrations(raw, CAMERAS))


def test_tokens_are_those_of_their_frames_whatever_the_chunk(policy: Any, tmp_path: Path) -> None:
    caches_of = {chunk: TokenCache(policy.world, Samples(shapes(), chunk), tmp_path) for chunk in (5, 8)}
    assert [cache.compute() for cache in caches_of.values()] == [2, 0]
    simulator = policy.world.simulator_of("agentview")
    for chunk, cache in caches_of.items():
        samples = Samples(shapes(), chunk)
        for index in (0, len(samples) // 2, len(samples) - 1):
            picture = samples.picture("agentview", index)
            native = native_tokens(simulator, [picture]).half().float()
            wanted = pooled(simulator, native, picture.shape[:2], WHOLE)[0]
            found = cache.tokens("agentview", index, picture.shape[:2], WHOLE)
            torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)  # alone and in a batch


def test_tokens_of_other_pictures_behind_the_first_are_not_taken(policy: Any, tmp_path: Path) -> None:
    assert TokenCache(policy.world, Samples(shapes(), 8), tmp_path).compute() == 2
    assert TokenCache(policy.world, Samples(shapes(flip_from=1), 8), tmp_path).compute() == 2
    assert TokenCache(policy.world, Samples(shapes(flip_from=9), 8), tmp_path).compute() == 2


def test_files_of_tokens_do_not_stay_open(policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four suites are some 2000 of them, and a process may have 1024 open."""
    monkeypatch.setattr(caches, "SHARD", 1)
    samples = Samples(shapes(), 8)
    cache = TokenCache(policy.world, samples, tmp_path)
    assert cache.compute() > 0
    before = len(os.listdir("/proc/self/fd"))
    kept = [cache.tokens(camera, index, (48, 48), WHOLE) for camera in CAMERAS for index in range(len(samples))]
    assert len(kept) == 18 and len(os.listdir("/proc/self/fd")) == before
