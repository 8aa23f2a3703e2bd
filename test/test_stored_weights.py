"""Weights as people store them: in eight bits, with adapters, under the names of whatever wrapped the model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from policies.files.quantised import Dequantised
from policies.files.tensor_names import without_wrappers
from policies.files.tensor_sources import DictSource, refuse_unread
from policies.files.weight_files import open_weights
from policies.types import VegaError

WEIGHT = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
FP8 = torch.float8_e4m3fn


def everything(source) -> dict[str, torch.Tensor]:
    return {name: source.read(name) for name in source.names()}


def bitsandbytes(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """LLM.int8's vector-wise quantisation."""
    peak = weight.abs().amax(1)
    codes = (weight / peak[:, None] * 127).round().to(torch.int8)
    return {"weight": codes, "SCB": peak, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def fp8(weight: torch.Tensor, name: str, shape: str) -> dict[str, torch.Tensor]:
    if shape == "rows":
        step = weight.abs().amax(1, keepdim=True) / 448
        return {"weight": (weight / step).to(FP8), name: step}
    if shape == "blocks":
        padded = nn.functional.pad(weight, (0, -weight.shape[1] % 128, 0, -weight.shape[0] % 128))
        tiles = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
        step = tiles.abs().amax((1, 3)) / 448
        codes = (tiles / step[:, None, :, None]).flatten(2).flatten(0, 1)[: weight.shape[0], : weight.shape[1]]
        return {"weight": codes.to(FP8), name: step}
    step = weight.abs().max() / 448
    return {"weight": (weight / step).to(FP8), name: step.reshape(()) if shape == "scalar" else step.reshape(1)}


def int8(weight: torch.Tensor, asymmetric: bool) -> dict[str, torch.Tensor]:
    """compressed-tensors: one scale per row, and zero points where it is asymmetric."""
    low, high = (weight.amin(1, keepdim=True), weight.amax(1, keepdim=True))
    zero = torch.zeros(len(weight), 1)
    scale = weight.abs().amax(1, keepdim=True) / 127
    if asymmetric:
        scale = (high - low) / 255
        zero = (-128 - low / scale).round()
    stored = {"weight": (weight / scale + zero).round().clamp(-128, 127).to(torch.int8), "weight_scale": scale}
    return stored | ({"weight_zero_point": zero.to(torch.int8)} if asymmetric else {})


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        (bitsandbytes(WEIGHT), 0.5 / 127),
        (fp8(WEIGHT, "weight_scale", "scalar"), 1 / 16),
        (fp8(WEIGHT, "weight_scale", "rows") | {"input_scale": torch.ones(())}, 1 / 16),
        (fp8(WEIGHT, "scale_weight", "one") | {"scale_input": torch.ones(1)}, 1 / 16),
        (fp8(WEIGHT, "weight_scale_inv", "blocks"), 1 / 16),
        (int8(WEIGHT, False), 0.5 / 127),
        (int8(WEIGHT, True), 1 / 127),
    ],
    ids=["LLM.int8", "fp8", "fp8 rows", "ComfyUI", "fp8 blocks", "int8", "int8 asymmetric"],
)
def test_documented_codes_are_numbers_again(stored: dict[str, torch.Tensor], error: float) -> None:
    """Whoever ignored or mistook a scale would be off by far more than the codes are coarse."""
    source = Dequantised(DictSource("file", {f"layer.{name}": value for name, value in stored.items()}))
    assert list(source.names()) == ["layer.weight"] and source.shape("layer.weight") == (200, 300)
    found = source.read("layer.weight")
    assert (found - WEIGHT).abs().max() <= error * WEIGHT.abs().max()
    assert torch.equal(source.read("layer.weight", slice(130, 170)), found[130:170])
    refuse_unread(source, lambda name: False)


def test_blocks_are_those_of_transformers() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = torch.randn(256, 384)
    stored = fp8(weight, "weight_scale_inv", "blocks")
    source = Dequantised(DictSource("file", {f"layer.{name}": value for name, value in stored.items()}))
    theirs = Fp8Dequantize(type("Quantizer", (), {"quantization_config": None})())._dequantize_one(
        stored["weight"], stored["weight_scale_inv"]
    )
    torch.testing.assert_close(source.read("layer.weight"), theirs.float(), rtol=1e-2, atol=1e-6)


def changed(stored: dict[str, torch.Tensor], **other: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: value for name, value in (stored | other).items() if value is not None}


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (changed(bitsandbytes(WEIGHT), SCB=None), r"layer\.weight.*no scale"),
        (changed(bitsandbytes(WEIGHT), SCB=torch.ones(300)), r"layer\.SCB.*\(300,\)"),
        (changed(bitsandbytes(WEIGHT), weight_format=torch.tensor(2, dtype=torch.uint8)), r"weight_format.*tiles"),
        (changed(bitsandbytes(WEIGHT), SCB=torch.full((200,), math.nan)), r"layer\.SCB"),
        (changed(fp8(WEIGHT, "weight_scale", "one"), weight_scale=None), r"layer\.weight.*no scale"),
        (changed(fp8(WEIGHT, "weight_scale", "one"), scale_weight=torch.ones(1)), "two scales"),
        (changed(fp8(WEIGHT, "weight_scale", "one"), weight_scale=torch.ones(1, 300)), r"weight_scale.*\(1, 300\)"),
        (changed(fp8(WEIGHT, "weight_scale", "one"), weight_scale=torch.ones(4, 5)), r"weight_scale.*\(4, 5\)"),
        (changed(fp8(WEIGHT, "weight_scale_inv", "blocks"), weight_scale_inv=torch.ones(4, 5)), "weight_scale_inv"),
        ({"weight": WEIGHT, "weight_scale": torch.ones(1)}, r"layer\.weight_scale.*of no use"),
        ({"weight": (WEIGHT * 9).to(torch.uint8)}, r"layer\.weight.*uint8"),
        ({"weight": (WEIGHT * 9).to(torch.int32)}, r"layer\.weight.*int32"),
        ({"qweight": torch.zeros(2, 2, dtype=torch.int32), "scales": torch.ones(2)}, "GPTQ"),
        ({"weight": torch.zeros(9, 1, dtype=torch.uint8), "weight.absmax": torch.ones(9)}, "bitsandbytes in 4 bits"),
        ({"weight._data": torch.zeros(9, 1, dtype=torch.int8), "weight._scale": torch.ones(9)}, "quanto"),
        ({"weight_packed": torch.zeros(9, 1, dtype=torch.int32), "weight_scale": torch.ones(9)}, "packed"),
        (changed(fp8(WEIGHT, "weight_scale", "one"), weight_scale_2=torch.ones(1)), "ModelOpt"),
    ],
)
def test_what_no_format_documents_is_refused_by_name(stored: dict[str, torch.Tensor], named: str) -> None:
    with pytest.raises(VegaError, match=named):
        source = Dequantised(DictSource("file", {f"layer.{name}": value for name, value in stored.items()}))
        source.read("layer.weight")
        refuse_unread(source, lambda name: False)


@given(st.lists(st.sampled_from(["_orig_mod", "module", "_fsdp_wrapped_module", "base_model.model"]), max_size=4))
def test_what_wrappers_leave_in_names_is_stripped(marks: list[str]) -> None:
    assert without_wrappers(".".join([*marks, "model.layers.0.q_proj.weight"])) == "model.layers.0.q_proj.weight"
    assert (
        without_wrappers("vision_backbone._orig_mod.featurizer.module.norm.bias")
        == "vision_backbone.featurizer.norm.bias"
    )


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2), "module.a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(VegaError, match=r"'a\.weight' and 'module\.a\.weight'"):
        open_weights(tmp_path)


def test_a_file_that_nobody_would_read_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )
    assert list(open_weights(tmp_path).names()) == ["a"]
    save_file({"b": torch.ones(2)}, tmp_path / "more.safetensors")
    with pytest.raises(VegaError, match=r"more\.safetensors.*move it away"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"a": torch.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(VegaError, match=r"Tensor 'a' is in 'more.safetensors' and in 'model"):
        open_weights(tmp_path)


class Net(nn.Module):
    """Every kind of layer that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.conv = nn.Conv2d(3, 16, 3)
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(16, 16), "up": nn.Linear(16, 24)}) for _ in range(2))
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


LORAS = {
    "plain": {"target_modules": ["q", "up"]},
    "rslora": {"target_modules": ["q", "up"], "use_rslora": True},
    "dora": {"target_modules": ["q", "up"], "use_dora": True},
    "patterns": {
        "target_modules": ["q", "up"],
        "rank_pattern": {"blocks.0.q": 3, "up": 2},
        "alpha_pattern": {r"blocks.\d.up": 5},
    },
    "saved modules": {"target_modules": ["q"], "modules_to_save": ["head"]},
    "biases": {"target_modules": ["q", "head"], "bias": "all"},
    "lora bias": {"target_modules": ["q", "up"], "lora_bias": True},
    "embedding and convolution": {"target_modules": ["embed", "conv", "up"]},
    "all linear": {"target_modules": "all-linear", "fan_in_fan_out": False},
}


@pytest.fixture
def adapted(request: pytest.FixtureRequest, tmp_path: Path):
    """A folder with weights and their adapter, the adapted model, and its weights as `peft` merges them."""
    import peft

    torch.manual_seed(0)
    net = Net()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    model = peft.get_peft_model(net, peft.LoraConfig(r=4, lora_alpha=10, **LORAS[request.param]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter).abs() if "magnitude" in name else
                               0.3 * torch.randn_like(parameter))  # fmt: skip
    model.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return tmp_path, state, model.merge_and_unload().state_dict()


@pytest.mark.parametrize("adapted", LORAS, indirect=True)
def test_an_adapter_is_merged_as_peft_does_it(adapted) -> None:
    folder, inside, merged = adapted
    source = open_weights(folder)
    for name, value in merged.items():
        torch.testing.assert_close(source.read(name), value, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(source.read(name, slice(1, 3)), value[1:3], rtol=1e-5, atol=1e-6, msg=name)
    refuse_unread(source, lambda name: False)
    # The same with the adapter among the weights, as `save_file(model.state_dict())` leaves it.
    (folder / "adapter_model.safetensors").unlink()
    save_file({name: value.contiguous() for name, value in inside.items()}, folder / "model.safetensors")
    source = open_weights(folder)
    assert set(source.names()) == set(merged)
    for name, value in merged.items():
        torch.testing.assert_close(source.read(name), value, rtol=1e-5, atol=1e-6, msg=name)
    refuse_unread(source, lambda name: False)


def kohya(tmp_path: Path, **names: str) -> Path:
    a, b = torch.randn(4, 16), torch.randn(24, 4)
    tensors = {"up.weight": torch.randn(24, 16), names["down"]: a, names["up"]: b, "up.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        {"down": "up.lora_down.weight", "up": "up.lora_up.weight"},
        {"down": "up.lora.down.weight", "up": "up.lora.up.weight"},
        {"down": "up.lora_A.weight", "up": "up.lora_B.weight"},
    ],
)
def test_the_scale_may_stand_in_the_file(names: dict[str, str], tmp_path: Path) -> None:
    folder = kohya(tmp_path, **names)
    raw = load_file(folder / "model.safetensors")
    expected = raw["up.weight"] + 2.0 / 4 * raw[names["up"]] @ raw[names["down"]]
    source = open_weights(folder)
    assert list(source.names()) == ["up.weight"]
    torch.testing.assert_close(source.read("up.weight"), expected)
    del raw["up.alpha"]
    save_file(raw, folder / "model.safetensors")
    with pytest.raises(VegaError, match=r"whose scale it does not tell: put the adapter_config\.json"):
        open_weights(folder)


@pytest.mark.parametrize("adapted", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "LOHA"}, "kind LOHA"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights'"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication'"),
        ({"r": 8}, "rank 4.*says 8"),
        ({"lora_alpha": None}, "'lora_alpha'"),
        ({"lora_alpha": float("nan")}, r"adapter_config\.json' gives no finite numbers for 'r' and 'lora_alpha'"),
        ({"lora_alpha": 1e300}, r"adapter of 'blocks\.0.*' in '.*adapter_model\.safetensors' .* too large to merge"),
        ({"use_bdlora": {"nblocks": 2}}, "'use_bdlora'"),
        ({"arrow_config": {"top_k": 2}}, "'arrow_config'"),
        ({"a_setting_of_a_later_peft": 2.0}, "'a_setting_of_a_later_peft'"),
        ({"use_dora": True}, "lacks its magnitudes"),
        ({"use_rslora": "false"}, "'use_rslora'.*true or false"),
    ],
)
def test_adapters_that_are_merged_otherwise_are_refused(adapted, change: dict, named: str) -> None:
    path = adapted[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VegaError, match=named):
        everything(open_weights(adapted[0]))


@pytest.mark.parametrize("adapted", ["plain"], indirect=True)
def test_an_adapter_without_numbers_is_named_and_not_the_weights(adapted) -> None:
    path, one = adapted[0] / "adapter_model.safetensors", "base_model.model.blocks.0.q.lora_B.weight"
    halves = load_file(path)
    save_file(halves | {one: halves[one] * float("nan")}, path)
    with pytest.raises(VegaError, match=rf"^The adapter of 'blocks\.0\.q' in '{path}' holds NaN or infinity"):
        everything(open_weights(adapted[0]))


@pytest.mark.parametrize("adapted", ["plain"], indirect=True)
def test_halves_of_adapters_are_refused(adapted) -> None:
    folder = adapted[0]
    adapter, base = load_file(folder / "adapter_model.safetensors"), load_file(folder / "model.safetensors")

    def refused(named: str, **files: dict[str, torch.Tensor] | None) -> None:
        for name, tensors in ({"adapter_model": adapter, "model": base} | files).items():
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
            if tensors is not None:
                save_file(tensors, folder / f"{name}.safetensors")
        with pytest.raises(VegaError, match=named):
            open_weights(folder)

    one = "base_model.model.blocks.0.q.lora_A.weight"
    refused("lacks its other half", adapter_model={k: v for k, v in adapter.items() if k != one})
    refused("adapts nothing", model={k: v for k, v in base.items() if k != "blocks.0.q.weight"})
    refused("of size", adapter_model=adapter | {one: torch.ones(4, 9)})
    refused("adapts nothing", adapter_model=adapter | {"base_model.model.other.weight": torch.ones(2)})
    refused("not merge", adapter_model=adapter | {"base_model.model.blocks.0.q.lora_C.weight": torch.ones(2)})
    refused(r"holds an adapter only.*those of 'None'", model=None)
    refused("but an adapter is one", adapter_model=None)
    (folder / "adapter_config.json").unlink()
    refused("but an adapter is one")
