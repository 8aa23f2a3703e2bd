"""What cameras send, as (H, W, 3) uint8 RGB.  NumPy, OpenCV and libjpeg; no ROS.

Encodings are those of sensor_msgs/image_encodings.hpp.  Colour is converted where the camera measured it: other orders
of channels, YUV 4:2:2 and 4:2:0 by OpenCV as cv_bridge does, Bayer mosaics by OpenCV's bilinear interpolation, 16 bits
per channel to the nearest of 256 steps.  Where colour would have to be invented (grey, depth, channels without a
meaning) the image is refused: a policy trained on colour would be fed something it never saw.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policies.types import Image, VegaError

# encoding -> (channels in the message, order of R, G, B among them, bytes per channel)
_CHANNELS = {
    "rgb8": (3, (0, 1, 2), 1),
    "bgr8": (3, (2, 1, 0), 1),
    "rgba8": (4, (0, 1, 2), 1),
    "bgra8": (4, (2, 1, 0), 1),
    "rgb16": (3, (0, 1, 2), 2),
    "bgr16": (3, (2, 1, 0), 2),
    "rgba16": (4, (0, 1, 2), 2),
    "bgra16": (4, (2, 1, 0), 2),
}
# Two bytes a pixel.  `yuv422` is UYVY in ROS.
_YUV422 = {
    "yuv422": "COLOR_YUV2RGB_UYVY",
    "uyvy": "COLOR_YUV2RGB_UYVY",
    "yuv422_yuy2": "COLOR_YUV2RGB_YUY2",
    "yuyv": "COLOR_YUV2RGB_YUY2",
}
# The pattern names the first two pixels of the first two rows, OpenCV's constants those of the second row and column.
_BAYER = {
    "rggb": "COLOR_BayerBG2RGB",
    "bggr": "COLOR_BayerRG2RGB",
    "gbrg": "COLOR_BayerGR2RGB",
    "grbg": "COLOR_BayerGB2RGB",
}
FARTHEST_M = 100.0  # of what surrounds an arm, and beyond what 16UC1 can say
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE, _GREY_AND_ALPHA = 25, 4  # where a PNG's header says it, and how
_JPEG = b"\xff\xd8\xff"
_EXIF, _SCAN, _ORIENTATION = (b"\xe1", b"Exif\0\0"), b"\xda", 0x0112
# EXIF's orientation -> how a picture that was stored like that is turned upright.
_UPRIGHT: dict[int, Callable[[Any], Any]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.swapaxes(np.rot90(pixels, 2), 0, 1),
    8: np.rot90,
}


class DamagedImage(VegaError):
    """A compressed image that was damaged in transport; the next may be whole."""


def is_native(encoding: str) -> bool:
    """Whether an encoding's pixels are taken as they are, without arithmetic."""
    return encoding in _CHANNELS and _CHANNELS[encoding][2] == 1


def accepted() -> list[str]:
    """The names of all encodings that are taken."""
    bayer = [f"bayer_{pattern}{bits}" for pattern in _BAYER for bits in (8, 16)]
    return [*_CHANNELS, *_YUV422, "nv12", "nv21", *bayer]


def from_raw(data: Any, height: int, width: int, step: int, encoding: str, big_endian: bool, camera: str) -> Image:
    """(H, W, 3) uint8 RGB of a raw image; `step`: bytes of a row, which may be padded.  Raises VegaError."""
    convert, pixel_bytes, depth, rows = _reader(encoding, height, camera)
    row_bytes = width * pixel_bytes
    if height == 0 or width == 0 or step < row_bytes or len(data) != rows * step:
        raise VegaError(
            f"Camera '{camera}' sends {len(data)} bytes for {width}x{height} {encoding[:32]} with rows of {step} "
            "bytes: correct its driver."
        )
    raw = np.frombuffer(data, dtype=np.uint8).reshape(rows, step)[:, :row_bytes]
    if depth == 2:
        raw = _nearest_of_256(np.ascontiguousarray(raw).view(np.dtype(">u2" if big_endian else "<u2")))
    return convert(np.ascontiguousarray(raw), height, width)


def _reader(encoding: str, height: int, camera: str) -> tuple[Callable[[Any, int, int], Image], int, int, int]:
    """(rows of bytes, height, width) -> RGB; bytes per pixel in a row; bytes per channel; rows of the message."""
    if encoding in _CHANNELS:
        channels, order, depth = _CHANNELS[encoding]

        def reorder(raw: Any, height: int, width: int) -> Image:
            pixels = raw.reshape(height, width, channels)
            if order == (0, 1, 2) and channels == 3:
                return np.ascontiguousarray(pixels)
            return np.ascontiguousarray(pixels[:, :, list(order)])

        return reorder, channels * depth, depth, height
    if encoding in _YUV422:
        return _opencv(_YUV422[encoding], camera, 2, across=2), 2, 1, height
    if encoding in ("nv12", "nv21"):
        return _opencv(f"COLOR_YUV2RGB_{encoding.upper()}", camera, 1, across=2, down=2), 1, 1, height + height // 2
    pattern, bits = encoding[6:10], encoding[10:]
    if encoding.startswith("bayer_") and pattern in _BAYER and bits in ("8", "16"):
        depth = int(bits) // 8
        return _opencv(_BAYER[pattern], camera, 1), depth, depth, height
    raise VegaError(
        f"Camera '{camera}' sends encoding {encoding[:32]!r}, which has no colour that could be converted: set its "
        "driver to rgb8 (or another colour encoding)."
    )


def _opencv(
    name: str, camera: str, channels: int, across: int = 1, down: int = 1
) -> Callable[[Any, int, int], Image]:
    """across, down: so many pixels share a colour."""

    def convert(raw: Any, height: int, width: int) -> Image:
        cv2 = _cv2(camera)
        if width % across or height % down:
            raise VegaError(
                f"Camera '{camera}' sends {width}x{height}, which cannot be subsampled: correct its driver."
            )
        pixels = raw.reshape(-1, width, channels) if channels > 1 else raw
        return np.asarray(cv2.cvtColor(pixels, getattr(cv2, name)))

    return convert


def _nearest_of_256(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """65535 is 255; what 8 bits were widened from comes back exactly."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def depth_from_raw(
    data: Any, height: int, width: int, step: int, encoding: str, big_endian: bool, camera: str
) -> NDArray[np.float32]:
    """(H, W) float32 m of a raw depth image (REP 118: 16UC1 in mm, 32FC1 in m), NaN where nothing was measured.

    Raises VegaError.
    """
    kinds = {"16UC1": ("u2", 1e-3), "mono16": ("u2", 1e-3), "32FC1": ("f4", 1.0)}
    if encoding not in kinds:
        raise VegaError(
            f"The depth of camera '{camera}' has encoding {encoding[:32]!r}: publish 16UC1 (mm) or 32FC1 (m)."
        )
    kind, metres = kinds[encoding]
    pixel = np.dtype((">" if big_endian else "<") + kind)
    if height == 0 or width == 0 or step < width * pixel.itemsize or len(data) != height * step:
        raise VegaError(
            f"The depth of camera '{camera}' has {len(data)} bytes for {width}x{height} {encoding} with rows of {step} "
            "bytes: correct its driver."
        )
    rows = np.frombuffer(data, dtype=np.uint8).reshape(height, step)[:, : width * pixel.itemsize]
    depth = np.ascontiguousarray(rows).view(pixel).astype(np.float32) * np.float32(metres)
    depth[~(np.isfinite(depth) & (depth > 0.0))] = np.nan
    some = depth[::8, ::8]
    some = some[np.isfinite(some)]
    if some.size and np.median(some) > FARTHEST_M:
        raise VegaError(
            f"The depth of camera '{camera}' is {np.median(some):.0f} m in the middle, which looks like millimetres "
            "where m is meant: publish 32FC1 in m, or 16UC1 in mm."
        )
    return depth


def from_compressed(data: bytes, form: str, camera: str) -> Image:
    """(H, W, 3) uint8 RGB of a JPEG or PNG.  Raises DamagedImage where the decoder so much as warns.

    A JPEG has no checksum: where its code falls into step again with as many blocks as before, nothing tells.  Of a
    simulated scene and of fields with a sensor's noise, in three qualities, 480 of 600 lost bytes passed, 5 of 600
    holes of 188 bytes and none of 1800 of 512 to 3060 bytes, as packets leave them; of white noise, 21 of 300 of 512.

    form: the message's `format`, as image_transport writes it (`rgb8; jpeg compressed bgr8`) or a plain `jpeg`.  The
    part after `compressed` says what order of channels the encoder was given: `rgb` for `bgr` means that they are
    exchanged in the file.  A JPEG is turned as its EXIF says.
    """
    source, _, rest = (part.strip() for part in form.partition(";"))
    if "compressedDepth" in rest:
        raise VegaError(f"Camera '{camera}' sends depth ({form[:32]!r}): give the topic of its colour image.")
    if not data.startswith((_JPEG, _PNG)):
        sentence = f"Camera '{camera}' sends {len(data)} bytes that are no JPEG or PNG (format {form[:32]!r})"
        # What is said to be one has lost its beginning, and the next may have it.
        if any(name in form.lower() for name in ("jpeg", "jpg", "png")):
            raise DamagedImage(f"{sentence}: check its cable, its network and its driver.")
        raise VegaError(f"{sentence}: correct its driver.")
    pixels = _jpeg(data, camera) if data.startswith(_JPEG) else _png(data, camera)
    if pixels.dtype == np.uint16:
        pixels = _nearest_of_256(pixels.astype(np.uint16, copy=False))
    if pixels.ndim == 2 and source.startswith("bayer_") and data.startswith(_PNG):
        height, width = pixels.shape
        return from_raw(pixels.tobytes(), height, width, width, f"{source[:10]}8", False, camera)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise VegaError(f"Camera '{camera}' sends a compressed image without colour: publish colour, 8-bit or 16-bit.")
    exchanged = rest.partition("compressed")[2].strip().startswith("rgb")
    return np.ascontiguousarray(pixels[:, :, 2::-1] if exchanged else pixels[:, :, :3])


def _jpeg(data: bytes, camera: str) -> Image:
    """RGB, or (H, W) where it is grey."""
    try:
        import simplejpeg
    except ImportError as error:
        raise VegaError(
            f"Camera '{camera}' is compressed and simplejpeg is missing: pip install simplejpeg, or use its raw topic."
        ) from error
    try:
        grey = simplejpeg.decode_jpeg_header(data)[2].lower() == "gray"
        pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY" if grey else "RGB", strict=True)
    except Exception as error:  # of a header that makes no sense it raises what it likes
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise DamagedImage(
            f"Camera '{camera}' sends damaged JPEGs ({why[:80]}): check its cable, its network and its driver."
        ) from error
    return np.asarray(_UPRIGHT.get(_orientation(data), np.asarray)(pixels[:, :, 0] if grey else pixels))


def _orientation(data: bytes) -> int:
    """How a JPEG's EXIF says that it is stored, 1 (upright) where it says nothing."""
    at = len(_JPEG) - 1
    while data[at : at + 1] == b"\xff" and (kind := data[at + 1 : at + 2]) not in (b"", _SCAN):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == _EXIF[0] and data[at + 4 : end].startswith(_EXIF[1]):
            return _orientation_of(data[at + 4 + len(_EXIF[1]) : end])
        at = end
    return 1


def _orientation_of(exif: bytes) -> int:
    """The same of EXIF's own bytes, which are laid out as in a TIFF: the first directory is a list of 12 bytes each."""
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    first = number(4, 4)
    for entry in range(first + 2, min(first + 2 + 12 * number(first, 2), len(exif)), 12):
        if number(entry, 2) == _ORIENTATION:
            return number(entry + 8, 2)
    return 1


def _png(data: bytes, camera: str) -> NDArray[Any]:
    """RGB, RGBA or (H, W), 8 or 16 bits."""
    _check_png(data, camera)
    cv2 = _cv2(camera)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception:
        pixels = None
    if pixels is None:
        raise DamagedImage(f"Camera '{camera}' sends PNGs that cannot be decoded: check its network and its driver.")
    if data[_COLOUR_TYPE] == _GREY_AND_ALPHA and pixels.ndim == 3:  # OpenCV makes four channels of two
        pixels = pixels[:, :, 0]
    return np.asarray(pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]])


def _check_png(data: bytes, camera: str) -> None:
    """Every chunk's checksum, the picture's own, and an end: OpenCV passes over what is damaged."""
    position, stream = len(_PNG), zlib.decompressobj()
    why = "it is cut short"
    try:
        while position + 12 <= len(data):
            length = int.from_bytes(data[position : position + 4], "big")
            body, end = data[position + 4 : position + 8 + length], position + 12 + length
            if end > len(data):
                break
            if zlib.crc32(body) != int.from_bytes(data[end - 4 : end], "big"):
                why = "a checksum is wrong"
                break
            if body[:4] == b"IDAT":
                stream.decompress(body[4:])
            if body[:4] == b"IEND":
                if stream.eof:
                    return
                break
            position = end
    except zlib.error as error:
        why = str(error)
    raise DamagedImage(f"Camera '{camera}' sends damaged PNGs ({why}): check its cable, its network and its driver.")


def _cv2(camera: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise VegaError(
            f"Camera '{camera}' needs OpenCV, which is missing: pip install opencv-python, or publish rgb8."
        ) from error
    return cv2
