"""A bag of another version or another program: one sentence that names it and what it lacks, before anything runs.

And what a bag's joint states are compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from ros_harness import ROOT
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.parameters.robot_file import read_robot_file
from vega3d_ros.recording.recording import BagWriter, Topic
from vega3d_ros.recording.replay import replay
from vega3d_ros.recording.replay_bag import Bag, used_sample
from vega3d_ros.recording.replay_run import Difference
from vega3d_ros.ros.conversions import stamp_ns
from vega3d_ros.ros.joint_states import JointReader

VALUES = {
    **read_robot_file(ROOT / "config" / "robots" / "libero.yaml"),
    "policy": "tiny_policy:TinyPolicy",
    "clock_mode": "lockstep",
}
INFO = {
    "node": "/policy_node",
    "parameters": VALUES,
    "robot_description": (ROOT / "config" / "robots" / "libero_panda.urdf").read_text(),
    "checkpoint_sha256": "",
    "commands": ["/panda_arm_controller/joint_trajectory"],
}
SAMPLE = {"positions": [0.0] * 7, "velocities": [0.0] * 7, "gripper_positions": [0.04, 0.04]}
COMMAND = {
    "positions": [0.0] * 7, "velocities": [0.0] * 7, "gripper": 0.0, "rejected": [], "touched": [], "lead": False,
}  # fmt: skip
QUERY = {
    "event": "query", "query": 0, "sample_ns": 5, "frames_ns": {"agentview": [1]}, "instruction": "lift",
    "base_position": [0.0] * 3, "base_quaternion": [0.0, 0.0, 0.0, 1.0],
}  # fmt: skip
CHUNK = {"event": "chunk", "query": 0, "latency_s": 0.1, "actions": [[0.0] * 7], "error": ""}
TICK = {"event": "tick", "sample_ns": 5, "time_ns": 5, "begin_ns": 0, "sample": SAMPLE, "command": COMMAND}


def bag_of(folder: Path, *events: dict[str, Any], **info: Any) -> Path:
    """A bag whose recorder noted this, and whose node decided that after its start."""
    topics = ("/policy_node/recording", "/policy_node/decisions")
    writer = BagWriter(folder, {name: Topic(name, "std_msgs/msg/String", True, True) for name in topics})
    journal = [{"n": n, **event} for n, event in enumerate(({"event": "start"}, *events))]
    for name, notes in zip(topics, ([{**INFO, **info}], journal), strict=True):
        for note in notes:
            writer.offer(name, 1, serialize_message(String(data=json.dumps(note))))
    writer.close()
    return folder


def without(event: dict[str, Any], *path: str) -> dict[str, Any]:
    if len(path) > 1:
        return {**event, path[0]: without(event[path[0]], *path[1:])}
    return {name: value for name, value in event.items() if name != path[0]}


def test_what_this_version_says_is_taken(tmp_path: Path) -> None:
    with Bag(bag_of(tmp_path / "bag", QUERY, CHUNK, TICK, {**TICK, "command": None})) as bag:
        assert len(bag.decisions) == 5


@pytest.mark.parametrize("actions", [[0.0] * 7, [], 0.5, None])
def test_a_chunk_of_a_wrong_shape_is_a_fault_that_was_recorded(actions: object, tmp_path: Path) -> None:
    with Bag(bag_of(tmp_path / "bag", QUERY, {**CHUNK, "actions": actions})) as bag:
        assert len(bag.decisions) == 3


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"event": "handover", "x": 1}, "its decision 1 is 'handover', which this version does not know"),
        *((without(QUERY, name), f"'query', does not say '{name}'") for name in QUERY if name != "event"),
        *((without(CHUNK, name), f"'chunk', does not say '{name}'") for name in CHUNK if name != "event"),
        *((without(TICK, name), f"'tick', does not say '{name}'") for name in ("sample_ns", "sample", "command")),
        *((without(TICK, "sample", name), f"does not say 'sample.{name}'") for name in SAMPLE),
        *((without(TICK, "command", name), f"does not say 'command.{name}'") for name in COMMAND),
        ({**TICK, "command": {**COMMAND, "torque": 1.0}}, "does not say 'command.torque'"),
        ({**TICK, "sample": {**SAMPLE, "positions": ["a"]}}, "does not say 'sample.positions'"),
        ({**QUERY, "frames_ns": {"agentview": []}}, "does not say 'frames_ns'"),
        ({**CHUNK, "actions": [[0.0], [0.0, 1.0]]}, "does not say 'actions'"),
        ({"event": "brake", "time_ns": 1}, "'brake', does not say 'begin_ns'"),
        ({"event": "release", "elsewhere": True}, "'release', does not say 'held'"),
    ],
)
def test_a_decision_of_another_version_is_told(event: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(VegaError) as refused:
        Bag(bag_of(tmp_path / "bag", event))
    sentence = str(refused.value)
    assert sentence.startswith(f"The bag {tmp_path / 'bag'} was not made by this version's") and said in sentence


@pytest.mark.parametrize("name", ["policy", "clock_mode", "cameras.agentview.topic"])
def test_a_parameter_that_was_not_recorded_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(VegaError, match=f"bag was not made .* does not say 'parameters.{name}'"):
        Bag(bag_of(tmp_path / "bag", TICK, parameters=without(VALUES, name)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"merge": "gone"}, "'merge' is 'gone'"),
        ({"threads": "two"}, "'threads'"),
        ({"threads": 100_000}, "100000"),
        ({"home": {"a": 1}}, "not one of the allowed types"),
        ({"home": [1.0, "a"]}, "not a list of one of the allowed types"),
    ],
)
def test_a_parameter_that_this_version_does_not_take_is_told(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = bag_of(tmp_path / "bag", TICK, parameters={**VALUES, **changed})
    with pytest.raises(VegaError, match=f"The bag {folder} was recorded with parameters") as refused:
        list(replay(folder))
    assert said in str(refused.value)


def test_a_gripper_that_a_stream_of_positions_could_not_move_was_told_nothing_and_is_no_reason(tmp_path: Path) -> None:
    """policy_node refuses such a robot's file since; what was recorded with one moves nothing."""
    forward = {
        **VALUES, "clock_mode": "realtime", "committed": True, "command_interface": "forward_position",
        "forward_position.jerk": [5000.0],
    }  # fmt: skip
    assert forward["gripper.command_joint"] and not forward.get("gripper.controller")
    folder = bag_of(tmp_path / "bag", {**TICK, "command": None}, TICK, parameters=forward)
    said = replay(folder)
    assert "recorded: policy" in next(said)
    assert "gripper had no controller" in next(said)
    with pytest.raises(Difference, match="there is no command now, unlike then"):
        next(said)


def heard(velocity_filter_s: float, velocities: bool, since: int) -> dict[int, dict[str, list[float]]]:
    """Stamp -> what a tick says of a joint that passes half a turn, by a node that hears it from message `since` on."""
    reader, found = JointReader(["a"], [], velocity_filter_s, ["a"]), {}
    for number in range(since, 12):
        angle = 2.9 + 0.05 * number + 0.01 * number**2
        message = JointState(name=["a"], position=[(angle + np.pi) % (2 * np.pi) - np.pi])
        message.velocity = [0.5] if velocities else []
        message.header.stamp.nanosec = 10_000_000 * number
        sample = reader.read(message, 0.01 * number)
        if sample is not None:
            said = {"positions": sample.positions, "velocities": sample.velocities, "gripper_positions": np.zeros(0)}
            found[stamp_ns(message.header.stamp)] = {name: value.tolist() for name, value in said.items()}
    return found


@pytest.mark.parametrize(("filter_s", "velocities"), [(0.0, True), (0.05, False)])
def test_what_the_node_had_not_heard_before_is_no_difference(filter_s: float, velocities: bool) -> None:
    """The bag begins before the node was active, and knows of another turn and other differences of positions."""
    stamp = 100_000_000
    bag, node = (heard(filter_s, velocities, since)[stamp] for since in (0, 8))
    assert bag["positions"][0] - node["positions"][0] == pytest.approx(2 * np.pi)
    assert (bag["velocities"] != node["velocities"]) == bool(filter_s)
    known = {stamp: [JointSample(stamp, **{name: np.array(value) for name, value in bag.items()})]}
    endless = np.array([True])

    def used(sample: dict[str, list[float]], endless: Any = endless) -> dict[str, list[float]]:
        found = used_sample({"sample_ns": stamp, "sample": sample}, known, endless, bool(filter_s))
        assert found is not None
        return {name: getattr(found, name).tolist() for name in sample}

    assert used(node) == node
    # It is compared all the same.
    for name in ("positions", *(["velocities"] if velocities else [])):
        other = {**node, name: [node[name][0] + 1e-6]}
        assert used(other) != other
    assert used(node, np.array([False])) != node
    assert used_sample({"sample_ns": stamp + 1, "sample": node}, known, endless, bool(filter_s)) is None
