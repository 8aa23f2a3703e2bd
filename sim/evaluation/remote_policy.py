"""A policy behind openpi's WebSocket protocol, as a `Policy`: evaluate what is already served somewhere.

Protocol (openpi `serving/websocket_policy_server.py` and `openpi_client/msgpack_numpy.py`): on connecting, the
server sends its metadata; then each request is an observation and each answer holds `actions`; everything is msgpack
with arrays as maps; a text frame is the server's error message, after which it closes the connection.  The observation
has the keys and the preparation of openpi's `examples/libero/main.py`: both cameras mirrored left to right as the
training data is, padded to a square of 224 pixels, the world pose and fingers, the prompt; five actions are executed of
each chunk.

openpi's server thinks in its event loop: meanwhile it answers neither pings nor new connections, so silence means
nothing until `ANSWER_S` are over.  A server that went away is waited for, and asked again.
"""

from __future__ import annotations

import contextlib
import socket as sockets
import sys
import time
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from numpy.typing import NDArray

from policies.openvla.robots import libero_proprio
from policies.serving.messages import check_packages, pack, unpack
from policies.types import ActionChunk, ActionSpace, Image, Observation, PolicySpec, VegaError

SIZE = 224
REPLAN_STEPS = 5
CONNECT_S = 30.0
ANSWER_S = 600.0  # the first request may compile the model
RETURN_S = 120.0  # a server that restarts loads its model before it listens
NEWS_S = 30.0
AGAIN_S = 1.0


class RemotePolicy:
    """url: ws://host:port.  Raises VegaError where nobody answers, and where the answer is no actions."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._socket: Any = None
        self._open = contextlib.ExitStack()
        self._return_s = RETURN_S
        self._connect()
        self.spec = PolicySpec(
            name=url, cameras=("agentview", "wrist"), action_space=ActionSpace("eef_delta"),
            chunk_length=REPLAN_STEPS, open_loop_horizon=REPLAN_STEPS, fingers=2,
        )  # fmt: skip

    def act(self, observation: Observation) -> ActionChunk:
        begun = time.perf_counter()
        answer = self._ask(
            pack(
                {
                    "observation/image": prepare(observation.images["agentview"][-1]),
                    "observation/wrist_image": prepare(observation.images["wrist"][-1]),
                    "observation/state": libero_proprio(observation),
                    "prompt": observation.instruction,
                }
            )
        )
        actions, what = _numbers(answer.get("actions")), "no actions that are numbers"
        if actions is not None:
            what = f"actions of shape {actions.shape}"
        if actions is None or actions.ndim != 2 or len(actions) < REPLAN_STEPS or actions.shape[1] != 7:
            raise VegaError(
                f"The server {self._url} sent {what}: it must serve a LIBERO policy with at least {REPLAN_STEPS} "
                "actions of 7 numbers."
            )
        return ActionChunk(
            actions[:REPLAN_STEPS].astype(np.float64), observation.stamp_ns, observation.instruction,
            timings_ms={"round_trip": 1e3 * (time.perf_counter() - begun)},
        )  # fmt: skip

    def reset(self) -> None:
        """openpi's policies remember nothing between requests."""

    def close(self) -> None:
        self._socket = None
        with contextlib.suppress(Exception):  # of a connection that is broken already
            self._open.close()

    def _ask(self, request: bytes) -> dict[str, Any]:
        try:
            answer = self._exchange(request)
        except ConnectionError:
            self._await_return()
            try:
                answer = self._exchange(request)
            except ConnectionError as error:
                raise VegaError(
                    f"The policy server {self._url} went away twice at the same request ({error}): see what it says, "
                    "and start it again."
                ) from error
        if isinstance(answer, str):
            self.close()  # the server closes after an error; the next request finds it again
            raise self._failed(answer)
        try:
            found = unpack(answer)
            if not isinstance(found, dict):
                raise ValueError(f"a {type(found).__name__}, not a map")
        except ValueError as error:
            raise VegaError(
                f"The policy server {self._url} sent what is no answer ({error}): it must speak openpi's protocol."
            ) from error
        if "error" in found and "actions" not in found:
            raise self._failed(str(found["error"]))
        return found

    def _failed(self, text: str) -> VegaError:
        lines = text.strip().splitlines() or ["it does not say why"]
        return VegaError(f"The policy server {self._url} failed: {lines[-1].rstrip('.')}.")

    def _exchange(self, request: bytes) -> bytes | str:
        """One request, one answer.  ConnectionError where the server went away, VegaError where it stays silent."""
        if self._socket is None:
            raise ConnectionError("it closed the connection")
        try:
            self._socket.send(request)
            return self._receive()
        except TimeoutError as error:
            self.close()  # its late answer must not be taken for that to another request
            raise VegaError(
                f"The policy server {self._url} has not answered within {ANSWER_S:.0f} s: see what it says."
            ) from error
        except Exception as error:  # of many kinds: closed, reset, a broken frame
            self.close()
            raise ConnectionError(_why(error)) from error

    def _receive(self) -> bytes | str:
        """The next message, with a line on stderr now and then.  TimeoutError after ANSWER_S."""
        begun = time.monotonic()
        while True:
            left = ANSWER_S - (time.monotonic() - begun)
            try:
                return self._socket.recv(max(min(left, NEWS_S), 0.0))  # type: ignore[no-any-return]
            except TimeoutError:
                if left <= NEWS_S:
                    raise
                waited = time.monotonic() - begun
                _say(f"The policy server {self._url} thinks: {waited:.0f} s of at most {ANSWER_S:.0f} s.")

    def _await_return(self) -> None:
        """Connect to the server again, once it is there.  Raises VegaError if it stays away."""
        begun, told = time.monotonic(), False
        while True:
            try:
                self._connect()
                self._return_s = RETURN_S
                return
            except VegaError as error:
                if not told:
                    told = True
                    _say(f"The policy server {self._url} went away: waiting {self._return_s:.0f} s for it to return.")
                if time.monotonic() > begun + self._return_s:
                    waited, self._return_s = self._return_s, AGAIN_S  # who is gone is not waited for at each episode
                    raise VegaError(
                        f"The policy server {self._url} went away and has not come back within {waited:.0f} s: start "
                        "it again."
                    ) from error
                time.sleep(AGAIN_S)

    def _connect(self) -> None:
        check_packages()
        from websockets.sync import client

        raw = None
        try:
            raw = _reach(self._url)
            # Pings go out, and keep proxies awake, but a server that thinks does not answer them.
            connection = client.connect(
                self._url, sock=raw, compression=None, max_size=None, open_timeout=ANSWER_S, ping_timeout=None,
                close_timeout=1.0,
            )  # fmt: skip
            self._socket = self._open.enter_context(connection)
            metadata = self._receive()
            self.metadata = dict(unpack(metadata)) if isinstance(metadata, bytes) else {}
        except Exception as error:  # of many kinds: sockets, TLS, the handshake, its URL
            if raw is not None and self._socket is None:
                raw.close()
            self.close()
            raise VegaError(
                f"No policy server answers at {self._url} ({_why(error)}): start it, or correct the address."
            ) from error


def _why(error: Exception) -> str:
    """What it says, or what it is: sockets raise errors without a word, too."""
    return str(error) or type(error).__name__


def _numbers(value: Any) -> NDArray[Any] | None:
    """An array of real numbers; None for anything else."""
    try:
        found = np.asarray(value)
    except ValueError:  # rows of unlike lengths
        return None
    return found if found.dtype.kind in "fiu" else None


def _reach(url: str) -> sockets.socket | None:
    """A TCP connection that notices when the other machine is gone; None where a proxy is to be used.

    Apart from the handshake: a machine that is not there shall be told soon, a server that thinks has its time.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
    if {"https" if parts.scheme == "wss" else "http", "socks"} & set(getproxies()) and not proxy_bypass(host):
        return None
    found = sockets.create_connection((host, port), CONNECT_S)
    found.settimeout(None)
    for level, option, value in (
        (sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1),
        (sockets.IPPROTO_TCP, sockets.TCP_KEEPIDLE, 30),
        (sockets.IPPROTO_TCP, sockets.TCP_KEEPINTVL, 10),
        (sockets.IPPROTO_TCP, sockets.TCP_KEEPCNT, 6),
        (sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1),
    ):
        found.setsockopt(level, option, value)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
