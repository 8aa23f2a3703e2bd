"""Scenes as several cameras see them, with depth and poses, in the files of ScanNet's exports.

    FOLDER/<scene>/00000.jpg  00000.png  00000.txt      picture; depth in mm, 16 bit; (4, 4) camera to world
    FOLDER/<scene>/depth_intrinsic.txt                  (4, 4) of the depth

`python -m sim.render_views` writes them; ScanNet's `posed_images` lie so too.  Poses are those of the optical frame (x
right, y down, z ahead), in metres; the first pixel's centre is (0, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, VegaError

INTRINSICS_FILE = "depth_intrinsic.txt"
QUALITY = 95  # of the JPEG
VOXEL_M = 0.1  # side of what counts as one place, as in the paper


@dataclass(frozen=True)
class PosedViews:
    """One scene.

    pictures: (V, H, W, 3) uint8 RGB.  depth_mm: (V, h, w) uint16 along the optical axis, 0 where not known; it covers
    what the picture covers.  intrinsics: (4, 4) of the depth.  poses: (V, 4, 4) optical frame to world, m.
    """

    name: str
    pictures: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16]
    intrinsics: FloatArray
    poses: FloatArray

    def angles_deg(self) -> FloatArray:
        """(V, V) between the optical axes."""
        ahead = self.poses[:, :3, 2]
        return np.asarray(np.rad2deg(np.arccos(np.clip(ahead @ ahead.T, -1.0, 1.0))))


def write_views(root: Path, views: PosedViews) -> None:
    """Put a scene on disk, its intrinsics last: a folder without them is not read."""
    folder = root / views.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (picture, depth, pose) in enumerate(
            zip(views.pictures, views.depth_mm, views.poses, strict=True)
        ):
            stem = folder / f"{number:05d}"
            _encode(stem.with_suffix(".jpg"), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            _encode(stem.with_suffix(".png"), depth, [])
            np.savetxt(stem.with_suffix(".txt"), pose, fmt="%.8f")
        for name in ("intrinsic.txt", INTRINSICS_FILE):
            np.savetxt(folder / name, views.intrinsics, fmt="%.6f")
    except OSError as error:
        raise VegaError(f"Scene '{folder}' cannot be written ({error.strerror}): make room there.") from error


def _encode(path: Path, image: NDArray[np.generic], options: list[int]) -> None:
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image), options)
    assert done
    path.write_bytes(data.tobytes())


def read_scenes(root: Path, views: int) -> Iterator[PosedViews]:
    """Every scene below a folder, at most `views` views of each, evenly chosen.  Raises VegaError."""
    found = sorted(path.parent for path in root.rglob(INTRINSICS_FILE))
    if not found:
        raise VegaError(
            f"Folder '{root}' holds no scene with a {INTRINSICS_FILE}: make one with `python -m sim.render_views "
            f"--output {root}`."
        )
    for folder in found:
        yield read_views(folder, views)


def read_views(folder: Path, views: int) -> PosedViews:
    """One scene.  Views without a finite pose, of which ScanNet has some, are left out.  Raises VegaError."""
    stems = [path.with_suffix("") for path in sorted(folder.glob("*.jpg"))]
    posed = [(stem, pose) for stem in stems if np.isfinite(pose := _matrix(stem.with_suffix(".txt"))).all()]
    if len(posed) < 2:
        raise VegaError(f"Scene '{folder}' has {len(posed)} views with a pose, but two are compared: add some.")
    chosen = [posed[i] for i in np.unique(np.linspace(0, len(posed) - 1, min(views, len(posed))).round().astype(int))]
    pictures = [_image(stem.with_suffix(".jpg"), cv2.IMREAD_COLOR)[:, :, ::-1] for stem, _ in chosen]
    depths = [_image(stem.with_suffix(".png"), cv2.IMREAD_UNCHANGED) for stem, _ in chosen]
    for what, images in (("pictures", pictures), ("depth images", depths)):
        if len({image.shape for image in images}) > 1:
            raise VegaError(f"The {what} of scene '{folder}' differ in size: make them alike.")
    if depths[0].dtype != np.uint16 or depths[0].ndim != 2:
        raise VegaError(f"The depth of scene '{folder}' is no 16 bit grey PNG in mm: export it as ScanNet does.")
    return PosedViews(
        folder.name, np.stack(pictures), np.stack(depths), _matrix(folder / INTRINSICS_FILE),
        np.stack([pose for _, pose in chosen]),
    )  # fmt: skip


def _matrix(path: Path) -> FloatArray:
    try:
        matrix = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise VegaError(f"File '{path}' cannot be read ({error}): it needs four rows of four numbers.") from error
    if matrix.shape != (4, 4):
        raise VegaError(f"File '{path}' holds {matrix.shape} numbers: it needs four rows of four.")
    return np.asarray(matrix, dtype=np.float64)


def _image(path: Path, flag: int) -> NDArray[np.generic]:
    image = cv2.imread(str(path), flag)
    if image is None:
        raise VegaError(f"File '{path}' is missing or no image: write the scene again.")
    return image
