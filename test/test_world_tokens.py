"""Tokens that training keeps on disk: a kill costs a few blocks of them, and processes share the work."""

from __future__ import annotations

import fcntl
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import make_dataset
from torch import Tensor

from policies.checkpoints import find_checkpoint
from policies.files.made_once import all_made_once
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.training.dataset import Demonstrations
from policies.training.nano import world_tokens
from policies.training.nano.world_tokens import CachedWorldTokens
from policies.types import VegaError


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def policy() -> VegaPolicy:
    return load_vega_policy(find_checkpoint("vega-nano"))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory, policy: VegaPolicy) -> Demonstrations:
    room = tmp_path_factory.mktemp("demos")
    return Demonstrations([make_dataset(room / "set", episodes=2)], policy.config.cameras, room / "cache")


@pytest.fixture
def blocks(policy: VegaPolicy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sees every block that is computed; each has two rows, and every second one is told on disk."""
    monkeypatch.setattr(world_tokens, "BLOCK", 2)
    monkeypatch.setattr(world_tokens, "TOLD_EVERY", 2)
    computed: list[str] = []
    pictures = CachedWorldTokens.pictures

    def seen(self: CachedWorldTokens, camera: str, variant: int, block: slice) -> object:
        computed.append(f"{camera} {variant} {block.start}")
        return pictures(self, camera, variant, block)

    monkeypatch.setattr(CachedWorldTokens, "pictures", seen)
    return computed


def make(policy: VegaPolicy, demos: Demonstrations, folder: Path) -> dict[str, bytes]:
    assert policy.world is not None
    CachedWorldTokens(policy.world, demos, folder, 0)
    return {path.name: path.read_bytes() for path in folder.glob("world_tokens*")}


@pytest.mark.parametrize("large", [0, 3])
def test_tokens_that_float16_does_not_hold_are_kept_as_they_are(
    large: int, policy: VegaPolicy, demos: Demonstrations, tmp_path: Path, blocks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From whichever block on they are too large, and whatever a kill has left."""
    plain = make(policy, demos, tmp_path / "plain")
    seen = CachedWorldTokens._seen

    def grown(self: CachedWorldTokens, camera: str, variant: int, block: slice) -> Tensor:
        if dies and block.start == 8:
            raise Killed
        return seen(self, camera, variant, block) * (1e6 if block.start >= 2 * large else 1.0)

    monkeypatch.setattr(CachedWorldTokens, "_seen", grown)
    dies = True
    with pytest.raises(Killed):
        make(policy, demos, tmp_path / "large")
    dies = False
    make(policy, demos, tmp_path / "large")
    for name in plain:
        small, kept = np.load(tmp_path / "plain" / name), np.load(tmp_path / "large" / name)
        assert kept.dtype == np.float32 and np.abs(kept).max() > 65504
        rows = 2 * large
        np.testing.assert_array_equal(kept[:rows], small[:rows])
        np.testing.assert_allclose(kept[rows:], 1e6 * small[rows:].astype(np.float32), rtol=2e-3, atol=1e2)
    assert not list((tmp_path / "large").glob("*.wider"))


def test_tokens_that_are_no_numbers_are_refused(
    policy: VegaPolicy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = CachedWorldTokens._seen
    monkeypatch.setattr(CachedWorldTokens, "_seen", lambda *given: float("inf") * seen(*given))
    with pytest.raises(VegaError, match=r"tokens of camera '.*' are not all finite: give another one"):
        make(policy, demos, tmp_path)
    assert not list(tmp_path.glob("world_tokens*.npy"))


@pytest.mark.parametrize("left", ["as it was", "nothing", "no number", "no tokens"])
def test_what_a_kill_has_left_is_gone_on_with_to_the_same_bits(
    left: str, policy: VegaPolicy, demos: Demonstrations, tmp_path: Path, blocks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = make(policy, demos, tmp_path / "whole")
    assert len(whole) == 4 and all(name.endswith(".npy") for name in whole)
    every, seen = list(blocks), CachedWorldTokens.pictures
    blocks.clear()

    def dying(self: CachedWorldTokens, camera: str, variant: int, block: slice) -> object:
        if len(blocks) == 4:
            raise Killed
        return seen(self, camera, variant, block)

    monkeypatch.setattr(CachedWorldTokens, "pictures", dying)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        make(policy, demos, folder)
    assert blocks == every[:4]  # the third is the last that is told of
    monkeypatch.setattr(CachedWorldTokens, "pictures", seen)
    (partial_file,) = folder.glob("*.partial")
    told = partial_file.with_suffix(".blocks")
    assert told.read_text() == "3"
    if left == "nothing":
        partial_file.unlink()
    elif left == "no number":
        told.write_text("")
    elif left == "no tokens":
        partial_file.write_bytes(b"")
    blocks.clear()
    assert make(policy, demos, folder) == whole
    assert blocks == (every[3:] if left == "as it was" else every)
    assert not list(folder.glob("*.partial")) and not list(folder.glob("*.blocks"))


def test_with_more_data_only_what_is_new_is_computed(policy: VegaPolicy, tmp_path: Path, blocks: list[str]) -> None:
    """As in a round of DAgger; and what is read is each row's own, whichever dataset comes first."""
    assert policy.world is not None
    sets = [make_dataset(tmp_path / f"set{episodes}", episodes=episodes) for episodes in (1, 2)]
    cameras, folder = policy.config.cameras, tmp_path / "cache"
    alone = [Demonstrations([data], cameras, folder) for data in sets]
    rng = np.random.default_rng(0)
    of = [CachedWorldTokens(policy.world, alone[0], folder, 0)]
    blocks.clear()
    both = Demonstrations(sets[::-1], cameras, folder)
    together = CachedWorldTokens(policy.world, both, folder, 0)
    assert len(blocks) == 4 * -(-len(alone[1]) // 2), "one dataset's blocks, of two cameras and two sets"
    blocks.clear()
    of.append(CachedWorldTokens(policy.world, alone[1], folder, 0))
    assert not blocks
    rows = np.arange(len(both))
    found = together.batch(rows, rng, augment=False)
    for camera, tokens in found.items():
        own = [
            cached.batch(np.arange(len(demos)), rng, augment=False)[camera]
            for cached, demos in zip(of, alone, strict=True)
        ]
        assert torch.equal(tokens, torch.cat(own[::-1]))
        for variant in range(world_tokens.VARIANTS):
            last = slice(len(alone[1]) - 1, len(alone[1]) + 1)
            ends = [of[1].native(camera, variant, slice(-1, None)), of[0].native(camera, variant, slice(0, 1))]
            assert torch.equal(together.native(camera, variant, last), torch.cat(ends))


def test_what_another_process_is_making_comes_last(tmp_path: Path) -> None:
    made, waits = [], threading.Event()

    def write(name: str, target: Path) -> None:
        made.append(name)
        target.write_text(name)
        if len(made) == 2:
            waits.set()

    files = {tmp_path / f"{name}.npy": partial(write, name) for name in "abc"}
    with (tmp_path / ".a.lock").open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        here = threading.Thread(target=all_made_once, args=(files,), daemon=True)
        here.start()
        assert waits.wait(60), "it waited for the first file with nothing done"
        (tmp_path / "a.npy").write_text("theirs")
    here.join(60)
    assert made == ["b", "c"] and (tmp_path / "a.npy").read_text() == "theirs"


def test_blank_tokens_have_the_shape_of_others(policy: VegaPolicy, demos: Demonstrations, tmp_path: Path) -> None:
    assert policy.world is not None
    rng, index = np.random.default_rng(0), np.array([0, 3])
    blank = CachedWorldTokens(policy.world, demos, tmp_path / "none", 0, blank=True)
    real = CachedWorldTokens(policy.world, demos, tmp_path / "some", 0)
    assert not (tmp_path / "none").exists()
    shapes = [{camera: t.shape for camera, t in of.batch(index, rng, augment=True).items()} for of in (blank, real)]
    assert shapes[0] == shapes[1]
    assert not any(t.any() for t in blank.batch(index, rng, augment=True).values())
