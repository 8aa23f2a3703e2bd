"""Makes vae/, world_cases.npz and fusions.npz:  python make_world_cases.py

Frames to pooled tokens as others compute them: Pillow and OpenCV place a frame on the canvas, diffusers'
AutoencoderKLWan (whole, with its own chunks of time) and WanTransformer3DModel make latents and tokens, and pooling and
fusion are the formulas of the paper and of its code, written out in NumPy in double precision.  Nothing of this package
is imported.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent
TIMESTEP, SIGMA, TAP = 299, 0.29992, 4
TOKEN_PX = 16
# name: frame (H, W), frames, canvas, framing, grid, view
CASES = {
    "square": ((40, 40), 1, (64, 64), "registered", (4, 4), (0.02, 0.02, 0.98, 0.98)),
    "wide": ((72, 120), 1, (64, 96), "registered", (3, 5), (0.0, 0.1, 0.9, 1.0)),
    "cropped": ((50, 50), 1, (48, 80), "official", (2, 4), (0.0, 0.0, 1.0, 1.0)),
    "window": ((64, 64), 9, (64, 64), "registered", (4, 4), (0.0, 0.0, 1.0, 1.0)),
}


def tiny_vae() -> AutoencoderKLWan:
    """Wan's VAE in its own architecture, four base channels; latents far from mean 0 and deviation 1."""
    torch.manual_seed(7)
    numbers = np.random.default_rng(7)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16,
        latents_mean=[round(float(x), 4) for x in numbers.uniform(-1, 1, 16)],
        latents_std=[round(float(x), 4) for x in numbers.uniform(0.5, 3, 16)],
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in vae.parameters():
            # As large as in a trained one, so that every tensor counts; norms and biases are not left at 1 and 0.
            if parameter.ndim > 3:
                parameter.mul_(1.7)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return vae


def placed(frame: np.ndarray, canvas: tuple[int, int], framing: str) -> np.ndarray:
    """A frame (H, W, 3) uint8 on the canvas: (rows, columns, 3) float in [-1, 1], black where there is none."""
    height, width = frame.shape[:2]
    if framing == "registered":
        scale = min(canvas[0] / height, canvas[1] / width)
        size = round(height * scale), round(width * scale)
        planes = [Image.fromarray(frame[..., c].astype(np.float32), "F") for c in range(3)]
        small = np.stack([np.asarray(p.resize(size[::-1], Image.Resampling.BILINEAR)) for p in planes], -1)
        shown = np.full((*canvas, 3), -1.0)
        top, left = (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
        shown[top : top + size[0], left : left + size[1]] = small / 127.5 - 1
        return shown
    scale = max(canvas[0] / height, canvas[1] / width)
    size = round(height * scale), round(width * scale)
    large = cv2.resize(frame.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    top, left = (size[0] - canvas[0]) // 2, (size[1] - canvas[1]) // 2
    return large[top : top + canvas[0], left : left + canvas[1]] / 127.5 - 1


def area_means(tokens: np.ndarray, start: float, stop: float, cells: int) -> np.ndarray:
    """Means over equal cells of [start, stop] along the first axis, tokens taken as constant: by their integral."""
    integral = np.concatenate([np.zeros((1, *tokens.shape[1:])), np.cumsum(tokens, 0)])
    edges = np.linspace(start, stop, cells + 1)
    low = np.clip(np.floor(edges).astype(int), 0, len(tokens) - 1)
    rest = (edges - low).reshape(-1, *[1] * (tokens.ndim - 1))
    at = integral[low] + rest * tokens[low]
    return (at[1:] - at[:-1]) / (edges[1] - edges[0])


def pooled(tokens: np.ndarray, frame: tuple[int, int], canvas: tuple[int, int], framing: str, grid: tuple[int, int],
           view: tuple[float, float, float, float]) -> np.ndarray:  # fmt: skip
    """Tokens (rows, columns, D) -> (grid rows * grid columns, D)."""
    tokens = tokens.astype(np.float64)
    if framing == "official":
        def bins(n: int, g: int) -> list[slice]:
            return [slice(i * n // g, math.ceil((i + 1) * n / g)) for i in range(g)]

        rows, columns = bins(tokens.shape[0], grid[0]), bins(tokens.shape[1], grid[1])
        return np.stack([tokens[r, c].mean((0, 1)) for r in rows for c in columns])
    scale = min(canvas[0] / frame[0], canvas[1] / frame[1])
    sizes = [round(side * scale) for side in frame]
    for axis in (0, 1):
        begin = (canvas[axis] - sizes[axis]) // 2
        start, stop = (begin + view[axis + 2 * k] * sizes[axis] for k in (0, 1))
        moved = area_means(np.moveaxis(tokens, axis, 0), start / TOKEN_PX, stop / TOKEN_PX, grid[axis])
        tokens = np.moveaxis(moved, 0, axis)
    return tokens.reshape(-1, tokens.shape[-1])


@torch.no_grad()
def make_worlds(vae: AutoencoderKLWan) -> None:
    transformer = WanTransformer3DModel.from_pretrained(HERE / "transformer").float().eval()
    found: list[torch.Tensor] = []
    transformer.blocks[TAP].register_forward_hook(lambda module, inputs, output: found.append(output))
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    text = torch.zeros(1, 512, transformer.config.text_dim)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randn(3, transformer.config.text_dim, generator=generator)
    text[0, :3] = prompt
    arrays: dict[str, np.ndarray] = {}
    for name, (size, count, canvas, framing, grid, view) in CASES.items():
        coarse = torch.randint(0, 256, (count, 3, 7, 9), generator=generator).float()
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255)
        frames = smooth.permute(0, 2, 3, 1).byte().numpy()
        shown = np.stack([placed(frame, canvas, framing) for frame in frames])  # (T, rows, columns, 3)
        video = torch.from_numpy(shown).float().permute(3, 0, 1, 2)[None]
        latents = (vae.encode(video).latent_dist.mode() - mean) / std
        noise = torch.randn(latents.shape, generator=generator)
        noisy = (1 - SIGMA) * latents + SIGMA * noise
        found.clear()
        transformer(noisy, torch.tensor([TIMESTEP]), text)
        rows, columns = canvas[0] // TOKEN_PX, canvas[1] // TOKEN_PX
        newest = found[0][0].reshape(-1, rows, columns, found[0].shape[-1])[-1].numpy()
        values = {
            "frames": frames, "canvas": video[0].numpy(), "latents": latents[0].numpy(), "noise": noise[0].numpy(),
            "features": newest, "pooled": pooled(newest, size, canvas, framing, grid, view).astype(np.float32),
            "prompt": prompt.numpy(), "grid": np.asarray(grid), "view": np.asarray(view), "tap": np.asarray(TAP),
            "framing": np.asarray(framing),
        }  # fmt: skip
        arrays |= {f"{name}_{key}": value for key, value in values.items()}
    np.savez_compressed(HERE / "world_cases.npz", **arrays)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def fused(name: str, w: dict[str, np.ndarray], sem: np.ndarray, raw_gen: np.ndarray) -> np.ndarray:
    """VEGA-3D's fusions: the paper's Eq. 7 and 8, its code where `_raw` is not said, a learned residual where there is
    one."""
    gen = gelu(raw_gen @ w["project.0.weight"].T + w["project.0.bias"]) @ w["project.2.weight"].T + w["project.2.bias"]
    if "norm_sem.weight" in w:
        a = layer_norm(sem, w["norm_sem.weight"], w["norm_sem.bias"])
        b = layer_norm(gen, w["norm_gen.weight"], w["norm_gen.bias"])
    if "gate.weight" in w:
        gate = 1 / (1 + np.exp(-(np.concatenate([a, b], -1) @ w["gate.weight"].T + w["gate.bias"])))
        raw = name.endswith("_raw") or name == "token_gate_residual"
        mixed = gate * (sem if raw else a) + (1 - gate) * (gen if raw else b)
    elif name == "add":
        mixed = sem + gen
    elif name == "concat":
        mixed = np.concatenate([a, b], -1) @ w["merge.weight"].T + w["merge.bias"]
    elif name == "weighted":
        mixed = (w["weights"][0] * sem + w["weights"][1] * gen) / w["weights"].sum()
    else:
        mixed = gen
    return sem + w["residual"] * (mixed - sem) if "residual" in w else mixed


def make_fusions(dim: int = 16, gen: int = 24, tokens: int = 12) -> None:
    numbers = np.random.default_rng(11)

    def draw(*shape: int) -> np.ndarray:
        return numbers.normal(0, 0.4, shape)

    projector = {"project.0.weight": (dim, gen), "project.0.bias": (dim,), "project.2.weight": (dim, dim),
                 "project.2.bias": (dim,)}  # fmt: skip
    norms = {f"norm_{s}.{leaf}": (dim,) for s in ("sem", "gen") for leaf in ("weight", "bias")}
    gates = {1: norms | {"gate.weight": (1, 2 * dim), "gate.bias": (1,)},
             dim: norms | {"gate.weight": (dim, 2 * dim), "gate.bias": (dim,)}}  # fmt: skip
    shapes = {
        "token_gate": gates[1], "token_gate_raw": gates[1], "channel_gate": gates[dim], "channel_gate_raw": gates[dim],
        "token_gate_residual": gates[1] | {"residual": ()}, "add": {}, "weighted": {"weights": (2,)},
        "concat": norms | {"merge.weight": (dim, 2 * dim), "merge.bias": (dim,)}, "generative_only": {},
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for name, own in shapes.items():
        weights = {key: draw(*shape).astype(np.float32) for key, shape in (projector | own).items()}
        if name == "weighted":
            weights["weights"] = np.asarray([0.7, 0.5], np.float32)
        sem, world = draw(1, tokens, dim).astype(np.float32), draw(1, tokens, gen).astype(np.float32)
        double = {key: value.astype(np.float64) for key, value in weights.items()}
        out = fused(name, double, sem.astype(np.float64), world.astype(np.float64))
        arrays |= {f"{name}/weights/{key}": value for key, value in weights.items()}
        arrays |= {f"{name}/f_sem": sem, f"{name}/f_gen": world, f"{name}/out": out.astype(np.float32)}
    np.savez_compressed(HERE / "fusions.npz", **arrays)


def main() -> None:
    vae = tiny_vae()
    make_worlds(vae)
    make_fusions()
    folder = HERE / "vae"
    vae.save_config(folder)
    kept = {k: v.contiguous() for k, v in vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
    save_file(kept, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
