"""OpenVLA-OFT and Wan folders as people have them: each acts as the plain one, or is refused with what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from policies.checkpoints import load_policy
from policies.types import VegaError
from policies.world_simulator.prompt import PROMPT_FILE, save_prompt
from policies.world_simulator.simulator import LatentWorldSimulator, add_noise

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def openvla(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.openvla_folder(tmp_path_factory.mktemp("kinds") / "openvla")


@pytest.fixture
def folder(openvla: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvla, tmp_path / "checkpoint")


def acts(folder: Path, weights: Tensors | None = None) -> np.ndarray:
    if weights is not None:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return load_policy(str(folder)).act(tiny.observation()).actions


def linears(weights: Tensors) -> list[str]:
    return [name for name in weights if "layers." in name and name.endswith("proj.weight")]


def in_int8(weights: Tensors) -> tuple[Tensors, Tensors]:
    """Coded as bitsandbytes does it, and the numbers that are meant."""
    coded, meant = dict(weights), dict(weights)
    for name in linears(weights):
        peak = weights[name].float().abs().amax(1)
        coded[name] = (weights[name].float() / peak[:, None] * 127).round().to(torch.int8)
        coded[name.removesuffix("weight") + "SCB"] = peak
        meant[name] = coded[name].float() * (peak / 127)[:, None]
    return coded, meant


def in_fp8(weights: Tensors, scale: str = "weight_scale") -> tuple[Tensors, Tensors]:
    coded, meant = dict(weights), dict(weights)
    for name in [
        *linears(weights),
        "vision_backbone.featurizer.blocks.0.attn.qkv.weight",
        "language_model.lm_head.weight",
    ]:
        step = (weights[name].float().abs().max() / 448).reshape(1)
        coded[name] = (weights[name].float() / step).to(torch.float8_e4m3fn)
        coded[name.removesuffix("weight") + scale] = step
        meant[name] = coded[name].float() * step
    return coded, meant


@pytest.mark.parametrize("code", [in_int8, in_fp8, lambda weights: in_fp8(weights, "scale_weight")])
def test_codes_act_as_the_numbers_they_stand_for(
    folder: Path, code: Callable[[Tensors], tuple[Tensors, Tensors]]
) -> None:
    coded, meant = code(load_file(folder / "model.safetensors"))
    np.testing.assert_array_equal(acts(folder, coded), acts(folder, meant))


def newer(name: str) -> str:
    name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
    return f"model.{name}" if name.startswith(("vision_backbone.", "projector.")) else name


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"base_model.model.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("language_model.", "language_model._orig_mod.").replace(
            "projector.", "projector.module."
        ),
        lambda name: name.replace("language_model.model.", "model.language_model.").replace("language_model.lm", "lm"),
        newer,
        lambda name: f"model.{name}",
        lambda name: f"_orig_mod.{newer(name)}".replace("scale_factor", "gamma"),
        lambda name: f"policy.module.vla.{newer(name)}",  # a model inside another
        lambda name: f"base_model.{name}",
    ],
)
def test_names_in_every_layout_are_one_model(folder: Path, rename: Callable[[str], str]) -> None:
    weights = load_file(folder / "model.safetensors")
    plain = acts(folder)
    np.testing.assert_array_equal(acts(folder, {rename(name): value for name, value in weights.items()}), plain)
    head = torch.load(folder / tiny.HEAD, weights_only=True)
    torch.save({f"_orig_mod.{name}": value for name, value in head.items()}, folder / tiny.HEAD)
    np.testing.assert_array_equal(acts(folder), plain)


@pytest.mark.parametrize("rename", [str, newer])
def test_an_adapter_beside_the_weights_is_merged(folder: Path, rename: Callable[[str], str]) -> None:
    weights = load_file(folder / "model.safetensors")
    name = linears(weights)[3]
    rows, columns = weights[name].shape
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, columns, generator=generator), 0.05 * torch.randn(rows, 4, generator=generator)
    merged = weights | {name: (weights[name].float() + 8 / 4 * b @ a).to(weights[name].dtype)}
    expected, plain = acts(folder, merged), acts(folder, weights)
    assert np.abs(expected - plain).max() > 0.1
    stem = rename(name).removesuffix(".weight")
    halves = {f"base_model.model.{stem}.lora_A.weight": a, f"base_model.model.{stem}.lora_B.weight": b}
    save_file(halves, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "openvla/openvla-7b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    np.testing.assert_array_equal(acts(folder, {rename(name): value for name, value in weights.items()}), expected)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / "lora_adapter").mkdir(exist_ok=True)
        shutil.move(folder / file, folder / "lora_adapter" / file)
    np.testing.assert_array_equal(acts(folder, merged), expected)  # published: merged already, the adapter beside it
    (folder / "model.safetensors").unlink()
    with pytest.raises(VegaError, match=r"adapter only.*those of 'openvla/openvla-7b'"):
        acts(folder)


def test_an_adapter_that_nobody_would_look_for_is_refused(folder: Path) -> None:
    below = folder / "default"
    below.mkdir()
    (below / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    with pytest.raises(VegaError, match=r"holds an adapter in 'default/': move its files beside the weights"):
        acts(folder)
    shutil.move(below, folder / "checkpoint-100")  # what training left on its way
    acts(folder)


def test_weights_that_are_no_numbers_are_not_the_kernels_fault(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = linears(weights)[0]
    with pytest.raises(VegaError, match=rf"'{name}'.*holds NaN or infinity"):
        acts(folder, weights | {name: weights[name] * float("nan")})
    coded, _ = in_fp8(weights)
    codes = coded[name].view(torch.uint8).clone()
    codes[0, 0] = 0x7F  # the NaN of float8_e4m3fn
    scale = name.removesuffix("weight") + "weight_scale"
    for wrong in ({name: codes.view(torch.float8_e4m3fn)}, {scale: -coded[scale]}):
        with pytest.raises(VegaError, match=rf"'{name}'.*no number, or scales below 0"):
            acts(folder, coded | wrong)


@pytest.mark.parametrize("tensor", ["all", "mlp.down_proj.weight", "self_attn.v_proj.weight", "input_layernorm.weight"])
def test_weights_that_say_nothing_are_not_the_kernels_fault(tensor: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    own = [name for name in weights if name.startswith("language_model.")]
    if tensor == "all":
        broken = {name: torch.zeros_like(weights[name]) for name in own}
    else:
        name = next(name for name in own if f"layers.0.{tensor}" in name)
        broken = {name: weights[name].float() * 1e30}
    with pytest.raises(VegaError, match=r"^The language model of '.*' gives no usable numbers: download its weights"):
        acts(folder, weights | broken)


def test_what_nobody_uses_is_named_and_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    one = linears(weights)[0].removesuffix("weight")
    for extra in (
        f"{one}bias",
        "language_model.model.layers.2.gate",
        "value_head.weight",
        f"{one}hada_w1_a",
    ):
        with pytest.raises(VegaError, match=f"'{extra}'.*of no use"):
            acts(folder, weights | {extra: torch.ones(3)})
    acts(folder, weights)
    head = torch.load(folder / tiny.HEAD, weights_only=True)
    torch.save(head | {"module.model.log_std": torch.ones(7)}, folder / tiny.HEAD)
    with pytest.raises(VegaError, match=r"'model\.log_std'.*of no use"):
        acts(folder)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.wan_folder(tmp_path_factory.mktemp("kinds") / "wan")


def features(wan: Path, part: str = "", weights: Tensors | None = None) -> torch.Tensor:
    if weights is not None:
        save_file({k: v.contiguous() for k, v in weights.items()}, wan / part / "diffusion_pytorch_model.safetensors")
    simulator = LatentWorldSimulator.from_pretrained(wan, dtype=torch.float32, canvas=(64, 64), grid=(4, 4))
    return simulator(torch.arange(64 * 64 * 3).reshape(1, 1, 64, 64, 3).byte())


def original(name: str) -> str:
    """A name of Wan's own files for one of diffusers' (source: Wan2.1's model.py)."""
    for new, old in (
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"), ("attn2", "cross_attn"), ("to_out.0", "o"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
        ("scale_shift_table", "modulation"), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
        ("norm2", "norm3"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return name


def test_wan_in_eight_bits_and_in_other_layouts(wan: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(wan, tmp_path / "wan")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    plain = features(folder)
    for rename in (original, lambda name: f"model.diffusion_model.{original(name)}", lambda name: f"_orig_mod.{name}"):
        renamed = {rename(name): value for name, value in weights.items()}
        assert torch.equal(features(folder, "transformer", renamed), plain)
    coded, meant = dict(weights), dict(weights)
    for name in [name for name in weights if name.endswith("to_q.weight") or name.endswith("proj.weight")]:
        step = weights[name].abs().max() / 448
        coded[name] = (weights[name] / step).to(torch.float8_e4m3fn)
        coded[name.removesuffix("weight") + "scale_weight"] = step
        meant[name] = coded[name].float() * step
    expected = features(folder, "transformer", meant)
    assert torch.equal(features(folder, "transformer", coded), expected) and not torch.equal(expected, plain)
    LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path / "copy")
    assert torch.equal(features(folder), expected)
    with pytest.raises(VegaError, match=r"'blocks\.0\.attn1\.to_q\.weight'.*no scale"):
        features(folder, "transformer", {k: v for k, v in coded.items() if not k.endswith("scale_weight")})
    with pytest.raises(VegaError, match=r"'condition_embedder\.image\.weight'.*of no use"):
        features(folder, "transformer", weights | {"condition_embedder.image.weight": torch.ones(2)})
    features(folder, "transformer", weights)
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(VegaError, match=r"'encoder\.extra'.*of no use"):
        features(folder, "vae", vae | {"encoder.extra": torch.ones(2)})


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderKLWan, WanTransformer3DModel]:
    """Wan2.2-TI2V-5B's folder in small, written by diffusers: a patchified residual VAE of 48 channels."""
    folder = tmp_path_factory.mktemp("kinds") / "ti2v"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
            scale_factor_spatial=16, latents_mean=torch.randn(48).tolist(), latents_std=(torch.rand(48) + 0.5).tolist(),
        ).eval()  # fmt: skip
        transformer = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=3, text_dim=12, freq_dim=32,
            in_channels=48, out_channels=48,
        ).eval()  # fmt: skip
        save_prompt(torch.randn(1, 12), folder.parent / PROMPT_FILE)
    vae.save_pretrained(folder / "vae")
    transformer.save_pretrained(folder / "transformer")
    shutil.move(folder.parent / PROMPT_FILE, folder / PROMPT_FILE)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"clip_output": False}))  # as published
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "expand_timesteps": True}))
    return folder, vae, transformer


@torch.no_grad()
@pytest.mark.parametrize("mode", ["per_frame", "window"])
def test_wan22_ti2v_sees_what_diffusers_sees(ti2v, mode: str) -> None:
    folder, vae, transformer = ti2v
    simulator = LatentWorldSimulator.from_pretrained(
        folder, dtype=torch.float32, tap=1, canvas=(64, 96), grid=(2, 3), mode=mode, window=5
    )
    frames = torch.randint(0, 256, (2, 5, 64, 96, 3), generator=torch.Generator().manual_seed(1)).byte()
    video = simulator.to_canvas(frames if mode == "window" else frames[:, -1:])
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents = (vae.encode(video).latent_dist.mode() - mean) / std
    ours = simulator.encoder.window(video) if mode == "window" else simulator.encoder.frames(video)
    torch.testing.assert_close(ours, latents, atol=1e-5, rtol=1e-5)
    noisy = add_noise(latents, simulator.noise(latents), simulator.sigma)
    prompt = torch.zeros(2, 512, 12)
    prompt[:, :1] = load_file(folder / PROMPT_FILE)["prompt_embedding"]
    found: list[torch.Tensor] = []
    hook = transformer.blocks[1].register_forward_hook(lambda module, inputs, output: found.append(output))
    tokens = latents.shape[2] * 2 * 3
    transformer(noisy, torch.full((2, tokens), simulator.timestep), prompt)  # a timestep for each token
    hook.remove()
    expected = found[0].unflatten(1, (-1, 2, 3))
    torch.testing.assert_close(simulator.tokens(latents), expected, atol=1e-5, rtol=1e-5)
    # The grid is the tokens' own, so pooling changes nothing and the whole way is diffusers'.
    torch.testing.assert_close(simulator(frames), expected[:, -1].flatten(1, 2), atol=1e-4, rtol=1e-4)


def test_wan22_ti2v_streams_and_is_kept(ti2v, tmp_path: Path) -> None:
    simulator = LatentWorldSimulator.from_pretrained(
        ti2v[0], dtype=torch.float32, tap=1, canvas=(64, 64), grid=(2, 2), mode="window", window=5
    )
    video = torch.randint(0, 256, (1, 93, 64, 64, 3), generator=torch.Generator().manual_seed(2)).byte()
    frames, stream = video[:, :5], simulator.open_stream()
    stream.push(frames)
    torch.testing.assert_close(stream.tokens(), simulator(frames), atol=1e-5, rtol=1e-5)
    stream.push(video[:, 5:])  # of another way to group them nothing is left of how it began
    stream.push(frames[:, :1])
    grouped = simulator.to_canvas(torch.cat([video[:, 1:], frames[:, :1]], dim=1))
    torch.testing.assert_close(stream.latents, simulator.encoder.window(grouped)[:, :, -2:], atol=1e-3, rtol=0)
    simulator.save_pretrained(tmp_path)
    assert torch.equal(LatentWorldSimulator.from_pretrained(tmp_path, dtype=torch.float32)(frames), simulator(frames))
    with pytest.raises(VegaError, match="multiples of 32"):
        LatentWorldSimulator.from_pretrained(ti2v[0], tap=1, canvas=(96, 144))


@pytest.fixture
def a14b(wan: Path, tmp_path: Path) -> Path:
    """Wan2.2-T2V-A14B's layout in small: two transformers, of which `transformer_2` sees little noise."""
    folder = shutil.copytree(wan, tmp_path / "a14b")
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    other = {name: 1.1 * value for name, value in weights.items()}
    save_file(other, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "boundary_ratio": 0.875}))
    return folder


def test_of_two_transformers_the_one_that_sees_this_noise_is_read(wan: Path, a14b: Path, tmp_path: Path) -> None:
    assert torch.equal(features(a14b), features(wan))  # timestep 299 of 875
    options = {"dtype": torch.float32, "canvas": (64, 64), "grid": (4, 4), "noise_index": 900}
    frames = torch.arange(64 * 64 * 3).reshape(1, 1, 64, 64, 3).byte()
    noisy = LatentWorldSimulator.from_pretrained(a14b, **options)(frames)
    assert not torch.equal(noisy, LatentWorldSimulator.from_pretrained(wan, **options)(frames))
    LatentWorldSimulator.from_pretrained(a14b, dtype=torch.float32).save_pretrained(tmp_path / "kept")
    assert torch.equal(features(tmp_path / "kept"), features(wan))
    shutil.rmtree(a14b / "transformer")
    assert torch.equal(features(a14b), features(wan))  # the other need not be downloaded
    shutil.rmtree(a14b / "transformer_2")
    with pytest.raises(VegaError, match=r"'transformer_2' sees timestep 299, and it is not there"):
        features(a14b)


@pytest.mark.parametrize("index", [{}, {"boundary_ratio": None}, {"boundary_ratio": 875}, {"boundary_ratio": "high"}])
def test_two_transformers_without_a_boundary_are_refused(a14b: Path, index: dict) -> None:
    (a14b / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(VegaError, match="no boundary_ratio from 0 to 1"):
        features(a14b)
    (a14b / "model_index.json").unlink()
    with pytest.raises(VegaError, match="no boundary_ratio from 0 to 1"):
        features(a14b)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_channels": 36}, r"image-to-video model \(36 channels in, 16 out\)"),
        ({"image_dim": 1280}, "image-to-video"),
    ],
)
def test_models_that_look_at_a_first_frame_are_refused(wan: Path, tmp_path: Path, changes: dict, named: str) -> None:
    folder = shutil.copytree(wan, tmp_path / "wan")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"out_channels": config.get("in_channels", 16)} | changes))
    with pytest.raises(VegaError, match=named):
        features(folder)


def test_parts_of_two_wans_are_refused(wan: Path, ti2v, tmp_path: Path) -> None:
    folder = shutil.copytree(wan, tmp_path / "wan")
    shutil.rmtree(folder / "vae")
    shutil.copytree(ti2v[0] / "vae", folder / "vae")
    with pytest.raises(VegaError, match=r"has 48 channels and its transformer reads 16: they are of different Wans"):
        features(folder)


def test_a_setting_that_the_class_does_not_know_is_refused_where_it_is_on(ti2v, tmp_path: Path) -> None:
    folder = shutil.copytree(ti2v[0], tmp_path / "ti2v")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mixture_of_depths": True}))
    with pytest.raises(VegaError, match="mixture_of_depths"):
        LatentWorldSimulator.from_pretrained(folder, tap=1)
