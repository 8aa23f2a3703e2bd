"""The policy in a process of its own: it answers as it would here, and its end is never waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ros_harness import CAMERAS, JOINTS, image_of, node_environment
from tiny_policy import ForgetfulPolicy, TinyPolicy

from policies.types import Observation, RobotState, VegaError
from vega3d_ros.control.chunk_scheduler import Query
from vega3d_ros.inference.realtime import Answer, InferenceWorker
from vega3d_ros.inference.separate_policy import SeparatePolicy

DEADLINE_S = 240.0
SEEN = Observation(
    stamp_ns=7,
    images={camera: np.stack([image_of(index)]) for index, camera in enumerate(CAMERAS)},
    state=RobotState(
        stamp_ns=7,
        joint_names=tuple(JOINTS),
        joint_positions=np.arange(7.0),
        joint_velocities=np.zeros(7),
        gripper_positions=np.zeros(2),
        eef_position=np.zeros(3),
        eef_quaternion=np.array([0.0, 0.0, 0.0, 1.0]),
    ),
    instruction="go",
)


@pytest.fixture
def tiny() -> Iterator[SeparatePolicy]:
    policy = SeparatePolicy("tiny_policy:TinyPolicy")
    yield policy
    policy.close()


def child_of(policy: SeparatePolicy) -> int:
    return policy._process.pid


def gone(pid: int) -> bool:
    """Whether a process ends within the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_it_answers_as_it_would_here(tiny: SeparatePolicy) -> None:
    here = TinyPolicy()
    assert tiny.spec == here.spec
    for _ in range(2):
        for _ in range(3):
            there, chunk = tiny.act(SEEN), here.act(SEEN)
            assert np.array_equal(there.actions, chunk.actions) and there.world_age == chunk.world_age
            assert np.array_equal(there.gates["wrist"], chunk.gates["wrist"])
            assert (there.stamp_ns, there.instruction) == (7, "go")
        tiny.reset()
        here.reset()


def test_what_it_raises_is_raised_here_and_ends_nothing() -> None:
    policy = SeparatePolicy("tiny_policy:RaisingPolicy")
    try:
        policy.act(SEEN)
        with pytest.raises(VegaError, match=r"RuntimeError: CUDA error: device lost.*~/start"):
            policy.act(SEEN)
        policy.reset()
        assert policy.act(SEEN).stamp_ns == 7
    finally:
        policy.close()


def test_an_episode_that_cannot_begin_is_told_as_such_and_may_the_next_time() -> None:
    policy = SeparatePolicy("tiny_policy:ForgetfulPolicy")
    try:
        policy.reset()
        with pytest.raises(VegaError, match=r"could not begin anew \(RuntimeError: CUDA out of memory\).*~/start"):
            policy.reset()
        policy.reset()
        assert policy.act(SEEN).stamp_ns == 7
    finally:
        policy.close()


def test_what_a_policy_raises_at_the_beginning_of_an_episode_is_the_answer_to_every_question_of_that_episode() -> None:
    worker = InferenceWorker(ForgetfulPolicy())

    def answers(count: int) -> list[Answer]:
        found: list[Answer] = []
        for number in range(count):
            worker.ask(SEEN, Query(0, 0, number), 0)
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < count and time.monotonic() < deadline:
            answer = worker.answer()
            found += [] if answer is None else [answer]
            threading.Event().wait(0.0 if answer else 0.01)
        return found

    try:
        for ready in (True, False, True):
            worker.reset()
            found = answers(2)
            assert len(found) == 2
            for answer in found:
                assert (answer.chunk is not None) == (answer.error is None) == ready
                assert ready or "could not begin anew (RuntimeError: CUDA out of memory)" in str(answer.error)
    finally:
        assert worker.close(DEADLINE_S)


@pytest.mark.parametrize(
    "name, words",
    [
        ("tiny_policy:UnloadablePolicy", "cut short"),
        ("tiny_policy:SpeclessPolicy", "is no policy.*PolicySpec"),
        ("no-such-policy", "There is no policy"),
    ],
)
def test_one_that_cannot_be_loaded_says_why(name: str, words: str) -> None:
    with pytest.raises(VegaError, match=words):
        SeparatePolicy(name)


def test_the_death_of_its_process_is_told_and_told_again(tiny: SeparatePolicy) -> None:
    os.kill(child_of(tiny), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(VegaError, match=r"ended \(exit status -9\).*configure it again"):
            tiny.act(SEEN)


def test_closing_ends_one_that_hangs_and_frees_who_waits() -> None:
    policy = SeparatePolicy("tiny_policy:HangingPolicy")
    raised: list[Exception] = []

    def wait() -> None:
        try:
            policy.act(SEEN)
        except VegaError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    policy.close()
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive() and "has ended" in str(raised[0])
    assert gone(child_of(policy))


def test_it_does_not_outlive_a_process_that_was_killed() -> None:
    """The policy hangs, and policy_node is killed -9."""
    script = (
        "from vega3d_ros.inference.separate_policy import SeparatePolicy\n"
        "from test_separate_policy import SEEN\n"
        "policy = SeparatePolicy('tiny_policy:HangingPolicy')\n"
        "print(policy._process.pid, flush=True)\n"
        "policy.act(SEEN)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=node_environment(0), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(DEADLINE_S)
    assert gone(pid)
