"""A policy behind openpi's WebSocket protocol, as a `Policy`: evaluate what is already served somewhere.

Protocol (openpi `serving/websocket_policy_server.py` and `openpi_client/msgpack_numpy.py`): on connecting, the
server sends its metadata; then each request is an observation and each answer holds `actions`; everything is msgpack
with arrays as maps; a text frame is the server's error message.  The observation has the keys and the preparation of
openpi's `examples/libero/main.py`: both cameras mirrored left to right as the training data is, padded to a square of
224 pixels, the world pose and fingers, the prompt; five actions are executed of each chunk.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np

from policies.openvla.robots import libero_proprio
from policies.types import ActionChunk, ActionSpace, Image, Observation, PolicySpec, VegaError

SIZE = 224
REPLAN_STEPS = 5
CONNECT_S = 30.0
ANSWER_S = 600.0  # the first request may compile the model
REMEDY = "pip install msgpack websockets"


class RemotePolicy:
    """url: ws://host:port.  Raises VegaError where nobody answers, and where the answer is no actions."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open = contextlib.ExitStack()
        self._socket, self.metadata = _connect(url, self._open)
        self.spec = PolicySpec(
            name=url, cameras=("agentview", "wrist"), action_space=ActionSpace("eef_delta"),
            chunk_length=REPLAN_STEPS, open_loop_horizon=REPLAN_STEPS,
        )  # fmt: skip

    def act(self, observation: Observation) -> ActionChunk:
        begun = time.perf_counter()
        answer = self._ask(
            {
                "observation/image": prepare(observation.images["agentview"][-1]),
                "observation/wrist_image": prepare(observation.images["wrist"][-1]),
                "observation/state": libero_proprio(observation),
                "prompt": observation.instruction,
            }
        )
        actions = np.asarray(answer.get("actions"))
        if actions.ndim != 2 or len(actions) < REPLAN_STEPS or actions.shape[1] != 7 or actions.dtype.kind != "f":
            raise VegaError(
                f"The server {self._url} sent actions of shape {actions.shape}: it must serve a LIBERO policy with "
                f"at least {REPLAN_STEPS} actions of 7 numbers."
            )
        return ActionChunk(
            actions[:REPLAN_STEPS].astype(np.float64), observation.stamp_ns, observation.instruction,
            timings_ms={"round_trip": 1e3 * (time.perf_counter() - begun)},
        )  # fmt: skip

    def reset(self) -> None:
        """openpi's policies remember nothing between requests."""

    def close(self) -> None:
        self._open.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.send(pack(request))
            answer = self._socket.recv(ANSWER_S)
        except Exception as error:
            raise VegaError(f"The policy server {self._url} went away ({error}): start it again.") from error
        if isinstance(answer, str):
            raise VegaError(f"The policy server {self._url} failed: {answer.strip().splitlines()[-1]}.")
        return dict(unpack(answer))


def prepare(image: Image) -> Image:
    """(H, W, 3) upright -> (224, 224, 3): mirrored left to right, scaled without distortion, padded with black."""
    from PIL import Image as Picture

    # The data set turns the simulator's picture by 180 degrees; an upright one is already flipped top to bottom.
    picture = Picture.fromarray(np.ascontiguousarray(image[:, ::-1]))
    scale = SIZE / max(picture.size)
    width, height = (max(1, int(side * scale)) for side in picture.size)
    square = Picture.new("RGB", (SIZE, SIZE))
    small = picture.resize((width, height), Picture.Resampling.BILINEAR)
    square.paste(small, ((SIZE - width) // 2, (SIZE - height) // 2))
    return np.asarray(square)


def pack(value: Any) -> bytes:
    """msgpack, NumPy arrays and scalars as openpi writes them."""

    def encode(item: Any) -> Any:
        if isinstance(item, np.ndarray) and item.dtype.kind not in "VOc":
            data = np.ascontiguousarray(item).tobytes()
            return {b"__ndarray__": True, b"data": data, b"dtype": item.dtype.str, b"shape": item.shape}
        if isinstance(item, np.generic) and item.dtype.kind not in "VOc":
            return {b"__npgeneric__": True, b"data": item.item(), b"dtype": item.dtype.str}
        raise TypeError(f"{type(item).__name__} cannot be sent")

    return bytes(_libraries()[0].packb(value, default=encode))


def unpack(data: bytes) -> Any:
    """The reverse of `pack`; arrays are read-only."""

    def decode(item: dict[Any, Any]) -> Any:
        if b"__ndarray__" in item:
            return np.frombuffer(item[b"data"], np.dtype(item[b"dtype"])).reshape(item[b"shape"])
        if b"__npgeneric__" in item:
            return np.dtype(item[b"dtype"]).type(item[b"data"])
        return item

    return _libraries()[0].unpackb(data, object_hook=decode)


def _connect(url: str, stack: contextlib.ExitStack) -> tuple[Any, dict[Any, Any]]:
    connect = _libraries()[1].connect
    try:
        socket = stack.enter_context(connect(url, compression=None, max_size=None, open_timeout=CONNECT_S))
        metadata = socket.recv(CONNECT_S)
    except Exception as error:  # of many kinds: sockets, TLS, the handshake, its URL
        raise VegaError(f"No policy server answers at {url} ({error}): start it, or correct the address.") from error
    return socket, dict(unpack(metadata)) if isinstance(metadata, bytes) else {}


def _libraries() -> tuple[Any, Any]:
    try:
        import msgpack
        import websockets.sync.client as client
    except ImportError as error:
        raise VegaError(f"Policies at ws:// need two packages that are not installed: {REMEDY}.") from error
    return msgpack, client
