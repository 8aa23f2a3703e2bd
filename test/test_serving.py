"""`vega3d-serve`: the shipped policy asked from outside, what a bad request leads to, and who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_harness import DEADLINE_S, ROOT

from policies.checkpoints import load_policy
from policies.openvla.robots import libero_proprio
from policies.serving import openpi, vla_eval
from policies.serving.libero import check_served, observation, quaternion
from policies.serving.messages import pack, unpack
from policies.serving.serve import main
from policies.serving.server import Decider, serve
from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, RobotState, VegaError
from sim.evaluation.remote_policy import RemotePolicy

RNG, BASE = np.random.default_rng(3), np.array([-0.6, 0.0, 0.0])
INSTRUCTION = "pick up the milk and place it in the basket"


def seen() -> Observation:
    images = {name: RNG.integers(0, 255, (1, 256, 256, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    down = np.array([0.999, 0.01, 0.02, 0.03])
    state = RobotState(
        0, (), np.zeros(7), np.zeros(7), np.array([0.039, 0.038]), np.array([0.4, 0.1, 0.3]),
        down / np.linalg.norm(down),
    )  # fmt: skip
    return Observation(images, state, INSTRUCTION, 7, base_position=BASE)


def request_of(asked: Observation) -> dict[str, Any]:
    return {
        "observation/image": asked.images["agentview"][0][:, ::-1],
        "observation/wrist_image": asked.images["wrist"][0][:, ::-1],
        "observation/state": libero_proprio(asked),
        "prompt": asked.instruction,
    }


@contextlib.contextmanager
def serving(*options: str, path: Path = ROOT) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of this machine and its process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, "-m", "policies.serving.serve", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            yield next(word for word in said.split() if word.startswith("ws://")), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as (address, _):
        yield address


def connect(url: str) -> Any:
    return pytest.importorskip("websockets.sync.client").connect(url, compression=None, max_size=None)


def test_who_asks_gets_what_the_policy_itself_answers(url: str) -> None:
    asked = seen()
    here = load_policy("vega-nano").act(asked).actions
    with connect(url) as client:
        metadata = unpack(client.recv(60))
        assert metadata["robot"] == "libero" and metadata["image_sizes"]["agentview"] == [256, 256]
        for _ in range(2):
            client.send(pack(request_of(asked)))
            answer = unpack(client.recv(60))
    assert answer["actions"].dtype == np.float64 and answer["server_timing"]["prev_total_ms"] > 0
    np.testing.assert_allclose(answer["actions"], here, atol=1e-6)


def test_our_own_client_asks_our_own_server(url: str) -> None:
    asked = seen()
    policy = RemotePolicy(url)
    chunk = policy.act(asked)
    policy.close()
    # Pictures go through openpi's 224 pixels: noise as here changes by that, a scene hardly does.
    assert chunk.actions.shape == (5, 7) and np.isfinite(chunk.actions).all()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prompt": "juggle the chainsaws"}, "names 'juggle', which this policy does not know"),
        ({"prompt": 3}, "no prompt"),
        ({"observation/wrist_image": None}, "camera 'wrist'"),
        ({"observation/image": np.zeros((2, 224, 224, 3), np.uint8)}, "uint8 RGB"),
        ({"observation/state": np.full(8, np.nan)}, "8 finite numbers"),
        ({"observation/state": np.zeros(7)}, "8 finite numbers"),
    ],
)
def test_a_bad_request_is_text_with_one_sentence_and_the_next_is_answered(
    url: str, change: dict[str, Any], part: str
) -> None:
    with connect(url) as client:
        client.recv(60)
        client.send(pack({**request_of(seen()), **change}))
        said = client.recv(60)
        assert isinstance(said, str) and part in said.strip().splitlines()[-1]
    test_our_own_client_asks_our_own_server(url)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x00" * 1000, "hello", pack([1]), pack({b"__ndarray__": True, b"dtype": "|O"})]
)
def test_bytes_that_are_no_request_are_refused(url: str, data: bytes | str) -> None:
    with connect(url) as client:
        client.recv(60)
        client.send(data)
        assert isinstance(client.recv(60), str)


def test_pages_of_a_browser_are_turned_away_and_health_is_told(url: str) -> None:
    with urllib.request.urlopen(url.replace("ws://", "http://") + "/healthz", timeout=120) as reply:
        assert reply.read() == b"OK\n"
    client = pytest.importorskip("websockets.sync.client")
    refused = pytest.importorskip("websockets.exceptions").InvalidStatus
    with pytest.raises(refused, match="403"):
        client.connect(url, origin="https://example.org")


def test_only_this_machine_can_ask(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), 5)


SLEEPY = """
import time
import numpy as np
from policies.types import ActionChunk, ActionSpace, PolicySpec

class Policy:
    spec = PolicySpec("sleepy", (), ActionSpace("eef_delta"), chunk_length=3, open_loop_horizon=2)
    count = 0
    def act(self, observation):
        if observation.instruction == "sleep":
            time.sleep(3600)
        Policy.count += 1
        return ActionChunk(np.full((3, 7), Policy.count / 8), observation.stamp_ns, observation.instruction)
    def reset(self):
        pass
"""
STATE = {"observation/state": np.zeros(8)}


def test_while_it_thinks_health_and_pings_are_answered_and_it_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    with serving("--policy", "sleepy:Policy", path=tmp_path) as (url, process), connect(url) as client:
        client.recv(60)
        client.send(pack({**STATE, "prompt": "sleep"}))
        assert client.ping().wait(120)
        with urllib.request.urlopen(url.replace("ws://", "http://") + "/healthz", timeout=120) as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0  # not the hour it still has to think


def test_a_client_that_builds_a_scene_in_its_event_loop_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """vla-eval's answers no ping for as long, and a server that asks closes the connection after 40 s."""
    server = pytest.importorskip("websockets.asyncio.server")
    given: dict[str, Any] = {}

    def listens(*_: object, **options: Any) -> None:
        given.update(options)
        raise OSError("not in this test")

    monkeypatch.setattr(server, "serve", listens)

    async def talk(socket: Any, decider: Any) -> None: ...

    with pytest.raises(VegaError, match="not in this test"):
        asyncio.run(serve(None, talk, "/", "127.0.0.1", 0, lambda *_: None))  # type: ignore[arg-type]
    assert given["ping_interval"] is None


class Patient:
    """Answers nobody before it may; it notes what it was asked."""

    spec = PolicySpec("patient", (), ActionSpace("eef_delta"), chunk_length=3, open_loop_horizon=2)

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.thinks, self.may_answer = threading.Event(), threading.Event()

    def act(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation.instruction)
        self.thinks.set()
        assert self.may_answer.wait(DEADLINE_S)
        return ActionChunk(np.zeros((3, 7)), observation.stamp_ns, observation.instruction)

    def reset(self) -> None: ...


def openpi_request(prompt: str) -> bytes:
    return pack({**STATE, "prompt": prompt})


def vla_eval_request(prompt: str) -> bytes:
    return pack({"type": "observation", "payload": {"states": np.zeros(8), "task_description": prompt}, "seq": 1})


@pytest.mark.parametrize(("protocol", "request_for"), [(openpi, openpi_request), (vla_eval, vla_eval_request)])
def test_nothing_is_computed_for_clients_that_have_gone(protocol: Any, request_for: Callable[[str], bytes]) -> None:
    clients = pytest.importorskip("websockets.asyncio.client")
    policy, left = Patient(), asyncio.Semaphore(0)

    async def talk(connection: Any, decider: Decider) -> None:
        try:
            await protocol.talk(connection, decider)
        finally:
            left.release()

    async def ask(url: str, prompt: str) -> Any:
        client = await clients.connect(url)
        if protocol is openpi:
            await client.recv()
        await client.send(request_for(prompt))
        return client

    async def within(event: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(event, DEADLINE_S)

    async def story() -> None:
        address = asyncio.get_running_loop().create_future()
        served = Decider(policy, BASE), talk, protocol.HEALTH, "127.0.0.1", 0
        server = asyncio.create_task(serve(*served, lambda *found: address.set_result(found)))
        url = "ws://{}:{}".format(*await within(address))
        first = await ask(url, "first")
        assert await asyncio.to_thread(policy.thinks.wait, DEADLINE_S)
        for _ in range(3):
            await (await ask(url, "gone")).close()
        for _ in range(3):
            await within(left.acquire())
        policy.may_answer.set()
        last = await ask(url, "last")
        for client in (first, last):
            assert "actions" in str(unpack(await within(client.recv())))
            await client.close()
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)

    try:
        asyncio.run(story())
    finally:
        policy.may_answer.set()
    assert policy.asked == ["first", "last"]


def test_vla_evals_protocol_gives_one_action_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)

    def ask(client: Any, kind: str, **payload: Any) -> dict[str, Any]:
        client.send(pack({"type": kind, "payload": payload, "seq": 5, "timestamp": 0.0}))
        return {} if kind.startswith("episode") else unpack(client.recv(60))

    options = ("--policy", "sleepy:Policy", "--protocol", "vla-eval")
    with serving(*options, path=tmp_path) as (url, _), connect(url) as client:
        hello = ask(client, "hello", harness_version="0.8.0")
        assert hello["type"] == "hello" and hello["payload"]["observation_params"]["send_state"] is True
        image = {"__ndarray__": True, "data": b"\0" * 12, "dtype": "|u1", "shape": [2, 2, 3]}
        state = {"__ndarray__": True, "data": np.zeros(8).tobytes(), "dtype": "<f8", "shape": [8]}
        given = []
        for _ in range(2):
            ask(client, "episode_start", task={})
            for _ in range(3):
                reply = ask(client, "observation", images={"agentview": image}, states=state, task_description="go")
                assert reply["type"] == "action" and reply["seq"] == 5 and reply["payload"]["actions"].shape == (7,)
                given.append(8 * reply["payload"]["actions"][0])
        # Two of a chunk's three are executed; a new episode does not go on with what the last one left.
        assert given == [1, 1, 2, 3, 3, 4]
        ask(client, "episode_start", task={})
        failed = ask(client, "observation", states=None, task_description="go")
        assert failed["type"] == "error" and "8 finite numbers" in failed["payload"]["error"]


def png(width: int, height: int, *others: tuple[bytes, bytes]) -> bytes:
    """A picture that says it is so large, with almost nothing in it."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(bytes(100))) + b"".join(part(*o) for o in others)


BROKEN = {
    "DecompressionBombError": png(20000, 20000),
    "SyntaxError": png(9, 9, (b"\x88\xf1s\xb2", b"")),  # a chunk that has no name, where more of the picture should be
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_cannot_be_read_is_a_value_error_whatever_the_reader_raises(kind: str) -> None:
    from PIL import Image

    with pytest.raises(Exception) as raised:
        Image.open(io.BytesIO(BROKEN[kind])).convert("RGB")
    assert type(raised.value).__name__ == kind
    with pytest.raises(ValueError, match="the message cannot be read"):
        unpack(pack({"__image__": True, "format": "png", "data": BROKEN[kind]}))


def test_a_number_in_place_of_text_is_no_length() -> None:
    with pytest.raises(ValueError, match="is text, not int"):
        unpack(pack({"__npgeneric__": True, "dtype": "S", "data": 2**20}))
    assert unpack(pack({"__npgeneric__": True, "dtype": "U", "data": "go"})) == unpack(pack(np.str_("go"))) == "go"


def test_whatever_vla_eval_is_sent_is_answered_and_the_connection_stays(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY.replace('"sleepy", ()', '"sleepy", ("agentview",)'))
    picture = {"agentview": np.zeros((8, 8, 3), np.uint8)}
    payload = {"images": picture, "states": np.zeros(8), "task_description": "go"}
    good = {"type": "observation", "payload": payload, "seq": 3}
    broken = {"__image__": True, "format": "png", "data": BROKEN["DecompressionBombError"]}
    bad = [
        ({**good, "payload": {**payload, "images": None}}, "no map of pictures"),
        ({**good, "payload": {**payload, "images": ["agentview"]}}, "no map of pictures"),
        ({**good, "payload": {**payload, "images": {"agentview": broken}}}, "cannot be read"),
        ({**good, "payload": {**payload, "states": {"a": 1}}}, "8 finite numbers"),
        ({**good, "payload": None}, "no payload"),
        ({**good, "seq": None}, "seq"),
        ({**good, "seq": float("inf")}, "seq"),
        ({**good, "seq": "9" * 30}, "seq"),
        ([1], "no payload"),
    ]
    options = ("--policy", "sleepy:Policy", "--protocol", "vla-eval")
    with serving(*options, path=tmp_path) as (url, _), connect(url) as client:
        for request, part in bad:
            client.send(pack(request))
            reply = unpack(client.recv(60))
            assert reply["type"] == "error" and part in reply["payload"]["error"], request
        client.send(pack(good))
        reply = unpack(client.recv(60))
        assert reply["type"] == "action" and reply["seq"] == 3


def test_a_policy_that_cannot_be_served_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    space = ActionSpace("eef_delta")
    for spec, part in (
        (PolicySpec("p", (), ActionSpace("joint_position", dim=8)), "only LIBERO policies"),
        (PolicySpec("p", ("agentview",), space, window=4), "4 frames"),
        (PolicySpec("p", ("head",), space), "head"),
    ):
        with pytest.raises(VegaError, match=part):
            check_served(spec)
    taken = socket.create_server(("127.0.0.1", 0))
    assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened on" in capsys.readouterr().err
    assert main(["--port", "70000"]) == 2
    taken.close()


@pytest.mark.parametrize("name", ["vega-nano", "vega-nano-prior"])
def test_who_serves_a_policy_that_remembers_is_told_that_it_cannot_here(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def begun(*served: Any) -> None:
        served[-1]("127.0.0.1", 8000)

    monkeypatch.setattr("policies.serving.serve.serve", begun)
    assert main(["--policy", name]) == 0
    assert ("decides without that" in capsys.readouterr().err) == (name == "vega-nano-prior")


def test_a_rotation_vector_comes_back_from_the_quaternion() -> None:
    from policies.openvla.preprocessing import axis_angle

    for vector in RNG.uniform(-2, 2, (20, 3)) / np.sqrt(3):
        np.testing.assert_allclose(axis_angle(quaternion(vector)), vector, atol=1e-12)
    np.testing.assert_allclose(quaternion(np.zeros(3)), [0, 0, 0, 1])
    spec = PolicySpec("p", (), ActionSpace("eef_delta"))
    world = np.array([0.1, 0.2, 0.3, 3.0, 0.1, 0.0, 0.04, -0.04])
    state = observation(spec, {}, world, "go", BASE).state
    np.testing.assert_allclose(state.eef_position, [0.7, 0.2, 0.3])
    np.testing.assert_allclose(state.gripper_positions, [0.04, 0.04])
