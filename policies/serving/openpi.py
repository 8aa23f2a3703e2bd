"""openpi's protocol, the server's side (`openpi/serving/websocket_policy_server.py`).

On connecting the client is sent the metadata; each request is an observation with LIBERO's keys, each answer holds
`actions` and the time it took.  What goes wrong is sent as text, the sentence in its last line, and the connection is
closed with status 1011; the client may connect again at once.
"""

from __future__ import annotations

import time
import traceback
from typing import Any

from policies.serving.messages import pack, unpack
from policies.serving.server import Decider
from policies.types import VegaError

HEALTH = "/healthz"
INTERNAL_ERROR = 1011
REASON = "Internal server error. Traceback included in previous frame."
CAMERAS = {"agentview": "observation/image", "wrist": "observation/wrist_image"}


async def talk(socket: Any, decider: Decider) -> None:
    """Serve one connection until it is closed."""
    await socket.send(pack(decider.metadata))
    total_s: float | None = None
    async for message in socket:
        begun = time.perf_counter()
        try:
            if isinstance(message, str):
                raise VegaError("The request is text: send msgpack, as openpi-client does.")
            request = unpack(message)
            if not isinstance(request, dict):
                raise VegaError("The request is no map: send an observation with openpi's LIBERO keys.")
            pictures = {camera: request[key] for camera, key in CAMERAS.items() if key in request}
            state, prompt = request.get("observation/state"), request.get("prompt")
            actions, infer_ms = await decider.decide(socket, pictures, state, prompt)
        except (VegaError, ValueError, TypeError, RuntimeError):
            await socket.send(traceback.format_exc())
            await socket.close(INTERNAL_ERROR, REASON)
            return
        timing = {"infer_ms": infer_ms}
        if total_s is not None:
            timing["prev_total_ms"] = 1e3 * total_s  # sending included, so it is known one answer later
        await socket.send(pack({"actions": actions, "server_timing": timing}))
        total_s = time.perf_counter() - begun
