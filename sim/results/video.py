"""Frames to an MP4 that every browser plays."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from policies.files.made_once import replacing
from policies.types import Image, VegaError

FINISH_S = 120.0


def write_video(path: Path, frames: Sequence[Image], fps: float, keyframe_every: int | None = None) -> None:
    """H.264 of (H, W, 3) uint8 RGB frames of one size, H and W even.

    keyframe_every: frames from one key frame to the next (None: the encoder decides).

    The file appears whole or not at all.  Raises VegaError if it cannot be written.
    """
    if not frames:
        raise VegaError(f"There are no frames for {path}: check that the cameras publish.")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with replacing(path, partial):
            _encode(partial, frames, fps, keyframe_every)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VegaError(f"The video {path} could not be written ({error}): make room on the disk.") from error


def _encode(path: Path, frames: Sequence[Image], fps: float, keyframe_every: int | None) -> None:
    """Pipe the frames through ffmpeg.  OSError where it fails: imageio's own writer says nothing of a full disk."""
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    coding = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "23", "-preset", "veryfast", "-threads", "1"]
    coding += ["-g", str(keyframe_every)] if keyframe_every is not None else []
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *source, *coding]
    with subprocess.Popen(
        [*command, "-movflags", "+faststart", str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            for frame in frames:
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg gave up; its exit status and its words follow
        try:
            status = process.wait(FINISH_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        words = process.stderr.read().decode(errors="replace").strip().splitlines()
    if status != 0:
        raise OSError(words[-1] if words else f"ffmpeg ended with status {status}")
