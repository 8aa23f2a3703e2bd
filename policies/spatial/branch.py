"""From a picture to the generative tokens that meet Qwen's: world simulator, patches, merger, fusion.

    picture ─► canvas ─► VAE ─► noise ─► Wan ─► (rows, columns) of patches ─► merger ─► tokens ─► fusion with f_sem

framing: "official" covers Wan's canvas, crops what hangs over (26 % of the rows of a 4:3 frame) and spreads the rest
over the whole frame; "registered" letterboxes the frame and reads each patch's own pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from policies.files.adapters import ADAPTER_CONFIG
from policies.files.paths import refuse_pointer
from policies.files.tensor_sources import DictSource, TensorSource, shape_of
from policies.files.weight_files import open_weights, read_as, resolve_folder
from policies.spatial.config import BranchConfig, read_branch
from policies.spatial.fusing import GenerativeMerger, build_branch_fusion, fusion_state
from policies.types import VegaError
from policies.world_simulator.canvas import place, pool_registered
from policies.world_simulator.original import (
    ORIGINAL_PATTERNS,
    is_original,
    original_config,
    original_encoder,
    original_transformer,
)
from policies.world_simulator.prompt import read_prompt
from policies.world_simulator.simulator import LatentWorldSimulator, WorldSimulatorConfig, add_noise

TOWER_PREFIX = "generative_encoder.tower.model."
# The init of the reference's training script: every Linear and Conv3d N(0, 0.02), biases 0.
RANDOM_STD = 0.02
PROBE = "blocks.0.self_attn.q"


class GenerativeBranch(nn.Module):
    """Pictures to fused tokens.  Inference only.  origin: a sentence on which video transformer this is."""

    def __init__(
        self, simulator: LatentWorldSimulator, merger: GenerativeMerger, fusion: nn.Module, framing: str, origin: str
    ):
        super().__init__()
        self.simulator, self.merger, self.fusion = simulator, merger, fusion
        self.framing, self.origin = framing, origin

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> normalised latents (N, C, 1, h, w), without noise."""
        return self.simulator.encoder.frames(self.simulator.to_canvas(pictures[:, None]))

    @torch.no_grad()
    def native(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """f_gen on Wan's own grid: (N, rows, columns, C).  noise: default one for every frame."""
        noise = self.simulator.noise(latents) if noise is None else noise
        trunk = self.simulator.trunk
        tokens = trunk(add_noise(latents, noise, self.simulator.sigma))[0]
        rows, columns = (n // p for n, p in zip(latents.shape[3:], trunk.patch_size[1:], strict=True))
        return tokens.unflatten(1, (rows, columns))

    def on_patches(self, native: torch.Tensor, picture: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
        """Wan's grid (N, rows, columns, C) of pictures (H, W) px -> Qwen's patches (N, *grid, C)."""
        if self.framing == "registered":
            canvas = self.simulator.config.canvas
            spot = place(picture, canvas, "registered")
            pooled = pool_registered(native[:, None], spot, self.simulator.token_px, grid, (0.0, 0.0, 1.0, 1.0))
            return pooled[:, 0].unflatten(1, grid)
        if native.shape[1:3] == grid:
            return native
        # In float32 and cast back, as the reference does.
        spread = F.interpolate(native.permute(0, 3, 1, 2).float(), grid, mode="bilinear", align_corners=False)
        return spread.permute(0, 2, 3, 1).to(native.dtype)

    @torch.no_grad()
    def forward(self, pictures: torch.Tensor, grid: tuple[int, int], f_sem: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8, the patches' grid, f_sem (N, n, D) -> fused (N, n, D)."""
        native = self.native(self.latents(pictures))
        patches = self.on_patches(native, (pictures.shape[1], pictures.shape[2]), grid)
        return self.fuse(f_sem, self.merge(patches))[0]

    def merge(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, h, w, C) -> (N, n, D), raster order."""
        dtype = next(self.merger.parameters()).dtype
        return self.merger(patches.to(dtype)).flatten(1, 2)

    def fuse(self, f_sem: torch.Tensor, f_gen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both (N, n, D) -> fused (N, n, D) and the gate (N, n, 1), the share of f_sem, or None."""
        return self.fusion(f_sem, f_gen)


def load_branch(
    folder: Path,
    stored: TensorSource,
    config: BranchConfig,
    dim: int,
    framing: str,
    device: torch.device,
    dtype: torch.dtype,
) -> GenerativeBranch:
    """The branch of the checkpoint in `folder`, whose tensors are `stored`, for tokens of width `dim`.

    The transformer stored in the checkpoint is used before the one in the Wan folder, which the VAE always comes from.
    Raises VegaError for what is missing, does not fit or is no finite number, and for a tensor that no part reads.
    """
    wan = _wan_folder(folder, config.path)
    source, origin = _tower(stored, wan)
    settings = original_config(wan, source)
    tap = config.tap if config.tap >= 0 else settings["num_layers"] + config.tap
    simulator = LatentWorldSimulator(
        original_encoder(wan, device, dtype),
        original_transformer(source, settings, tap, device, dtype),
        _prompt(folder, wan, config),
        WorldSimulatorConfig(
            tap=tap, noise_index=config.noise_index, shift=config.shift, canvas=config.canvas, framing=framing
        ),
    )
    merger = GenerativeMerger(config.merger, simulator.dim, config.merger_hidden, dim)
    _load(merger, _part(stored, "generative_merger.", dtype), folder)
    fusion = build_branch_fusion(config.fusion, dim, heads=config.heads, dropout=config.dropout, layers=config.layers)
    _load(fusion, fusion_state(fusion, _part(stored, "generative_fusion.", dtype)), folder)
    branch = GenerativeBranch(simulator, merger.to(device, dtype), fusion.to(device, dtype), framing, origin)
    return branch.eval().requires_grad_(False)


def _wan_folder(folder: Path, path: str) -> Path:
    """Where a checkpoint's Wan lies: beside it, where the path says, or on the hub."""
    if not path:
        raise VegaError(f"File '{folder / 'config.json'}' names no Wan: set generative_encoder_path to its folder.")
    for candidate in (folder / path, Path(path).expanduser()):
        if candidate.is_dir():
            wan = candidate
            break
    else:
        wan = resolve_folder(path, ORIGINAL_PATTERNS)
    if not is_original(wan):
        raise VegaError(
            f"Folder '{wan}' lacks Wan2.1_VAE.pth: give Wan in its authors' layout (Wan-AI/Wan2.1-T2V-1.3B)."
        )
    return wan


def part_files(folder: Path) -> list[Path]:
    """Files of the Wan that the checkpoint in `folder` names, and its prompt's embedding; none of a plain Qwen2.5-VL.

    Raises VegaError for a part that is missing.
    """
    config = read_branch(folder)
    if config is None:
        return []
    wan = _wan_folder(folder, config.path)
    found = {path for pattern in ORIGINAL_PATTERNS for path in wan.glob(pattern) if path.is_file()}
    return sorted(found if config.prompt is None else {*found, _prompt_file(folder, config.prompt)})


def _tower(stored: TensorSource, wan: Path) -> tuple[TensorSource, str]:
    """The transformer's tensors, and a sentence on whose they are."""
    public = open_weights(wan) if any(wan.glob("*.safetensors")) else None
    own = {name.removeprefix(TOWER_PREFIX): name for name in stored.names() if name.startswith(TOWER_PREFIX)}
    if not own:
        if public is None:
            raise VegaError(f"Neither '{stored.name}' nor '{wan}' holds a video transformer: copy Wan's *.safetensors.")
        return public, f"The video transformer is that of '{wan}'; the checkpoint stores none."
    if (wan / ADAPTER_CONFIG).is_file():
        raise VegaError(
            f"Folder '{wan}' holds an adapter, but '{stored.name}' has a video transformer of its own, which is used "
            "in the place of that one: move the adapter away."
        )
    source = DictSource(stored.name, {short: stored.read(name) for short, name in own.items()})
    shape_of(source, f"{PROBE}.weight", 2), shape_of(source, f"{PROBE}.bias", 1)
    weight, bias = (source.read(f"{PROBE}.{kind}").float() for kind in ("weight", "bias"))
    if public is not None and all(
        name in own and torch.equal(source.read(name).float(), public.read(name).to(source.read(name).dtype).float())
        for name in public.names()
    ):
        return source, f"The video transformer in the checkpoint is that of '{wan}'."
    if not bias.any() and abs(float(weight.std()) - RANDOM_STD) < 0.05 * RANDOM_STD:
        return source, (
            "The video transformer in the checkpoint was initialised at random (weights N(0, 0.02), biases 0): it "
            "knows nothing of videos, and the checkpoint was trained with it so."
        )
    return source, f"The video transformer in the checkpoint is neither that of '{wan}' nor random."


def _prompt(folder: Path, wan: Path, config: BranchConfig) -> torch.Tensor:
    """The prompt's embedding: the reference's .pt (weights only), or this package's own file in the Wan folder."""
    if config.prompt is None:
        return read_prompt(wan)
    path = _prompt_file(folder, config.prompt)
    try:
        embedding = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refuse_pointer(path)
        reason = type(error).__name__
        raise VegaError(f"File '{path}' is no plain tensor ({reason}): export the prompt again.") from error
    if not isinstance(embedding, torch.Tensor) or embedding.ndim not in (2, 3):
        raise VegaError(f"File '{path}' holds no prompt embedding of shape (rows, width): export the prompt again.")
    if not torch.isfinite(embedding).all():
        raise VegaError(f"File '{path}' holds a prompt embedding with NaN or infinity: export the prompt again.")
    return embedding.reshape(-1, embedding.shape[-1])


def _prompt_file(folder: Path, prompt: str) -> Path:
    """Where a prompt's embedding lies: in the checkpoint, or where the name says."""
    for path in (folder / prompt, Path(prompt).expanduser()):
        if path.is_file():
            return path
    raise VegaError(f"File '{prompt}' with the prompt's embedding is missing: copy it to '{folder}'.")


def _part(stored: TensorSource, prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): read_as(stored, name, None, stored.shape(name), "cpu", dtype)
        for name in stored.names()
        if name.startswith(prefix)
    }


def _load(module: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise VegaError(f"The generative branch in '{folder}' is incomplete or of another shape ({reason}).") from None
