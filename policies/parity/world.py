"""The world simulator against others' computation of it, from a camera's frame to pooled tokens, and the fusions.

References: diffusers' whole VAE and transformer, Pillow's and OpenCV's resizing, and the formulas of pooling and fusion
in double precision (`test/golden/wan_tiny/make_world_cases.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from policies.fusion.gated_fusion import build_fusion
from policies.parity.golden import NETWORK_TOLERANCE, Case, Line, largest, read_arrays, read_cases
from policies.world_simulator.simulator import LatentWorldSimulator, WorldSimulatorConfig, add_noise
from policies.world_simulator.transformer import load_transformer
from policies.world_simulator.vae import load_encoder

WORLD_FILE, FUSIONS_FILE = "world_cases.npz", "fusions.npz"
CPU = torch.device("cpu")
CANVAS_TOLERANCE = 1e-5  # of values in [-1, 1]
FUSION_TOLERANCE = 1e-5


@torch.no_grad()
def check_world(folder: Path) -> Iterator[Line]:
    """Canvas, latents, tokens of the tapped block, and what is pooled of them, of single frames and of a window."""
    for name, case in read_cases(folder / WORLD_FILE).items():
        frames = torch.from_numpy(case["frames"])[None]
        simulator = _simulator(folder, case)
        canvas = simulator.to_canvas(frames)
        yield f"{name}/canvas", largest(canvas[0], case["canvas"]), CANVAS_TOLERANCE
        latents = simulator.latents(frames)
        yield f"{name}/latents", largest(latents[0], case["latents"]), NETWORK_TOLERANCE
        noisy = add_noise(latents, torch.from_numpy(case["noise"])[None], simulator.sigma)
        rows, columns = (side // simulator.token_px for side in simulator.config.canvas)
        features = simulator.trunk(noisy)[0].unflatten(1, (-1, rows, columns))[:, -1:]
        yield f"{name}/features", largest(features[0, 0], case["features"]), NETWORK_TOLERANCE
        pooled = simulator.pool(features, frames.shape[2:4])
        yield f"{name}/pooled", largest(pooled[0, 0], case["pooled"]), NETWORK_TOLERANCE


def _simulator(folder: Path, case: Case) -> LatentWorldSimulator:
    tap, count = int(case["tap"]), len(case["frames"])
    rows, columns = (int(side) for side in case["grid"])
    top, left, bottom, right = (float(edge) for edge in case["view"])
    canvas = case["canvas"].shape[2:]
    config = WorldSimulatorConfig(
        tap=tap,
        canvas=(canvas[0], canvas[1]),
        grid=(rows, columns),
        view=(top, left, bottom, right),
        mode="window" if count > 1 else "per_frame",
        window=count,
        framing=str(case["framing"]),
    )
    encoder = load_encoder(folder / "vae", CPU, torch.float32)
    transformer = load_transformer(folder / "transformer", tap, CPU, torch.float32)
    return LatentWorldSimulator(encoder, transformer, torch.from_numpy(case["prompt"]), config).eval()


@torch.no_grad()
def check_fusions(path: Path) -> Iterator[Line]:
    """Every fusion with its projector."""
    arrays = read_arrays(path)
    for name in sorted({key.partition("/")[0] for key in arrays}):
        prefix = f"{name}/weights/"
        state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
        sem, gen = (torch.from_numpy(arrays[f"{name}/{stream}"]) for stream in ("f_sem", "f_gen"))
        fusion = build_fusion(name, sem.shape[-1], gen.shape[-1]).eval()
        fusion.load_state_dict(state)
        yield f"fusion/{name}", largest(fusion(sem, gen)[0], arrays[f"{name}/out"]), FUSION_TOLERANCE
