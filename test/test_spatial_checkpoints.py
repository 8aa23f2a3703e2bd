"""Spatial-reasoning checkpoints as people have them: adapters are merged, and what nobody would read is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny_reasoner import write_tiny_reasoner

from policies.spatial.reasoner import SpatialReasoner, load_reasoner
from policies.types import VegaError

TOWER = "generative_encoder.tower.model."
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
IDS = torch.arange(5, 35)[None]
FRAME = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In float32, so that what is merged is not rounded."""
    folder = write_tiny_reasoner(tmp_path / "checkpoint")
    change(folder, lambda tensors: tensors.update({name: value.float() for name, value in tensors.items()}))
    return folder


def load(folder: Path) -> SpatialReasoner:
    return load_reasoner(folder, dtype=torch.float32, pixels=None)


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    path = next(path for path in folder.glob("*.safetensors") if "adapter" not in path.name)
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def halves(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = weight.shape
    return torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)


def write_adapter(folder: Path, module: str, weight: torch.Tensor) -> None:
    a, b = halves(weight)
    stem = f"base_model.model.{module}"
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(LORA))


def merge(folder: Path, module: str) -> None:
    """What PEFT makes of the weight, by hand."""

    def add(tensors: Tensors) -> None:
        a, b = halves(tensors[f"{module}.weight"])
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + 4.0 * (b @ a)

    change(folder, add)


def outcome(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    reasoner = load(folder)
    return reasoner.logits(IDS, [])[0], reasoner.see(FRAME).tokens


def take_tower_out(folder: Path) -> None:
    """The video transformer is from now on the one in `wan/`, in float32 too."""
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(TOWER)])
    change(folder / "wan", lambda tensors: tensors.update({name: value.float() for name, value in tensors.items()}))


@pytest.mark.parametrize("newer", [False, True])
def test_an_adapter_beside_the_weights_is_merged(newer: bool, folder: Path) -> None:
    module = "model.layers.1.self_attn.q_proj"
    weight = load_file(folder / "model.safetensors")[f"{module}.weight"]
    before = outcome(folder)
    write_adapter(folder, module.replace("model.", "model.language_model.") if newer else module, weight)
    merged = outcome(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").unlink()
    merge(folder, module)
    expected = outcome(folder)
    assert torch.allclose(merged[0], expected[0], atol=1e-5) and torch.equal(merged[1], before[1])
    assert not torch.allclose(expected[0], before[0], atol=1e-2)


def test_an_adapter_among_the_tower_s_tensors_is_merged(folder: Path) -> None:
    module = f"{TOWER}blocks.0.self_attn.q"
    before = outcome(folder)

    def add(tensors: Tensors) -> None:
        a, b = halves(tensors[f"{module}.weight"])
        tensors |= {f"{module}.lora_A.default.weight": a, f"{module}.lora_B.default.weight": b}

    change(folder, add)
    with pytest.raises(VegaError, match=r"adapter.*scale it does not tell"):
        load(folder)
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    merged = outcome(folder)
    (folder / "adapter_config.json").unlink()
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora" in name])
    merge(folder, module)
    expected = outcome(folder)
    assert torch.allclose(merged[1], expected[1], atol=1e-6)
    assert not torch.allclose(expected[1], before[1], atol=1e-4)


def test_an_adapter_beside_wan_is_merged_where_that_is_used(folder: Path) -> None:
    module, wan = "blocks.0.self_attn.q", folder / "wan"
    weight = load_file(folder / "model.safetensors")[f"{TOWER}{module}.weight"]
    write_adapter(wan, module, weight)
    with pytest.raises(VegaError, match=r"has a video transformer of its own.*move the adapter away"):
        load(folder)
    take_tower_out(folder)
    merged = outcome(folder)
    for path in wan.glob("adapter_*"):
        path.unlink()
    before = outcome(folder)
    merge(wan, module)
    expected = outcome(folder)
    assert torch.allclose(merged[1], expected[1], atol=1e-6)
    assert not torch.allclose(expected[1], before[1], atol=1e-4)


def test_wan_by_its_hub_id_is_downloaded_without_what_is_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcome(folder)
    (folder / "wan").rename(tmp_path / "tiny")
    path = folder / "config.json"
    changes = {
        "generative_encoder_path": "Wan-AI/tiny",
        "generative_vision_tower_prompt_emb_path": str(tmp_path / "tiny" / "wan_prompt_embedding.pt"),
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    asked: dict[str, list[str]] = {}

    def download(name: str, allow_patterns: list[str] | None = None) -> str:
        asked[name] = allow_patterns or ["*"]
        return str(tmp_path / "tiny")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(outcome(folder)[1], before[1])
    published = ["models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json", "assets/comp_effic.png",
                 "text_encoder/model-00001-of-00005.safetensors"]  # fmt: skip
    needed = ["config.json", "Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors", "prompt_embedding.safetensors",
              "diffusion_pytorch_model-00002-of-00006.safetensors", "adapter_config.json", "adapter_model.safetensors",
              "diffusion_pytorch_model.safetensors.index.json"]  # fmt: skip
    patterns = asked["Wan-AI/tiny"]
    assert list(filter_repo_objects([*published, *needed], allow_patterns=patterns)) == needed


def adapter_below(folder: Path) -> None:
    (folder / "mine").mkdir()
    write_adapter(folder / "mine", "lm_head", load_file(folder / "model.safetensors")["lm_head.weight"])


def adapter_alone(folder: Path) -> None:
    take_tower_out(folder)
    path = next((folder / "wan").glob("*.safetensors"))
    write_adapter(folder / "wan", "blocks.0.self_attn.q", load_file(path)["blocks.0.self_attn.q.weight"])
    path.unlink()


def with_tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda tensors: tensors.update({name: torch.zeros(3)}))


def without(part: str) -> Callable[[Path], None]:
    def drop(tensors: Tensors) -> None:
        tensors.pop(next(name for name in tensors if part in name))

    return lambda folder: change(folder, drop)


def damaged(part: str) -> Callable[[Path], None]:
    def spoil(tensors: Tensors) -> None:
        tensors[next(name for name in tensors if part in name)].flatten()[-1:].fill_(torch.nan)

    return lambda folder: change(folder, spoil)


def surplus_in_wan(folder: Path) -> None:
    take_tower_out(folder)
    with_tensor("blocks.0.bogus.weight")(folder / "wan")


def change_vae(folder: Path, edit: Callable[[Tensors], object]) -> None:
    path = folder / "wan" / "Wan2.1_VAE.pth"
    tensors = torch.load(path, weights_only=True)
    edit(tensors)
    torch.save(tensors, path)


def damaged_prompt(folder: Path) -> None:
    path = folder / "wan" / "wan_prompt_embedding.pt"
    torch.save(torch.load(path, weights_only=True) * torch.inf, path)


def branch_left_over(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_generative_encoder": False}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (adapter_below, "adapter in 'mine/'"),
        (adapter_alone, "holds an adapter only"),
        (with_tensor(f"{TOWER}blocks.0.bogus.weight"), r"blocks\.0\.bogus\.weight.*no use"),
        (with_tensor(f"{TOWER}bogus.weight"), r"bogus\.weight.*no use"),
        (with_tensor("generative_bogus.weight"), r"generative_bogus\.weight.*no use"),
        (surplus_in_wan, r"blocks\.0\.bogus\.weight.*no use"),
        (lambda f: change_vae(f, lambda v: v.update({"encoder.extra.weight": torch.zeros(1)})), r"extra.*no use"),
        (lambda f: change_vae(f, lambda v: v["encoder.conv1.bias"].fill_(torch.nan)), "NaN"),
        (damaged_prompt, r"wan_prompt_embedding\.pt.*NaN"),
        (branch_left_over, "generative_.*no use"),
        (without("tower.model.blocks.0.self_attn.q.weight"), r"lacks tensor 'blocks\.0\.self_attn\.q\.weight'"),
        (without("tower.model.blocks.0.self_attn.q.bias"), r"lacks tensor 'blocks\.0\.self_attn\.q\.bias'"),
        (without("tower.model.blocks.1.ffn.0.weight"), r"lacks tensor 'blocks\.1\.ffn"),
        (without("generative_merger.mlp.0.weight"), "incomplete"),
        (damaged("generative_fusion.norm1.weight"), r"generative_fusion\.norm1\.weight.*NaN"),
        (damaged("generative_merger.mlp.2.bias"), r"generative_merger\.mlp\.2\.bias.*NaN"),
        (damaged("tower.model.blocks.1.self_attn.q.weight"), "NaN"),
        (damaged("visual.blocks.0.attn.qkv.bias"), r"visual\.blocks\.0\.attn\.qkv\.bias.*NaN"),
        (damaged("lm_head.weight"), r"lm_head\.weight.*NaN"),
    ],
)
def test_what_is_damaged_or_would_be_ignored_is_one_sentence(
    damage: Callable[[Path], None], sentence: str, folder: Path
) -> None:
    load(folder)
    damage(folder)
    with pytest.raises(VegaError, match=sentence) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
