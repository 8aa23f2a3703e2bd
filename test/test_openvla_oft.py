"""Loading OpenVLA-OFT in the layouts that are published, and what it computes where no golden vector reaches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from policies.files import weight_files
from policies.openvla.loading import load_openvla_oft
from policies.openvla.preprocessing import EMPTY_TOKEN
from policies.types import VegaError

GOLDEN = Path(__file__).parent / "golden" / "openvla_oft_tiny"
HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"
FILM = "vision_backbone--150000_checkpoint.pt"
WIDTH = 32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden checkpoint that a test may change."""
    ignored = shutil.ignore_patterns("*.npz", "state_dict_shapes.json")
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint", ignore=ignored))


@pytest.fixture(scope="module")
def model():
    return load_openvla_oft(GOLDEN, dtype=torch.float32)


def inputs(images=2, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 6 * images, 224, 224, generator=generator)
    return pixels, [[1, 500 + i, 600, EMPTY_TOKEN] for i in range(batch)], torch.rand(batch, 8, generator=generator)


def test_a_sharded_folder_loads_like_a_single_file(folder, model):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_openvla_oft(folder, dtype=torch.float32)
    assert torch.equal(loaded(*inputs()), model(*inputs()))

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(VegaError, match=r"model-00002-of-00002\.safetensors"):
        load_openvla_oft(folder)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_of_a_batch_do_not_touch_each_other(attention, dtype):
    model = load_openvla_oft(GOLDEN, dtype=dtype, attention=attention)
    pixels, ids, proprio = inputs(batch=3)
    ids[1] += [700, 701, 702, EMPTY_TOKEN]
    together = model(pixels, ids, proprio)
    for i in range(3):
        alone = model(pixels[i : i + 1], ids[i : i + 1], proprio[i : i + 1])
        close = 1e-5 if dtype is torch.float32 else 0.05  # actions reach 4, of which bf16 keeps 8 bits
        torch.testing.assert_close(together[i : i + 1], alone, atol=close, rtol=close)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_bidirectional(attention, model):
    loaded = load_openvla_oft(GOLDEN, dtype=torch.float32, attention=attention)
    torch.testing.assert_close(loaded(*inputs()), model(*inputs()), atol=1e-5, rtol=1e-5)


def test_a_causal_kernel_is_refused():
    loaded = load_openvla_oft(GOLDEN, dtype=torch.float32)
    for layer in loaded.layers:
        layer.self_attn.is_causal = True
    with pytest.raises(VegaError, match="causal"):
        loaded.check_attention()


def whatever(config, embeddings, mask):
    return None


def as_booleans(config, embeddings, mask):
    return mask[:, None, None]


@pytest.mark.parametrize(("attention", "mistake"), [("eager", as_booleans), ("eager", whatever), ("sdpa", whatever)])
def test_a_kernel_that_sees_padding_is_refused(attention, mistake, monkeypatch):
    monkeypatch.setattr("policies.openvla.model.create_bidirectional_mask", mistake)
    with pytest.raises(VegaError, match="sees the padding"):
        load_openvla_oft(GOLDEN, dtype=torch.float32, attention=attention)


def test_fusion_changes_what_the_language_model_sees(model):
    arguments = inputs()
    assert torch.equal(model(*arguments, fuse=lambda f_sem: f_sem), model(*arguments))
    assert not torch.equal(model(*arguments, fuse=lambda f_sem: 2 * f_sem), model(*arguments))


def test_one_image_without_robot_state(folder):
    (folder / PROPRIO).unlink()
    loaded = load_openvla_oft(folder)
    pixels, ids, proprio = inputs(images=1)
    assert loaded.info.proprio_dim == 0 and loaded(pixels, ids).shape == (1, 8, 7)
    with pytest.raises(VegaError, match="takes no robot state"):
        loaded(pixels, ids, proprio)


def test_joint_space_kind_with_25_steps_of_14(folder):
    head = {k.removeprefix("module."): v for k, v in torch.load(folder / HEAD, weights_only=True).items()}
    head |= {
        "model.layer_norm1.weight": torch.ones(14 * WIDTH),
        "model.layer_norm1.bias": torch.zeros(14 * WIDTH),
        "model.fc1.weight": torch.randn(WIDTH, 14 * WIDTH),
        "model.fc2.weight": torch.randn(14, WIDTH),
        "model.fc2.bias": torch.zeros(14),
    }
    torch.save(head, folder / HEAD)
    proprio = torch.load(folder / PROPRIO, weights_only=True)
    torch.save(proprio | {"module.fc1.weight": torch.randn(WIDTH, 14)}, folder / PROPRIO)
    loaded = load_openvla_oft(folder)
    assert (loaded.info.chunk_length, loaded.info.action_dim, loaded.info.normalization) == (25, 14, "bounds")
    pixels, ids, _ = inputs(images=3)
    assert loaded(pixels, ids, torch.zeros(1, 14)).shape == (1, 25, 14)


def test_an_unknown_robot_must_say_its_chunk(folder):
    head = torch.load(folder / HEAD, weights_only=True)
    head |= {
        "module.model.layer_norm1.weight": torch.ones(5 * WIDTH),
        "module.model.layer_norm1.bias": torch.zeros(5 * WIDTH),
        "module.model.fc1.weight": torch.randn(WIDTH, 5 * WIDTH),
        "module.model.fc2.weight": torch.randn(5, WIDTH),
        "module.model.fc2.bias": torch.zeros(5),
    }
    torch.save(head, folder / HEAD)
    with pytest.raises(VegaError, match="chunk_length"):
        load_openvla_oft(folder)
    loaded = load_openvla_oft(folder, chunk_length=4, normalization="bounds")
    assert loaded(*inputs()).shape == (1, 4, 5)


def film_state(lora=False):
    """A FiLM backbone file as published: wrapped blocks, and with `lora` every qkv as base and low-rank parts."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, tensor in load_file(GOLDEN / "model.safetensors").items():
        if not key.startswith("vision_backbone."):
            continue
        tower, _, rest = key.removeprefix("vision_backbone.").partition(".")
        if rest.startswith("blocks."):
            number, _, name = rest.removeprefix("blocks.").partition(".")
            rest = f"blocks.{number}.block.{name}"
        if lora and rest.endswith("attn.qkv.weight"):
            stem = f"module.vision_backbone.{tower}.{rest.removesuffix('.weight')}"
            state[f"{stem}.base_layer.weight"] = tensor
            state[f"{stem}.lora_A.default.weight"] = torch.randn(32, tensor.shape[1], generator=generator) * 0.05
            state[f"{stem}.lora_B.default.weight"] = torch.randn(tensor.shape[0], 32, generator=generator) * 0.05
            continue
        if lora and rest.endswith("attn.qkv.bias"):
            rest = rest.replace("qkv.bias", "qkv.base_layer.bias")
        state[f"module.vision_backbone.{tower}.{rest}"] = tensor
    for tower, width, blocks in (("featurizer", 64, 3), ("fused_featurizer", 80, 4)):
        for i in range(blocks):
            for part in ("scale", "shift"):
                stem = f"module.vision_backbone.{tower}.blocks.{i}.{part}"
                state[f"{stem}.weight"] = torch.randn(width, WIDTH, generator=generator)
                state[f"{stem}.bias"] = torch.randn(width, generator=generator) * 0.1
    return state


def plain_tower(state, prefix, image, language, heads=16):
    """A timm ViT with FiLM, written out: its second-to-last block's patch tokens."""

    def linear(x, name):
        return F.linear(x, state[f"{prefix}{name}.weight"].float(), state[f"{prefix}{name}.bias"].float())

    def norm(x, name):
        weight, bias = (state[f"{prefix}{name}.{part}"].float() for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)

    patch, bias = (state[f"{prefix}patch_embed.proj.{part}"].float() for part in ("weight", "bias"))
    x = F.conv2d(image, patch, bias, stride=14).flatten(2).transpose(1, 2) + state[f"{prefix}pos_embed"].float()
    first = [state[f"{prefix}{n}"].float() for n in ("cls_token", "reg_token") if f"{prefix}{n}" in state]
    x = torch.cat([*(part.expand(len(x), -1, -1) for part in first), x], 1)
    blocks = sum(f"{prefix}blocks.{i}.scale.bias" in state for i in range(9))
    for i in range(blocks - 1):
        block = f"blocks.{i}.block."
        scales = [state.get(f"{prefix}{block}ls{n}.scale_factor", torch.ones(1)).float() for n in (1, 2)]
        q, k, v = (
            linear(norm(x, f"{block}norm1"), f"{block}attn.qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        attended = linear((weights @ v).transpose(1, 2).flatten(2), f"{block}attn.proj")
        x = x + scales[0] * attended
        x = x * (1 + linear(language, f"blocks.{i}.scale")) + linear(language, f"blocks.{i}.shift")
        x = x + scales[1] * linear(F.gelu(linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1")), f"{block}mlp.fc2")
    return x[:, sum(part.shape[1] for part in first) :]


@torch.no_grad()
def test_film_looks_at_the_image_in_the_light_of_the_text(folder):
    state = film_state()
    torch.save(state, folder / FILM)
    loaded = load_openvla_oft(folder, dtype=torch.float32)
    pixels, ids, proprio = inputs(images=2)
    words = loaded.embed_tokens(torch.tensor([*ids[0], 2])).mean(0)
    image = pixels.reshape(2, 2, 3, 224, 224)
    towers = ("module.vision_backbone.featurizer.", "module.vision_backbone.fused_featurizer.")
    tokens = [plain_tower(state, tower, image[:, i], words) for i, tower in enumerate(towers)]
    expected = torch.cat(tokens, dim=-1).reshape(1, 512, 144)
    torch.testing.assert_close(loaded.vision_tokens(pixels, ids), expected, atol=1e-4, rtol=1e-4)
    assert loaded(pixels, ids, proprio).shape == (1, 8, 7)
    with pytest.raises(VegaError, match="FiLM"):
        loaded.vision_tokens(pixels)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [None, 8])
def test_lora_of_a_film_backbone_is_merged(folder, alpha):
    state = film_state(lora=True)
    torch.save(state, folder / FILM)
    if alpha is not None:
        (folder / "lora_adapter").mkdir()
        (folder / "lora_adapter" / "adapter_config.json").write_text(json.dumps({"r": 32, "lora_alpha": alpha}))
    loaded = load_openvla_oft(folder, dtype=torch.float32)
    for key in [key for key in state if key.endswith(".base_layer.weight")]:
        stem = key.removesuffix(".base_layer.weight")
        low_rank = state.pop(f"{stem}.lora_B.default.weight") @ state.pop(f"{stem}.lora_A.default.weight")
        merged = state.pop(key).float() + (16 if alpha is None else alpha) / 32 * low_rank
        state[f"{stem}.weight"] = merged.to(torch.bfloat16)
        state[f"{stem}.bias"] = state.pop(f"{stem}.base_layer.bias")
    torch.save(state, folder / FILM)
    expected = load_openvla_oft(folder, dtype=torch.float32)
    assert torch.equal(loaded(*inputs()), expected(*inputs()))


def test_statistics_file_overrides_the_config(folder):
    (folder / "dataset_statistics.json").write_text(json.dumps({"mine": {}}))
    assert list(load_openvla_oft(folder).info.statistics) == ["mine"]
    (folder / "dataset_statistics.json").unlink()
    assert "libero_spatial_no_noops" in load_openvla_oft(folder).info.statistics


def test_image_constants_come_from_the_preprocessor(folder):
    params = [{"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}, {"mean": [0.5] * 3, "std": [0.5] * 3}]
    (folder / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": params}))
    assert load_openvla_oft(folder).info.image_mean_std[0][0] == (0.1, 0.2, 0.3)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(VegaError, match=r"preprocessor_config\.json"):
        load_openvla_oft(folder)


def change(folder, key, tensor):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(key)
    if tensor is not None:
        tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors")


def break_shape(folder):
    change(folder, "projector.fc2.weight", torch.zeros(WIDTH, 99))


def break_key(folder):
    change(folder, "vision_backbone.featurizer.blocks.1.attn.qkv.weight", None)


def break_head(folder):
    torch.save({"module.model.fc1.weight": object}, folder / HEAD)


def diffusion(folder):
    torch.save({"module.noise_predictor.fc1.weight": torch.zeros(1)}, folder / HEAD)


def two_heads(folder):
    shutil.copy(folder / HEAD, folder / "action_head--50000_checkpoint.pt")


def of_another_step(folder):
    (folder / PROPRIO).rename(folder / "proprio_projector--100000_checkpoint.pt")


def pointer(name):
    return lambda folder: (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def setting(name, value):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return damage


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (break_shape, r"projector\.fc2\.weight.*another model"),
        (break_key, r"blocks\.1\.attn\.qkv\.weight.*download"),
        (break_head, "150000_checkpoint.pt.*state dict"),
        (diffusion, "diffusion action head"),
        (lambda folder: shutil.copy(folder / HEAD, folder / "noisy_action_projector--1_checkpoint.pt"), "L1"),
        (
            lambda folder: shutil.copy(folder / HEAD, folder / "gripper_head--1_checkpoint.pt"),
            r"gripper_head.*not know",
        ),
        (two_heads, "several files for the action head"),
        (of_another_step, f"holds '{HEAD}' and 'proprio_projector--100000_checkpoint.pt', which are of different"),
        (pointer(HEAD), f"{HEAD}' is a Git LFS pointer"),
        (pointer("model.safetensors"), "model.safetensors' is a Git LFS pointer"),
        (pickled, r"as 'pytorch_model\.bin': .* save_pretrained"),
        (setting("image_resize_strategy", "letterbox"), "'image_resize_strategy' in .* is 'letterbox', which"),
        (setting("use_fused_vision_backbone", False), "'use_fused_vision_backbone' in .* is False"),
        (setting("timm_model_ids", ["vit_base_patch16_clip_224", "vit_so400m_patch14_siglip_224"]), "'timm_model_ids'"),
        (setting("timm_override_act_layers", ["quick_gelu", None]), "'timm_override_act_layers'"),
        (lambda folder: (folder / HEAD).unlink(), "action_head"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
    ],
)
def test_a_bad_folder_is_named(folder, damage, sentence):
    damage(folder)
    with pytest.raises(VegaError, match=sentence) as error:
        load_openvla_oft(folder)
    assert str(error.value).count("\n") == 0


def test_no_folder_is_named(tmp_path):
    with pytest.raises(VegaError, match="no checkpoint folder"):
        load_openvla_oft(tmp_path / "nothing")


def test_too_little_memory_is_said_before_loading(monkeypatch):
    monkeypatch.setattr(weight_files, "available_bytes", lambda device: 1_000_000)
    monkeypatch.setattr(weight_files, "assign", lambda *_: pytest.fail("something was loaded"))
    with pytest.raises(VegaError, match=r"needs 0\.0 GB on cpu but 0\.0 GB are free"):
        load_openvla_oft(GOLDEN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_said():
    with pytest.raises(VegaError, match="no CUDA device"):
        load_openvla_oft(GOLDEN, device="cuda")


def test_bad_calls_are_named(model):
    pixels, ids, proprio = inputs()
    with pytest.raises(VegaError, match="224"):
        model(pixels[..., :200], ids, proprio)
    with pytest.raises(VegaError, match="needs robot state"):
        model(pixels, ids)
    with pytest.raises(VegaError, match="needs 8"):
        model(pixels, ids, proprio[:, :7])
