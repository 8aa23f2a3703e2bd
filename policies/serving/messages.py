"""msgpack with NumPy arrays as maps, as openpi (`openpi_client/msgpack_numpy.py`) writes it and vla-eval reads it.

Never pickle: arrays of objects are refused in both directions.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from policies.types import VegaError

MAX_BYTES = 64 * 2**20  # of one request; two cameras of 4K are below it
REMEDY = "pip install msgpack websockets"


def pack(value: Any) -> bytes:
    """msgpack, NumPy arrays and scalars as openpi writes them."""

    def encode(item: Any) -> Any:
        if isinstance(item, np.ndarray) and item.dtype.kind not in "VOc":
            data = np.ascontiguousarray(item).tobytes()
            return {b"__ndarray__": True, b"data": data, b"dtype": item.dtype.str, b"shape": item.shape}
        if isinstance(item, np.generic) and item.dtype.kind not in "VOc":
            return {b"__npgeneric__": True, b"data": item.item(), b"dtype": item.dtype.str}
        raise TypeError(f"{type(item).__name__} cannot be sent")

    return bytes(_msgpack().packb(value, default=encode))


def unpack(data: bytes) -> Any:
    """The reverse of `pack`; arrays are read-only.

    vla-eval's arrays (keys that are text) and pictures (PNG or JPEG) are read too.  Raises ValueError on anything else.
    """

    def decode(item: dict[Any, Any]) -> Any:
        for array, scalar, picture in (
            (b"__ndarray__", b"__npgeneric__", b"__image__"),
            ("__ndarray__", "__npgeneric__", "__image__"),
        ):
            if array in item:
                return _array(item)
            if scalar in item:
                return _scalar(item)
            if picture in item:
                return _array(item) if _field(item, "format") == "raw" else _picture(_field(item, "data"))
        return item

    msgpack = _msgpack()
    try:
        return msgpack.unpackb(data, object_hook=decode, strict_map_key=False)
    except Exception as error:  # whatever damaged bytes lead to; readers of pictures alone raise many kinds
        raise ValueError(f"the message cannot be read ({error})") from error


def _field(item: dict[Any, Any], name: str) -> Any:
    return item[name] if name in item else item[name.encode()]


def _dtype(name: Any) -> np.dtype[Any]:
    dtype = np.dtype(name if isinstance(name, str) else name.decode())
    if dtype.kind not in "biufSU":
        raise ValueError(f"arrays of {dtype} are not accepted")
    return dtype


def _array(item: dict[Any, Any]) -> Any:
    return np.frombuffer(_field(item, "data"), _dtype(_field(item, "dtype"))).reshape(_field(item, "shape"))


def _scalar(item: dict[Any, Any]) -> Any:
    dtype, data = _dtype(_field(item, "dtype")), _field(item, "data")
    if dtype.kind in "SU" and not isinstance(data, str | bytes):  # NumPy makes so many zeros of a number
        raise ValueError(f"a scalar of {dtype} is text, not {type(data).__name__}")
    return dtype.type(data)


def _picture(data: bytes) -> Any:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB"))


def _msgpack() -> Any:
    check_packages()
    import msgpack

    return msgpack


def check_packages() -> None:
    """Raise VegaError unless this machine can speak to a policy over WebSocket."""
    try:
        import msgpack  # noqa: F401
        import websockets.sync.client  # noqa: F401
    except ImportError as error:
        raise VegaError(f"Policies at ws:// need two packages that are not installed: {REMEDY}.") from error
