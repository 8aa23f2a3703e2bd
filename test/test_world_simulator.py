"""The world simulator's shortcuts are exact, its grids are registered, its streams are streams."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file

from policies.files import weight_files
from policies.fusion.gated_fusion import build_fusion
from policies.types import VegaError
from policies.world_simulator.frame_encoder import Past
from policies.world_simulator.simulator import (
    LatentWorldSimulator,
    WorldSimulatorConfig,
    add_noise,
    noise_level,
    save_world_simulator,
)
from policies.world_simulator.stream import TokenRefresh

TAP, TEXT = 2, 12
CONFIG = WorldSimulatorConfig(tap=TAP, canvas=(64, 96), grid=(4, 4), window=9)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain():
    """diffusers' own networks, small, with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16).eval()
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=4, text_dim=TEXT, freq_dim=32
    ).eval()
    with torch.no_grad():  # as diffusers initialises them, norms and biases would hide mistakes
        for parameter in [*transformer.parameters(), *vae.encoder.parameters()]:
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return vae, transformer


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("wan")
    save_world_simulator(path, *plain, torch.randn(1, TEXT, generator=torch.Generator().manual_seed(1)), CONFIG)
    return path


@pytest.fixture(scope="module")
def simulator(folder):
    return LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def windowed(folder):
    return LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32, mode="window")


def frames(count, size=(40, 40), seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, count, *size, 3), dtype=torch.uint8, generator=generator)


def plain_features(transformer, latents, prompt, sigma, timestep, noise):
    """Block TAP's output by diffusers' own forward pass and a hook, prompt padded with zeros to 512."""
    found = []
    hook = transformer.blocks[TAP].register_forward_hook(lambda module, args, output: found.append(output))
    padded = torch.zeros(len(latents), 512, TEXT)
    padded[:, : len(prompt)] = prompt
    with torch.no_grad():
        noisy = add_noise(latents, noise, sigma)
        transformer(noisy, torch.full((len(latents),), timestep), padded)
    hook.remove()
    return found[0]


def plain_latents(vae, video):
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        return (vae.encode(video).latent_dist.mode() - mean) / std


@pytest.mark.parametrize("rows", [1, 3, 512])
@pytest.mark.parametrize("shape", [(2, 16, 1, 8, 12), (1, 16, 3, 8, 12)])
def test_features_equal_the_plain_network(rows, shape, plain, folder):
    prompt = torch.randn(rows, TEXT, generator=torch.Generator().manual_seed(2))
    simulator = LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32, prompt_embedding=prompt)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    noise = simulator.noise(latents)
    expected = plain_features(plain[1], latents, prompt, simulator.sigma, simulator.timestep, noise)
    tokens = simulator.tokens(latents)
    torch.testing.assert_close(tokens.flatten(1, 3), expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 0.5


def test_only_what_runs_exists(simulator, windowed, plain):
    assert len(simulator.trunk.blocks) == TAP + 1 and simulator.trunk.head is None
    assert not any("decoder" in name for name, _ in simulator.named_parameters())
    with pytest.raises(VegaError, match="cut behind its tap"):
        simulator.trunk.velocity(torch.zeros(1, 16, 1, 8, 12))
    plain_count = sum(p.numel() for p in plain[1].blocks[: TAP + 1].parameters())
    assert sum(p.numel() for p in simulator.trunk.blocks.parameters()) < plain_count


def test_single_frames_equal_one_frame_videos(simulator, plain):
    video = simulator.to_canvas(frames(5, batch=2))
    latents = simulator.encoder.frames(video)
    for i in range(5):
        expected = plain_latents(plain[0], video[:, :, i : i + 1])
        torch.testing.assert_close(latents[:, :, i : i + 1], expected, atol=1e-5, rtol=0)


def test_a_single_frame_pays_one_tap(simulator):
    """No 3-D convolution runs for single frames; each would do three times the work."""
    video = simulator.to_canvas(frames(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        simulator.encoder.frames(video)
    names = ("aten::convolution", "aten::mkldnn_convolution")
    weights = [event.input_shapes[1] for event in profile.events() if event.name in names]
    wide = [shape for shape in weights if len(shape) == 5 and shape[2] > 1]
    assert len(weights) > 20 and not wide


def test_single_frames_follow_the_weights(simulator):
    """Whatever was prepared from weights is prepared again for others: of a copy, or written in place."""
    video = simulator.to_canvas(frames(1))
    before = simulator.encoder.frames(video)
    other = copy.deepcopy(simulator.encoder)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.mul_(0.9)
    plainly = other._normalised(other.encoder(video))
    torch.testing.assert_close(other.frames(video), plainly, atol=1e-5, rtol=0)
    assert not torch.allclose(before, plainly, atol=1e-3)
    torch.testing.assert_close(simulator.encoder.frames(video), before, atol=0, rtol=0)


def test_cameras_in_one_pass_see_what_each_sees_alone(simulator):
    other = simulator.looking(canvas=(64, 128), grid=(4, 8), view=(0.0, 0.25, 1.0, 1.0))
    seen = [frames(1, batch=2), frames(1, batch=2).flip(2)]
    both = simulator.beside([other], seen)
    for own, shots, tokens in zip((simulator, other), seen, both, strict=True):
        torch.testing.assert_close(tokens, own(shots), atol=1e-4, rtol=0)


def test_window_and_stream_equal_encoding_everything(windowed, plain):
    shots = frames(17, batch=2)
    expected = plain_latents(plain[0], windowed.to_canvas(shots))
    torch.testing.assert_close(windowed.encoder.window(windowed.to_canvas(shots)), expected, atol=1e-4, rtol=0)

    stream = windowed.open_stream()
    for start, stop in [(0, 1), (1, 2), (2, 9), (9, 10), (10, 17)]:
        stream.push(shots[:, start:stop])
    # Bounded: of 5 latent frames the window's 3 are kept, each as if encoded with everything before it.
    torch.testing.assert_close(stream.latents, expected[:, :, -3:], atol=1e-4, rtol=0)


def test_every_frame_of_a_stream_ends_a_latent_frame(windowed, plain):
    """Whatever the way of grouping, the latents become those of Wan's encoder on a video that begins so."""
    video = torch.rand(1, 3, 103, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    past, latents = Past(), []
    for frame in video.split(1, dim=2):
        latent, past = windowed.encoder.step(frame, past)
        latents.append(latent)
    for begin in (1, 2):
        count = begin + 101
        expected = plain_latents(plain[0], video[:, :, begin:count])[:, :, -2:]
        torch.testing.assert_close(torch.cat(latents[count - 5 : count : 4], dim=2), expected, atol=1e-4, rtol=0)


def test_a_full_stream_gives_the_windows_tokens(windowed):
    shots = frames(9)
    stream = windowed.open_stream()
    stream.push(shots)
    torch.testing.assert_close(stream.tokens(), windowed(shots), atol=1e-4, rtol=0)
    assert stream.tokens().shape == (1, 16, 48)


def test_a_step_costs_and_keeps_the_same_however_long_the_stream(windowed):
    stream, sizes, operations = windowed.open_stream(), [], []
    stream.push(frames(9))
    for i in range(6):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            stream.push(frames(1, seed=i))
        convolutions = [event for event in profile.events() if event.name == "aten::mkldnn_convolution"]
        operations.append([str(event.input_shapes[:2]) for event in convolutions])
        sizes.append(sum(x.numel() for seen in stream._past.seen.values() for x in seen) + stream.latents.numel())
    assert all(each == operations[0] for each in operations) and len(operations[0]) > 20
    assert len(set(sizes)) == 1


def test_a_fork_has_its_own_future_and_reset_forgets(windowed):
    stream = windowed.open_stream()
    stream.push(frames(3))
    twin = stream.fork()
    before = twin.latents.clone()
    stream.push(frames(6, seed=1))
    assert torch.equal(twin.latents, before) and twin.latents.shape[2] == 1
    twin.push(frames(6, seed=1))
    assert torch.equal(twin.latents, stream.latents)
    twin.push(frames(4, seed=2))
    assert not torch.equal(twin.latents, stream.latents)

    stream.reset()
    with pytest.raises(VegaError, match="no frame"):
        stream.tokens()
    stream.push(frames(1, seed=3))
    fresh = windowed.open_stream()
    fresh.push(frames(1, seed=3))
    assert torch.equal(stream.latents, fresh.latents)
    with pytest.raises(VegaError, match="reset"):
        stream.push(frames(1, size=(50, 40)))
    with pytest.raises(VegaError, match="reset"):
        stream.push(frames(1, batch=2))


def test_the_same_frames_give_the_same_tokens(simulator, folder):
    shot = frames(1)
    assert torch.equal(simulator(shot), simulator(shot))
    other = LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32, seed=1)
    assert not torch.equal(simulator(shot), other(shot))
    torch.testing.assert_close(simulator(frames(3)), simulator(frames(3)[:, -1:]))
    long, short = (simulator.noise(torch.empty(1, 16, time, 8, 12)) for time in (3, 1))
    assert torch.equal(long[:, :, :1], short)


def test_noise_level_of_the_paper():
    assert noise_level(300) == (299, pytest.approx(0.299923837184906, abs=1e-7))
    assert noise_level(0) == (0, 0.0)
    assert noise_level(1000) == (999, pytest.approx(0.9998, abs=1e-4))
    with pytest.raises(VegaError, match="schedule"):
        noise_level(1001)


def test_official_framing_looks_elsewhere(simulator, folder):
    official = LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32, framing="official")
    shot = frames(1)
    changed = shot.clone()
    changed[:, :, :5] = 255 - changed[:, :, :5]  # the top rows, which the official crop throws away
    assert torch.equal(official(shot), official(changed))
    assert not torch.equal(simulator(shot), simulator(changed))
    assert official(shot).shape == (1, 16, 48)


def test_refresh_reports_the_age_of_the_tokens():
    made = []

    def compute():
        made.append(torch.tensor(len(made)))
        return made[-1]

    refresh = TokenRefresh(every=3)
    answers = [refresh(compute) for _ in range(7)]
    assert [(int(tokens), age) for tokens, age in answers] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    refresh.reset()
    assert refresh(compute)[1] == 0 and len(made) == 4
    with pytest.raises(VegaError, match="1 or more"):
        TokenRefresh(0)


def test_saved_again_it_is_the_same_and_small(simulator, folder, tmp_path):
    simulator.save_pretrained(tmp_path / "copy")
    loaded = LatentWorldSimulator.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    assert loaded.config == simulator.config == CONFIG
    assert torch.equal(loaded(frames(1)), simulator(frames(1)))
    names = {
        part: set(load_file(tmp_path / "copy" / part / "diffusion_pytorch_model.safetensors"))
        for part in ("vae", "transformer")
    }
    assert not any(name.startswith("decoder") for name in names["vae"])
    assert max(int(n.split(".")[1]) for n in names["transformer"] if n.startswith("blocks.")) == TAP
    assert sorted(p.suffix for p in (tmp_path / "copy").rglob("*") if p.is_file()).count(".safetensors") == 3


def test_whole_diffusers_folders_load(plain, folder, simulator, tmp_path):
    for part, model in zip(("vae", "transformer"), plain, strict=True):
        model.save_pretrained(tmp_path / part)
    prompt = folder / "prompt_embedding.safetensors"
    settings_of_folder = {"tap": TAP, "canvas": (64, 96), "grid": (4, 4), "window": 9}
    loaded = LatentWorldSimulator.from_pretrained(
        tmp_path, dtype=torch.float32, prompt_embedding=prompt, **settings_of_folder
    )
    assert torch.equal(loaded(frames(1)), simulator(frames(1)))


def test_bfloat16_stays_close(simulator, folder):
    half = LatentWorldSimulator.from_pretrained(folder, dtype=torch.bfloat16)
    exact, rounded = simulator(frames(1)), half(frames(1)).float()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).min() > 0.99


def test_tokens_can_feed_a_fusion_that_learns(simulator):
    f_gen = simulator(frames(1))
    fusion = build_fusion("token_gate", 8, simulator.dim)
    fusion(torch.randn(1, 16, 8), f_gen)[0].sum().backward()
    assert fusion.project[0].weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in simulator.parameters())


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ({"canvas": (64, 100)}, "multiples of 16"),
        ({"mode": "window", "window": 8}, r"1 \+ 4 n, e\.g\. 9"),
        ({"mode": "both"}, "mode 'both'"),
        ({"tap": 4}, r"0 to \d"),
        ({"view": (0.5, 0, 0.5, 1)}, "no part of a frame"),
        ({"colour": 1}, r"'colour' in .*world_simulator\.json.*unknown"),
        ({"canvas": "large"}, "'canvas'.*'large'"),
        ({"shift": "5"}, "'shift'"),
        ({"shift": 0.0}, "shift 0.0"),
        ({"shift": -1.0}, "shift -1.0"),
        ({"seed": 2**70}, f"seed {2**70}"),
        ({"grid": (0, 5)}, "'grid'.*above 0"),
        ({"canvas": (-64, 64)}, "'canvas'.*above 0"),
        ({"prompt_embedding": torch.zeros(1, 5)}, "export"),
        ({"prompt_embedding": torch.zeros(600, TEXT)}, "512"),
    ],
)
def test_bad_settings_are_named(overrides, sentence, folder):
    with pytest.raises(VegaError, match=sentence):
        LatentWorldSimulator.from_pretrained(folder, **overrides)


def test_bad_frames_are_named(simulator, windowed):
    with pytest.raises(VegaError, match="uint8"):
        simulator(frames(1).float())
    with pytest.raises(VegaError, match="uint8"):
        simulator(frames(1)[..., :1])
    with pytest.raises(VegaError, match="8 frames"):
        windowed(frames(8))
    with pytest.raises(VegaError, match="multiples of 8"):
        simulator.encoder.frames(torch.zeros(1, 3, 1, 60, 64))


def test_bad_folders_are_named(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "wan")
    config = json.loads((copy / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(VegaError, match="FluxTransformer2DModel"):
        LatentWorldSimulator.from_pretrained(copy)
    (copy / "transformer" / "config.json").write_text(json.dumps(config | {"ffn_dim": 65}))
    with pytest.raises(VegaError, match=r"ffn.*another model"):
        LatentWorldSimulator.from_pretrained(copy)
    names = (("transformer", "eps"), ("transformer", "patch_size"), ("vae", "dim_mult"), ("vae", "latents_mean"))
    for part, name in names:
        path = copy / part / "config.json"
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {name: "many"}))
        with pytest.raises(VegaError, match=rf"{part}/config\.json.*download it again"):
            LatentWorldSimulator.from_pretrained(copy)
        path.write_text(text)
    path.write_text(json.dumps(json.loads(text) | {"latents_std": [1.0] * 15 + [0.0]}))
    with pytest.raises(VegaError, match="'latents_std' that are not above 0"):
        LatentWorldSimulator.from_pretrained(copy)
    path.write_text(json.dumps(json.loads(text) | {"latents_mean": [float("nan")] * 16}))
    with pytest.raises(VegaError, match="needs 16 numbers in 'latents_mean'"):
        LatentWorldSimulator.from_pretrained(copy)
    path.write_text(text)
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(VegaError, match=r"vae.*safetensors"):
        LatentWorldSimulator.from_pretrained(copy)
    monkeypatch.setattr(weight_files, "available_bytes", lambda device: 1000)
    with pytest.raises(VegaError, match="GB are free"):
        LatentWorldSimulator.from_pretrained(folder)
