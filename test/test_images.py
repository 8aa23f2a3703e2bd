"""What common camera drivers send becomes the picture it stands for; what was damaged on the way is dropped."""

from __future__ import annotations

import array
import io

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps
from sensor_msgs.msg import CompressedImage, Image

from policies.types import VegaError
from vega3d_ros.control.images import DamagedImage, depth_from_raw, from_compressed, from_raw
from vega3d_ros.ros.conversions import compressed_image_array, image_array

# Saturated colours in large fields, whose chroma survives subsampling and whose edges are few.
COLOURS = np.array([[230, 20, 30], [20, 200, 40], [30, 40, 220], [240, 220, 30]], np.uint8)
FIELDS = COLOURS.reshape(2, 2, 3).repeat(24, axis=0).repeat(32, axis=1)


def message(data: np.ndarray, encoding: str, height: int, width: int, big_endian: int = 0) -> Image:
    rows = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    return Image(
        height=height, width=width, encoding=encoding, is_bigendian=big_endian,
        step=data.strides[0] if data.ndim > 1 else 0, data=array.array("B", rows.tobytes()),
    )  # fmt: skip


def yuv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT.601 with video range, by the standard's own formula."""
    r, g, b = (image[..., i].astype(float) for i in range(3))
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    return tuple(np.rint(plane).astype(np.uint8) for plane in (y, u, v))


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv"), ("yuv422", "uyvy"), ("uyvy", "uyvy")]
)
def test_yuv_of_webcams_shows_the_colours_it_was_made_of(encoding, order):
    y, u, v = yuv(FIELDS)
    pairs = {"y": [y[:, 0::2], y[:, 1::2]], "u": [u[:, 0::2]], "v": [v[:, 0::2]]}
    packed = np.stack([pairs[letter].pop(0) for letter in order], axis=-1).reshape(48, -1)
    seen = image_array(message(packed, encoding, 48, 64), "wrist")
    assert np.abs(seen.astype(int) - FIELDS).max() <= 4


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_mosaic_shows_the_colours_that_its_pixels_measured(pattern, bits):
    mosaic = np.zeros((48, 64), np.uint8 if bits == 8 else np.uint16)
    for place, letter in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2] = FIELDS[row::2, column::2, "rgb".index(letter)]
    mosaic = mosaic if bits == 8 else mosaic * np.uint16(257)
    seen = image_array(message(mosaic, f"bayer_{pattern}{bits}", 48, 64), "wrist")
    inner = (slice(4, 20), slice(4, 28))
    assert np.array_equal(seen[inner], FIELDS[inner])
    assert np.array_equal(seen[28:44, 36:60], FIELDS[28:44, 36:60])


@pytest.mark.parametrize(
    ("encoding", "width", "taken"),
    [("uyvy", 8, True), ("uyvy", 7, False), ("bayer_rggb8", 7, True), ("nv12", 8, False)],
)
def test_an_odd_side_is_a_fault_only_where_colours_are_shared_along_it(encoding, width, taken):
    step = width * (2 if encoding == "uyvy" else 1)
    data = np.full((5 + 2 * (encoding == "nv12"), step), 128, np.uint8).tobytes()
    if taken:
        assert from_raw(data, 5, width, step, encoding, False, "wrist").shape == (5, width, 3)
    else:
        with pytest.raises(VegaError, match="cannot be subsampled"):
            from_raw(data, 5, width, step, encoding, False, "wrist")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["rgb16", "bgr16", "rgba16", "bgra16"]), st.booleans(), st.integers(0, 2**32 - 1))
def test_sixteen_bits_become_the_nearest_eight_in_either_byte_order(encoding, big_endian, seed):
    wide = np.random.default_rng(seed).integers(0, 65536, (3, 5, 4 if "a" in encoding else 3)).astype(np.uint16)
    order = [2, 1, 0] if encoding.startswith("bgr") else [0, 1, 2]
    sent = wide.astype(">u2" if big_endian else "<u2")
    seen = image_array(message(sent.reshape(3, -1), encoding, 3, 5, int(big_endian)), "wrist")
    assert np.array_equal(seen, np.rint(wide[:, :, order] / 257.0).astype(np.uint8))


@pytest.mark.parametrize(
    ("form", "kind", "given_order"),
    [
        ("jpeg", "jpg", "bgr"),
        ("rgb8; jpeg compressed bgr8", "jpg", "bgr"),
        ("bgr8; jpeg compressed bgr8", "jpg", "bgr"),
        ("rgb8; jpeg compressed rgb8", "jpg", "rgb"),  # the encoder took red for blue; the subscriber takes it back
        ("rgba8; png compressed bgr8", "png", "bgr"),
        ("rgb8; png compressed rgb8", "png", "rgb"),
    ],
)
def test_format_as_image_transport_writes_it_gives_the_right_colours(form, kind, given_order):
    pixels = FIELDS[:, :, ::-1] if given_order == "bgr" else FIELDS
    data = cv2.imencode(f".{kind}", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    seen = compressed_image_array(CompressedImage(format=form, data=array.array("B", data.tobytes())), "wrist")
    assert np.abs(seen[4:20, 4:28].astype(int) - FIELDS[4:20, 4:28]).max() <= 4


def test_sixteen_bit_png_is_exact_and_depth_is_refused():
    wide = np.ascontiguousarray(FIELDS[:, :, ::-1]).astype(np.uint16) * 257
    data = cv2.imencode(".png", wide)[1].tobytes()
    assert np.array_equal(from_compressed(data, "rgb16; png compressed bgr16", "wrist"), FIELDS)
    with pytest.raises(VegaError, match="depth"):
        from_compressed(data, "16UC1; compressedDepth png", "wrist")


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_png_is_refused_with_and_without_alpha(mode):
    file = io.BytesIO()
    Pillow.fromarray(FIELDS).convert(mode).save(file, "PNG")
    with pytest.raises(VegaError, match="without colour"):
        from_compressed(file.getvalue(), "png", "wrist")


def photograph() -> np.ndarray:
    """(480, 640, 3): fields with the noise of a sensor."""
    rows, columns = np.mgrid[:480, :640]
    smooth = np.stack([columns // 3 % 256, rows // 2 % 256, (rows + columns) // 4 % 256], axis=-1)
    return np.clip(smooth + np.random.default_rng(0).normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(photograph()).save(file, kind, quality=90)
    return file.getvalue()


# What is exchanged within a JPEG decodes without a warning: only a checksum could tell.
@pytest.mark.parametrize(
    ("kind", "damage"),
    [("PNG", "swap"), *((kind, damage) for kind in ("JPEG", "PNG") for damage in ("hole", "end", "half", "zeros"))],
)
def test_what_was_damaged_in_transport_is_an_error_of_its_own(kind, damage):
    data = encoded(kind)
    assert from_compressed(data, "jpeg", "wrist").shape == (480, 640, 3)
    third = len(data) // 3
    broken = {
        "hole": data[:third] + data[third + 512 :],
        "end": data[:-2],
        "half": data[: len(data) // 2],
        "swap": data[:third] + data[2 * third : 2 * third + 1400] + data[third : 2 * third] + data[2 * third + 1400 :],
        "zeros": data[:third] + bytes(1400) + data[third + 1400 :],
    }[damage]
    with pytest.raises(DamagedImage, match=r"^Camera 'wrist' sends damaged"):
        from_compressed(broken, "jpeg", "wrist")


@pytest.mark.parametrize("sampling", [a << 4 | b for a in range(1, 5) for b in range(1, 5) if a * b > 1])
def test_a_jpeg_whose_sampling_of_colours_was_damaged_is_damaged_whatever_the_decoder_raises(sampling):
    """The byte of the luminance in the frame's header; 0x14 names 4:4:1, which simplejpeg does not know."""
    data = bytearray(simplejpeg.encode_jpeg(photograph(), 90, "RGB", colorsubsampling="444"))
    data[data.find(b"\xff\xc0") + 11] = sampling
    with pytest.raises(DamagedImage, match=r"^Camera 'wrist' sends damaged JPEGs \(.+\): check its cable"):
        from_compressed(bytes(data), "jpeg", "wrist")


@pytest.mark.parametrize(("kind", "module", "decoder"), [("JPEG", simplejpeg, "decode_jpeg"), ("PNG", cv2, "imdecode")])
@pytest.mark.parametrize("error", [KeyError(6), MemoryError(), RuntimeError("unknown")])
def test_no_decoder_ends_a_node_by_what_it_raises(monkeypatch, kind, module, decoder, error):
    def decode(*_: object, **__: object) -> None:
        raise error

    data = encoded(kind)
    monkeypatch.setattr(module, decoder, decode)
    with pytest.raises(DamagedImage, match=r"^Camera 'wrist' sends .* check its"):
        from_compressed(data, "jpeg", "wrist")


def test_bytes_after_the_end_of_a_jpeg_are_the_padding_of_a_webcam():
    data = encoded("JPEG")
    assert np.array_equal(from_compressed(data + bytes(300), "jpeg", "w"), from_compressed(data, "jpeg", "w"))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpeg_is_turned_as_its_camera_was_held(orientation, order):
    exif = Pillow.Exif()
    exif.endian, exif[0x010F], exif[0x0112] = order, "a telephone", orientation
    file = io.BytesIO()
    Pillow.fromarray(FIELDS).save(file, "JPEG", exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Pillow.open(file)))
    seen = from_compressed(file.getvalue(), "jpeg", "wrist")
    assert seen.shape == upright.shape and seen.flags.c_contiguous
    assert np.abs(seen.astype(int) - upright).max() <= 4


@pytest.mark.parametrize("form", ["jpeg", "rgb8; jpeg compressed bgr8", "JPG", "rgb8; png compressed "])
@pytest.mark.parametrize("data", [b"", b"\xff", bytes(700), encoded("JPEG")[700:]])
def test_a_picture_without_its_beginning_is_damaged_and_another_format_is_not(form, data):
    with pytest.raises(DamagedImage, match=r"no JPEG or PNG .*: check its cable, its network and its driver\.$"):
        from_compressed(data, form, "wrist")
    for other in ("h264", ""):
        with pytest.raises(VegaError, match=r"no JPEG or PNG .*: correct its driver\.$") as caught:
            from_compressed(data, other, "wrist")
        assert not isinstance(caught.value, DamagedImage)


def test_what_a_driver_calls_its_format_is_told_in_visible_letters():
    for refused in (
        lambda name: from_raw(bytes(12), 2, 2, 6, name, False, "wrist"),
        lambda name: depth_from_raw(bytes(12), 2, 2, 6, name, False, "wrist"),
        lambda name: from_compressed(bytes(12), name, "wrist"),
        lambda name: from_compressed(bytes(12), f"{name}; compressedDepth", "wrist"),
    ):
        with pytest.raises(VegaError, match=r"\\u202ergb8\\n") as caught:
            refused("\u202ergb8\n")
        assert str(caught.value).isprintable()


def test_depth_is_known_behind_the_header_that_its_transport_gives_it():
    depth = cv2.imencode(".png", np.full((4, 4), 900, np.uint16))[1].tobytes()
    with pytest.raises(VegaError, match="sends depth"):
        from_compressed(bytes(12) + depth, "16UC1; compressedDepth png", "wrist")
