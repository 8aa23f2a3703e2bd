"""Policies behind openpi's WebSocket protocol: what goes over the wire, and what a user is told when it breaks."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from policies.openvla.robots import libero_proprio
from policies.types import Observation, RobotState, VegaError
from sim.evaluation import remote_policy
from sim.evaluation.open_policy import open_policy
from sim.evaluation.remote_policy import REPLAN_STEPS, RemotePolicy, prepare

RNG = np.random.default_rng(0)
CHUNK = RNG.uniform(-1, 1, (10, 7)).astype(np.float32)


def observation() -> Observation:
    images = {name: RNG.integers(0, 255, (1, 256, 256, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    down = np.array([-0.999, 0.01, 0.02, 0.03])
    state = RobotState(
        0, (), np.zeros(7), np.zeros(7), np.array([0.039, 0.038]), np.array([0.4, 0.1, 0.3]),
        down / np.linalg.norm(down),
    )  # fmt: skip
    return Observation(images, state, "pick up the milk", 7, base_position=np.array([-0.6, 0.0, 0.9]))


@contextmanager
def server(answer: Callable[[dict[str, Any]], Any], port: int = 0) -> Iterator[str]:
    """An openpi server of this machine; `answer` gives a map, or a string as openpi sends its tracebacks.

    Like openpi's it closes a connection after a traceback.
    """
    serve = pytest.importorskip("websockets.sync.server").serve
    msgpack = pytest.importorskip("msgpack")

    def array(item: Any) -> Any:
        return {b"__ndarray__": True, b"data": item.tobytes(), b"dtype": item.dtype.str, b"shape": item.shape}

    def talk(socket: Any) -> None:
        socket.send(msgpack.packb({"robot": "panda"}))
        for request in socket:
            reply = answer(msgpack.unpackb(request))
            socket.send(reply if isinstance(reply, str) else msgpack.packb(reply, default=array))
            if isinstance(reply, str):
                return

    with serve(talk, "127.0.0.1", port, compression=None, max_size=None) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
        running.shutdown()
        thread.join(10)


def test_the_first_five_actions_come_back_and_the_request_is_openpis() -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        seen.append(request)
        return {"actions": CHUNK, "server_timing": {"infer_ms": 1.0}}

    asked = observation()
    with server(answer) as url:
        policy = open_policy(url, "cpu", 1)
        chunk = policy.act(asked)
    np.testing.assert_array_equal(chunk.actions, CHUNK[:REPLAN_STEPS].astype(np.float64))
    assert chunk.stamp_ns == 7 and chunk.timings_ms["round_trip"] > 0
    request = seen[0]
    assert set(request) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    image = request["observation/image"]
    assert image[b"__ndarray__"] is True and image[b"dtype"] == "|u1" and list(image[b"shape"]) == [224, 224, 3]
    assert image[b"data"] == prepare(asked.images["agentview"][0]).tobytes()
    assert np.frombuffer(request["observation/state"][b"data"]).tolist() == libero_proprio(asked).tolist()
    assert request["prompt"] == "pick up the milk"


def test_proprioception_is_the_pose_in_the_world_with_the_sign_of_the_training_data() -> None:
    state = libero_proprio(observation())
    assert state[:3] == pytest.approx([-0.2, 0.1, 1.2])
    assert state[3] > 3.0  # a hand that points down: half a turn about +x, not about -x
    assert state[6:] == pytest.approx([0.039, -0.038])


def test_pictures_are_mirrored_and_padded_without_distortion() -> None:
    image = np.zeros((128, 256, 3), dtype=np.uint8)
    image[:, :128] = (200, 0, 0)
    square = prepare(image)
    assert square.shape == (224, 224, 3)
    assert not square[:56].any() and not square[168:].any()
    assert square[112, 200, 0] == 200 and not square[112, 20].any()


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        ("Traceback ...\nKeyError: 'observation/image'", "KeyError"),
        ({"actions": CHUNK[:3]}, "at least 5 actions"),
        ({"action": CHUNK}, "sent no actions that are numbers: .* at least 5 actions"),
        ({"actions": [[0.0], [0.0, 1.0]]}, "sent no actions that are numbers"),
        ({"actions": [["1"] * 7] * 5}, "sent no actions that are numbers"),
        ({"error": "CUDA out of memory."}, r"failed: CUDA out of memory\.$"),
        ({"actions": {b"__ndarray__": True, b"data": b"", b"dtype": 5, b"shape": [0]}}, "sent what is no answer"),
        ([1, 2], "no answer .a list, not a map.: it must speak"),
        (None, "no answer .a NoneType, not a map.: it must speak"),
    ],
)
def test_a_server_that_fails_is_one_sentence(reply: Any, part: str) -> None:
    with server(lambda request: reply) as url, pytest.raises(VegaError, match=part):
        RemotePolicy(url).act(observation())


def test_actions_that_are_whole_numbers_are_numbers() -> None:
    with server(lambda request: {"actions": [[0, 0, 1, 0, 0, 0, -1]] * REPLAN_STEPS}) as url:
        chunk = RemotePolicy(url).act(observation())
    assert chunk.actions.dtype == np.float64 and chunk.actions[4].tolist() == [0, 0, 1, 0, 0, 0, -1]


def test_nobody_there_is_one_sentence() -> None:
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    with pytest.raises(VegaError, match="start it, or correct the address"):
        RemotePolicy("ws://127.0.0.1:9")


def test_an_error_of_the_connection_without_a_word_is_called_by_its_name(monkeypatch) -> None:
    """As silence after the handshake is one in the library of the sockets."""

    def silent(self: RemotePolicy) -> bytes:
        raise TimeoutError

    monkeypatch.setattr(RemotePolicy, "_receive", silent)
    with server(lambda request: {}) as url, pytest.raises(VegaError, match=rf"answers at {url} .TimeoutError.: start"):
        RemotePolicy(url)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(VegaError, match="pip install msgpack websockets"):
        RemotePolicy("ws://127.0.0.1:9")


# openpi's server: it thinks in its event loop, and answers nobody meanwhile.
THINKING_SERVER = """
import asyncio, sys, time
import msgpack, numpy as np
from websockets.asyncio.server import serve

async def talk(socket):
    await socket.send(msgpack.packb({}))
    async for _ in socket:
        print("thinks", flush=True)
        time.sleep(float(sys.argv[1]))
        array = np.zeros((10, 7), np.float32)
        reply = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": array.shape}
        await socket.send(msgpack.packb({"actions": reply}))

async def main():
    async with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as running:
        print(running.sockets[0].getsockname()[1], flush=True)
        await asyncio.sleep(120)

asyncio.run(main())
"""


def test_a_server_that_thinks_in_its_event_loop_is_waited_for_also_by_those_who_come_meanwhile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = pytest.importorskip("websockets.sync.client")
    connect = client.connect

    def impatient(*positional: Any, **options: Any) -> Any:
        """websockets' own limits of 20 s, made short: whoever leaves them in place fails here."""
        return connect(*positional, **{"ping_interval": 0.2, "ping_timeout": 0.2, "open_timeout": 0.5, **options})

    monkeypatch.setattr(client, "connect", impatient)
    monkeypatch.setattr(remote_policy, "NEWS_S", 1.0)
    command = [sys.executable, "-c", THINKING_SERVER, "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = f"ws://127.0.0.1:{int(process.stdout.readline())}"
            first = RemotePolicy(url)
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(first.act(observation())))
            asking.start()
            assert process.stdout.readline().strip() == "thinks"
            second = RemotePolicy(url)  # its handshake is answered after 3 s
            asking.join(60)
            assert answers[0].actions.shape == (REPLAN_STEPS, 7)
            assert second.act(observation()).actions.shape == (REPLAN_STEPS, 7)
            assert "thinks: 1 s of at most 600 s" in capsys.readouterr().err
            first.close()
            second.close()
        finally:
            process.kill()


def test_a_server_that_was_started_again_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    with server(lambda request: {"actions": CHUNK}) as url:
        policy = RemotePolicy(url)
        policy.act(observation())
    started = threading.Event()
    over = threading.Event()

    def start_again() -> None:
        with server(lambda request: {"actions": -CHUNK}, int(url.rsplit(":", 1)[1])):
            started.set()
            over.wait(60)

    thread = threading.Timer(1.5, start_again)
    thread.start()
    try:
        chunk = policy.act(observation())
        assert started.is_set()
        np.testing.assert_array_equal(chunk.actions, -CHUNK[:REPLAN_STEPS].astype(np.float64))
        assert "waiting 120 s for it to return" in capsys.readouterr().err
    finally:
        over.set()
        thread.join(30)


def test_a_server_that_stays_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_policy, "RETURN_S", 0.5)
    with server(lambda request: {"actions": CHUNK}) as url:
        policy = RemotePolicy(url)
    for _ in range(2):
        with pytest.raises(VegaError, match="start it again"):
            policy.act(observation())


def test_a_server_is_asked_on_after_it_has_failed_once() -> None:
    replies: list[Any] = ["Traceback ...\nRuntimeError: out of memory", {"actions": CHUNK}]
    with server(lambda request: replies.pop(0)) as url:
        policy = RemotePolicy(url)
        with pytest.raises(VegaError, match="failed: RuntimeError: out of memory"):
            policy.act(observation())
        assert policy.act(observation()).actions.shape == (REPLAN_STEPS, 7)
        policy.close()


def test_silence_ends_and_its_late_answer_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    seen: list[int] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        if len(seen) == 1:
            release.wait(60)
        return {"actions": CHUNK * len(seen)}

    with server(answer) as url:
        policy = RemotePolicy(url)
        monkeypatch.setattr(remote_policy, "ANSWER_S", 0.5)
        with pytest.raises(VegaError, match="has not answered within"):
            policy.act(observation())
        monkeypatch.setattr(remote_policy, "ANSWER_S", 60.0)
        release.set()
        np.testing.assert_allclose(policy.act(observation()).actions, 2 * CHUNK[:REPLAN_STEPS])
        policy.close()
