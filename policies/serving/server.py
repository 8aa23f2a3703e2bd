"""Listening, and deciding beside the event loop, so that pings and `/healthz` are answered while a policy thinks."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from policies.serving.libero import check_served, observation
from policies.serving.messages import MAX_BYTES, check_packages
from policies.types import FloatArray, Observation, Policy, PolicySpec, VegaError

Task = tuple[Observation, asyncio.AbstractEventLoop, "asyncio.Future[tuple[FloatArray, float]]"]


class ClientGone(Exception):
    """Who asked has closed the connection; nobody is left to be answered."""


class Decider:
    """The one policy of all connections.  Requests are answered one after the other, in a thread of their own.

    base_position: (3,) m, the arm's base in the world.  Raises VegaError where the policy cannot be served.
    """

    def __init__(self, policy: Policy, base_position: FloatArray) -> None:
        check_served(policy.spec)
        self._policy, self._base = policy, np.asarray(base_position, dtype=float)
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._pending: set[asyncio.Future[tuple[FloatArray, float]]] = set()
        # A daemon: whoever ends the server does not wait for an answer that nobody will read.
        threading.Thread(target=self._work, name="policy", daemon=True).start()

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    @property
    def metadata(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "policy": spec.name, "robot": "libero", "action_space": spec.action_space.kind,
            "action_horizon": spec.chunk_length, "open_loop_horizon": spec.open_loop_horizon,
            "rate_hz": spec.action_space.rate_hz, "base_position": self._base.tolist(),
            "image_sizes": {camera: list(size) for camera, size in spec.image_sizes.items()},
        }  # fmt: skip

    async def decide(
        self, socket: Any, pictures: Mapping[str, Any], state: Any, prompt: Any
    ) -> tuple[FloatArray, float]:
        """Actions (H, 7) and the policy's own time, ms.  socket: of the client that asks.

        Raises VegaError on a request it cannot use, ClientGone once the connection is closed: the policy is then not
        asked any more, unless it is thinking about this already.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[FloatArray, float]] = loop.create_future()
        asked = observation(self.spec, pictures, state, prompt, self._base)
        # Whoever reads messages only is not told of a client that goes while it waits for something else.
        gone = asyncio.ensure_future(socket.wait_closed())
        self._pending.add(answer)
        try:
            self._tasks.put((asked, loop, answer))
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientGone
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()
            self._pending.discard(answer)

    def end(self) -> None:
        """Whoever still waits is told that nobody will answer.  Call it in the event loop."""
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(VegaError("The server was told to end: start it again and ask again."))

    def _work(self) -> None:
        while True:
            asked, loop, answer = self._tasks.get()
            if answer.done():
                continue  # its client has gone, or the server ends
            begun = time.perf_counter()
            try:
                self._policy.reset()  # a request says nothing of an episode: the answer depends on it alone
                actions = self._policy.act(asked).actions
                result: Any = (actions, 1e3 * (time.perf_counter() - begun))
            except Exception as error:  # whatever it is, the client hears it and the next request is answered
                failure = error if isinstance(error, VegaError) else RuntimeError(f"{type(error).__name__}: {error}")
                _tell(loop, answer, failure)
                continue
            _tell(loop, answer, result)


def _tell(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], result: Any) -> None:
    def tell() -> None:
        if answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    with contextlib.suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(tell)


async def serve(
    decider: Decider, talk: Callable[[Any, Decider], Awaitable[None]], health: str, host: str, port: int,
    ready: Callable[[str, int], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM.

    talk: one connection of a protocol.  health: HTTP path that answers OK.  port: 0 takes a free one.  ready: called
    with host and port once clients may come.  Raises VegaError where it cannot listen.
    """
    check_packages()
    from websockets.asyncio import server as websockets
    from websockets.exceptions import ConnectionClosed

    def answer_http(connection: Any, request: Any) -> Any:
        return connection.respond(200, "OK\n") if request.path.partition("?")[0] == health else None

    async def connection(socket: Any) -> None:
        with contextlib.suppress(ConnectionClosed, ClientGone):
            await talk(socket, decider)

    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    try:
        # No pings: a client that builds a scene in its event loop answers none for as long, and must not be dropped.
        # No origin: web pages, which could reach a server of this machine through a browser, are turned away.
        running = await websockets.serve(
            connection, host, port, compression=None, max_size=MAX_BYTES, process_request=answer_http, origins=[None],
            close_timeout=1.0, ping_interval=None,
        )  # fmt: skip
    except OSError as error:
        raise VegaError(f"{host}:{port} cannot be listened on ({error}): give another --host or --port.") from error
    async with running:
        ready(host, next(iter(running.sockets)).getsockname()[1])
        await over.wait()
        decider.end()
