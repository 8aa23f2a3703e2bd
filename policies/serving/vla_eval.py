"""vla-eval's protocol, the server's side (vla_eval 0.8 `protocol/messages.py`, `model_servers/serve.py`).

Messages are maps of type, payload, seq and timestamp.  The client greets and is told what to send; then each
observation is answered with one action, from a chunk that is asked for anew when it is used up and at each episode's
begin.  What goes wrong is an `error` message; the connection stays.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from policies.serving.messages import pack, unpack
from policies.serving.server import Decider
from policies.types import FloatArray, VegaError

HEALTH = "/health"
PROTOCOL_VERSION = 1
# As OpenVLA-OFT's evaluation: both cameras, proprioception with robosuite's own rotation vector, seed 0.
OBSERVATION_PARAMS = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True, "env_seed": 0}
ACTION_SPEC = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-1, 1]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]},
}


async def talk(socket: Any, decider: Decider) -> None:
    """Serve one connection until it is closed."""
    waiting: deque[FloatArray] = deque()
    async for message in socket:
        seq, kind = 0, ""
        try:
            if isinstance(message, str):
                raise VegaError("The message is text: send msgpack, as vla-eval does.")
            request = unpack(message)
            if not isinstance(request, dict) or not isinstance(request.get("payload"), dict):
                raise VegaError("The message has no payload: send it as vla-eval 0.8 does.")
            if not isinstance(request.get("seq", 0), int):
                raise VegaError("The message's seq is no whole number: send it as vla-eval 0.8 does.")
            seq, kind, payload = int(request.get("seq", 0)), str(request.get("type", "")), request["payload"]
            if kind == "hello":
                reply = {"protocol_version": PROTOCOL_VERSION, "harness_version": payload.get("harness_version", ""),
                         "model_server": decider.spec.name, "capabilities": {}, "action_spec": ACTION_SPEC,
                         "observation_params": OBSERVATION_PARAMS}  # fmt: skip
                await _send(socket, "hello", reply, seq)
            elif kind == "episode_start":
                waiting.clear()
            elif kind == "observation":
                if not waiting:
                    actions, _ = await decider.decide(
                        socket, payload.get("images", {}), payload.get("states"), payload.get("task_description")
                    )
                    waiting.extend(actions[: decider.spec.open_loop_horizon])
                await _send(socket, "action", {"actions": np.asarray(waiting.popleft())}, seq)
        except (VegaError, ValueError, TypeError, RuntimeError) as error:
            waiting.clear()
            await _send(socket, "error", {"error": f"{kind or 'message'}_failed: {error}"}, seq)


async def _send(socket: Any, kind: str, payload: dict[str, Any], seq: int) -> None:
    # vla-eval's arrays have keys that are text.
    if "actions" in payload:
        array = payload["actions"]
        payload = {"actions": {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str,
                               "shape": list(array.shape)}}  # fmt: skip
    await socket.send(pack({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}))
