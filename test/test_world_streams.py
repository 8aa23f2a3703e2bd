"""Streams of frames: what is encoded and computed once, what is remembered, and when tokens are made anew."""

from __future__ import annotations

import pytest
import tiny_checkpoints as tiny
import torch

from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator
from policies.world_simulator.stream import TokenRefresh, WindowStream


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.wan_folder(tmp_path_factory.mktemp("wan") / "wan")


def load(folder, **options):
    return LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32, canvas=(64, 64), grid=(4, 4), **options)


@pytest.fixture(scope="module")
def simulator(folder):
    return load(folder)


@pytest.fixture(scope="module")
def windowed(folder):
    return load(folder, mode="window", window=9)


def frames(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, count, 40, 40, 3), dtype=torch.uint8, generator=generator)


def test_a_causal_stream_begins_as_the_window_and_goes_on_alone(windowed):
    """The window's tokens at first, for each way to group frames; then a latent frame costs itself alone."""
    shots = frames(9)
    stream = windowed.open_stream("causal")
    stream.push(shots)
    torch.testing.assert_close(stream.tokens(), windowed(shots), atol=1e-4, rtol=0)
    sizes, computed = [], []
    hook = windowed.trunk.patch_embedding.register_forward_hook(lambda m, i, out: computed.append(out.shape[2]))
    for seed in (1, 2, 3):
        stream.push(frames(4, seed=seed))
        tokens = stream.tokens()
        assert stream.tokens() is not tokens and torch.equal(stream.tokens(), tokens)  # computed once, pooled again
        sizes.append(sum(keys.numel() for keys, _ in stream._memories[0][0].seen))
    assert computed == [1, 1, 1] and len(set(sizes)) == 1
    assert not torch.equal(
        tokens, windowed(torch.cat([frames(1, seed=2)[:, :1], frames(4, seed=2), frames(4, seed=3)], 1))
    )
    computed.clear()
    for seed in range(4, 12):
        stream.push(frames(1, seed=seed))
        stream.tokens()
    hook.remove()
    assert computed == [3, 3, 3, 1, 1, 1, 1, 1]


def test_a_block_that_remembers_gives_what_a_causal_mask_would(simulator):
    """One latent frame after the other equals all at once, where no frame sees a later one (a single block)."""
    trunk = simulator.trunk
    block, rest = trunk.blocks[0], trunk.blocks
    trunk.blocks = torch.nn.ModuleList([block])
    try:
        latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        memory, parts = None, []
        for i in range(3):
            out, memory = trunk.remember(latents[:, :, i : i + 1], memory, kept=3)
            parts.append(out)
        # The last frame of a single block sees all, masked or not.
        torch.testing.assert_close(parts[-1], trunk(latents)[0][:, -4:], atol=1e-5, rtol=0)
        torch.testing.assert_close(parts[0], trunk(latents[:, :, :1])[0], atol=1e-5, rtol=0)
    finally:
        trunk.blocks = rest


def test_a_stream_starts_again_where_wan_has_no_more_positions(windowed, monkeypatch):
    monkeypatch.setattr(type(windowed.trunk), "positions_in_time", 4)
    stream = windowed.open_stream("causal")
    stream.push(frames(9))
    stream.tokens()
    for seed in (1, 2):
        stream.push(frames(4, seed=seed))
        stream.tokens()
    assert stream._memories[0][0].frames == 3  # the window anew
    with pytest.raises(VegaError, match="at most 4 latent frames"):
        windowed.trunk.remember(torch.zeros(1, 16, 5, 4, 4), None, 2)
    with pytest.raises(VegaError, match="choose joint or causal"):
        windowed.open_stream("both")


def test_a_window_stream_encodes_what_is_new(windowed):
    video = frames(30)
    stream = WindowStream(windowed, "joint")
    encoded = []
    step = windowed.encoder.step
    windowed.encoder.step = lambda frame, past: encoded.append(past.frames) or step(frame, past)
    try:
        news, counts = [], []
        for moved in (0, 1, 4, 4, 7, 20):
            stream.see(video[:, moved : moved + 9])
            news.append(stream.news)
            counts.append(len(encoded))
            stream.tokens()
    finally:
        del windowed.encoder.step
    # The first window; one frame; three; nothing new; three; a start where all is new.
    assert counts == [9, 10, 13, 13, 16, 25] and encoded[-9:] == list(range(9))
    assert news == [True, True, True, False, True, True]
    torch.testing.assert_close(stream.tokens(), windowed(video[:, 20:29]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["joint", "causal"])
@pytest.mark.parametrize("failing", [3, 10, 12])  # in the first window; the first and the last of three new frames
def test_frames_that_could_not_be_encoded_come_again(windowed, attention, failing):
    """After memory ran out once the same query, and those after it, give what they would have given."""
    video = frames(20)
    stream, spared = WindowStream(windowed, attention), WindowStream(windowed, attention)
    step, calls = windowed.encoder.step, []

    def fail_once(frame, past):
        calls.append(past.frames)
        if len(calls) == failing + 1:
            raise RuntimeError("out of memory")
        return step(frame, past)

    refused = 0
    for moved in (0, 1, 4, 5):
        window = video[:, moved : moved + 9]
        windowed.encoder.step = fail_once
        try:
            stream.see(window)
        except RuntimeError:
            refused += 1
            stream.see(window)
        finally:
            del windowed.encoder.step
        spared.see(window)
        assert stream.news and torch.equal(stream.tokens(), spared.tokens()), moved
    assert refused == 1


def test_a_stream_into_which_nothing_came_takes_frames_of_any_size(windowed):
    stream = windowed.open_stream()
    windowed.encoder.step = lambda frame, past: 1 / 0
    try:
        with pytest.raises(ZeroDivisionError):
            stream.push(frames(1))
    finally:
        del windowed.encoder.step
    stream.push(frames(1)[:, :, :32])
    assert stream.news


def test_tokens_are_refreshed_where_a_picture_changes():
    made = []
    refresh = TokenRefresh(every=100, change=20.0)

    def look(picture, news=True):
        return refresh(lambda: made.append(1) or len(made), {"camera": picture}, news)

    still = torch.full((40, 40, 3), 100, dtype=torch.uint8)
    noisy = still + torch.randint(0, 3, still.shape, dtype=torch.uint8)
    moved = still.clone()
    moved[:10, :10] = 200
    assert [look(p) for p in (still, noisy, still)] == [(1, 0), (1, 1), (1, 2)]
    assert look(moved, news=False) == (1, 3)  # there is nothing that could be computed
    assert [look(moved), look(moved), look(still)] == [(2, 0), (2, 1), (3, 0)]
    with pytest.raises(VegaError, match="0 to 255"):
        TokenRefresh(1, -1.0)
