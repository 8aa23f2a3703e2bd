"""Where pixels lie in the world, and how tokens are told: VEGA-3D's position embedding for scenes with depth and pose.

    depth, intrinsics, pose ─► world coordinates (m) ─► mean per 27 px patch ─► 0.1 m voxels ─► sines, cosines

Source: `llava/video_utils.py`, `llava/model/llava_arch.py`, `llava/model/position_encoding.py` of VEGA-3D's branch main
(9c96924).  The reference does not mask depth 0, whose pixels become the camera's centre, and rounds coordinates to
bf16, which moves a fifth of the voxels by one; here both are switches that reproduce it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from policies.types import VegaError

PATCH = 27
RANGE_M = ((-15.0, -15.0, -5.0), (15.0, 15.0, 5.0))
VOXEL_M = 0.1
TEMPERATURE = 10000.0


def world_coordinates(
    depth_mm: torch.Tensor, intrinsics: torch.Tensor, camera_to_world: torch.Tensor, mask_holes: bool = True
) -> torch.Tensor:
    """(V, H, W) depth in mm, (4, 4) or (V, 4, 4) intrinsics of that depth, (V, 4, 4) poses -> (V, H, W, 3) m.

    mask_holes: NaN where depth is 0; False leaves the camera's centre there, as the reference does.
    """
    if depth_mm.ndim != 3 or camera_to_world.shape != (len(depth_mm), 4, 4):
        raise VegaError(
            f"Depth {tuple(depth_mm.shape)} and poses {tuple(camera_to_world.shape)} do not fit: give (views, height, "
            "width) and (views, 4, 4)."
        )
    z = depth_mm.double() / 1000.0
    k = intrinsics.double().expand(len(z), 4, 4)
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in z.shape[1:])
    x = (columns[None, None, :] - k[:, 0, 2, None, None]) * z / k[:, 0, 0, None, None]
    y = (rows[None, :, None] - k[:, 1, 2, None, None]) * z / k[:, 1, 1, None, None]
    points = torch.stack([x, y, z, torch.ones_like(z)], dim=-1)
    world = torch.einsum("vij,vhwj->vhwi", camera_to_world.double(), points)
    world = (world[..., :3] / world[..., 3:]).float()
    return world.masked_fill((depth_mm == 0)[..., None], float("nan")) if mask_holes else world


def patch_means(coordinates: torch.Tensor, patch: int = PATCH) -> torch.Tensor:
    """(V, H, W, 3) m -> (V, H // patch, W // patch, 3): mean of each patch's known pixels, NaN where none is known."""
    known = ~coordinates.isnan().any(dim=-1, keepdim=True)
    values = torch.where(known, coordinates, torch.zeros(())).permute(0, 3, 1, 2)
    share = F.avg_pool2d(known.float().permute(0, 3, 1, 2), patch)
    means = F.avg_pool2d(values, patch) / share
    return means.permute(0, 2, 3, 1)


def voxels(coordinates: torch.Tensor, bf16: bool = False) -> torch.Tensor:
    """(..., 3) m -> (..., 3) voxel indices as floats, clamped to the scene's range; NaN stays.

    bf16: with the reference's rounding of everything on the way.
    """
    low, high = (torch.tensor(edge) for edge in RANGE_M)
    values = coordinates.to(torch.bfloat16) if bf16 else coordinates
    low, high = low.to(values), high.to(values)
    return ((torch.minimum(torch.maximum(values, low), high) - low) / VOXEL_M).round().float()


def position_embedding(indices: torch.Tensor, dim: int) -> torch.Tensor:
    """(..., N, 3) voxel indices -> (..., N, dim): per axis dim // 3 sines and cosines in turn, then zeros.

    A token whose place is not known (NaN) gets zeros.
    """
    each = dim // 3
    channels = torch.arange(each, dtype=torch.float32)
    wavelengths = TEMPERATURE ** (2 * (channels // 2) / each)
    angles = indices.float()[..., None] / wavelengths
    waves = torch.where(channels % 2 == 0, angles.sin(), angles.cos()).flatten(-2)
    return F.pad(waves, (0, dim - 3 * each)).nan_to_num(0.0)


def pool_tokens(tokens: torch.Tensor, side: int, target: int) -> torch.Tensor:
    """(V, side * side, D) -> (V, target * target, D), bilinear without antialiasing."""
    grid = tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.interpolate(grid, (target, target), mode="bilinear").flatten(2).transpose(1, 2)
