"""Frames to an MP4 that every browser plays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from policies.types import Image, VegaError


def write_video(path: Path, frames: Sequence[Image], fps: float) -> None:
    """H.264 of (H, W, 3) uint8 RGB frames of one size, H and W even.

    The file appears whole or not at all.  Raises VegaError if it cannot be written.
    """
    import imageio_ffmpeg

    if not frames:
        raise VegaError(f"There are no frames for {path}: check that the cameras publish.")
    height, width = frames[0].shape[:2]
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        writer = imageio_ffmpeg.write_frames(
            str(partial),
            (width, height),
            fps=fps,
            quality=None,
            codec="libx264",
            macro_block_size=2,
            output_params=["-crf", "23", "-preset", "veryfast", "-movflags", "+faststart", "-threads", "1"],
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in frames:
            writer.send(frame.tobytes())
        writer.close()
        if not partial.is_file() or partial.stat().st_size == 0:
            raise OSError("the encoder wrote nothing")
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise VegaError(f"The video {path} could not be written ({reason}): make room on the disk.") from error
