"""Fusion of semantic and generative tokens: formulas, the start from a pretrained policy, the gate's picture."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from policies.fusion.gated_fusion import AdaptiveGatedFusion, build_fusion, fusion_names, gate_image
from policies.fusion.world_view import CameraView, WorldView
from policies.types import VegaError

GRID = (4, 4)
DIM, GEN_DIM = 32, 12


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 32, DIM, generator=generator), torch.randn(2, 32, GEN_DIM, generator=generator)


@pytest.mark.parametrize("name", fusion_names())
def test_every_fusion_keeps_the_shape_and_uses_what_it_should(name, tokens):
    torch.manual_seed(1)
    f_sem, f_gen = tokens
    fusion = build_fusion(name, DIM, GEN_DIM, grid=GRID).eval()
    fused, gate = fusion(f_sem, f_gen)
    assert fused.shape == f_sem.shape and torch.isfinite(fused).all()
    assert not torch.equal(fused, fusion(f_sem, f_gen.flip(1))[0])
    assert torch.equal(fused, fusion(f_sem.flip(-1), f_gen)[0]) == (name == "generative_only")
    if gate is not None:
        assert gate.shape == (2, 32, 1) and (gate >= 0).all() and (gate <= 1).all()


@pytest.mark.parametrize("name", fusion_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unchanged_start_passes_f_sem_bit_for_bit_and_can_learn(name, dtype, tokens):
    f_sem, f_gen = (x.to(dtype) for x in tokens)
    fusion = build_fusion(name, DIM, GEN_DIM, grid=GRID, unchanged=True).eval().to(dtype)
    fused, _ = fusion(f_sem, f_gen)
    assert torch.equal(fused, f_sem)
    fused.float().square().sum().backward()
    assert fusion.residual.grad.abs() > 0


@pytest.mark.parametrize(
    "name, blend", [("token_gate", "normed"), ("token_gate_raw", "raw"), ("channel_gate", "normed")]
)
def test_gate_follows_the_paper(name, blend, tokens):
    f_sem, f_gen = tokens
    fusion = build_fusion(name, DIM, GEN_DIM)
    fused, gate = fusion(f_sem, f_gen)
    first, last = fusion.project[0], fusion.project[2]
    gen = F.linear(F.gelu(F.linear(f_gen, first.weight, first.bias)), last.weight, last.bias)
    a, b = F.layer_norm(f_sem, (DIM,)), F.layer_norm(gen, (DIM,))
    g = torch.sigmoid(torch.cat([a, b], -1) @ fusion.gate.weight.T + fusion.gate.bias)
    expected = g * a + (1 - g) * b if blend == "normed" else g * f_sem + (1 - g) * gen
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(gate, g.mean(-1, keepdim=True))


def test_residual_variant_moves_a_fifth_of_the_way(tokens):
    torch.manual_seed(2)
    residual = build_fusion("token_gate_residual", DIM, GEN_DIM)
    raw = build_fusion("token_gate_raw", DIM, GEN_DIM)
    raw.load_state_dict({k: v for k, v in residual.state_dict().items() if k != "residual"})
    f_sem, f_gen = tokens
    torch.testing.assert_close(residual(f_sem, f_gen)[0], f_sem + 0.2 * (raw(f_sem, f_gen)[0] - f_sem))


def test_cross_attention_looks_only_at_the_same_image(tokens):
    f_sem, f_gen = tokens
    fusion = build_fusion("cross_attention", DIM, GEN_DIM, grid=GRID).eval()
    other = f_gen.clone()
    other[:, 16:] += 1.0 + torch.arange(GEN_DIM)
    before, after = fusion(f_sem, f_gen)[0], fusion(f_sem, other)[0]
    assert torch.equal(before[:, :16], after[:, :16]) and not torch.equal(before[:, 16:], after[:, 16:])


def test_a_gate_lies_over_the_part_of_the_frame_it_speaks_of():
    gate = np.arange(6, dtype=np.float32).reshape(2, 3) / 6
    image = gate_image(gate, (40, 60), (0.25, 0.5, 0.75, 1.0))
    assert image.dtype == np.float32 and image.shape == (40, 60)
    np.testing.assert_array_equal(image[10:30, 30:], np.kron(gate, np.ones((10, 10), np.float32)))
    assert image[:10].min() == image[30:].min() == image[:, :30].min() == 1
    np.testing.assert_array_equal(gate_image(gate, (2, 3)), gate)


def test_the_world_view_gives_each_camera_its_own_gate():
    fusion = build_fusion("token_gate", DIM, GEN_DIM)
    view = WorldView(
        UntrainedSimulator(),
        {"front": CameraView((32, 48), (2, 3)), "wrist": CameraView((32, 32), (2, 2))},
        fusion,
    )
    f_sem = {"front": torch.randn(1, 6, DIM), "wrist": torch.randn(1, 4, DIM)}
    f_gen = {"front": torch.randn(1, 6, GEN_DIM), "wrist": torch.randn(1, 4, GEN_DIM)}
    fused, gates = view.fuse(f_sem, f_gen)
    for camera in f_sem:
        tokens, gate = fusion(f_sem[camera], f_gen[camera])
        torch.testing.assert_close(fused[camera], tokens)
        torch.testing.assert_close(gates[camera].flatten(1), gate[..., 0])
    assert gates["front"].shape == (1, 2, 3) and gates["wrist"].shape == (1, 2, 2)


class UntrainedSimulator:
    """Lets itself be looked through; this test asks nothing else of it."""

    def looking(self, **where):
        return self


def test_bad_input_is_named(tokens):
    f_sem, f_gen = tokens
    with pytest.raises(VegaError, match="token_gate_residual"):
        build_fusion("gated", DIM, GEN_DIM)
    with pytest.raises(VegaError, match="unknown"):
        build_fusion("add_raw", DIM, GEN_DIM)
    with pytest.raises(VegaError, match="12 generative channels"):
        AdaptiveGatedFusion(DIM, GEN_DIM)(f_sem, f_gen[:, :16])
    with pytest.raises(VegaError, match="Blend"):
        AdaptiveGatedFusion(DIM, GEN_DIM, blend="mixed")
