"""Recording beside a running node, and deciding the recording again."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from ros_harness import (
    CAMERAS,
    COMMANDS,
    DEADLINE_S,
    FakeRobot,
    Pace,
    image_of,
    node_environment,
    now_ns,
    policy_node,
    sample_at,
)
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from trajectory_msgs.msg import JointTrajectory

from policies.types import VegaError
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.recording import replay
from vega3d_ros.recording.recording import BagWriter, Topic
from vega3d_ros.recording.recovery import recover
from vega3d_ros.recording.replay_bag import Bag

WORDS = Topic("/words", "std_msgs/msg/String")


@contextmanager
def recorder(robot: FakeRobot, bag: Path) -> Iterator[ChildProcess]:
    """A recorder process that has started; it is ended, and must have ended well, on leaving."""
    domain = robot.node.context.get_domain_id()
    command = [sys.executable, "-m", "vega3d_ros.recording.recording_node", "--ros-args", "-p", f"bag:={bag}"]
    with ChildProcess("recorder", command, environment=node_environment(domain), on_line=None) as child:
        robot.client.trigger("recorder/start", DEADLINE_S)
        yield child
        child.signal(signal.SIGINT)
        assert child.wait(DEADLINE_S) == 0, child.tail()
        assert any("none were dropped" in line for line in child.tail()), child.tail()


def bring_up(robot: FakeRobot) -> None:
    assert robot.change("activate"), robot.log_text()
    assert robot.until(robot.connected)
    robot.send_instruction()


def deafen(robot: FakeRobot) -> None:
    """No controller listens to commands any more."""
    for subscription in list(robot.node.subscriptions):
        if subscription.topic_name == f"/{COMMANDS}":
            robot.node.destroy_subscription(subscription)


def is_lead(command: JointTrajectory) -> bool:
    """It only leads the controller to where the path begins."""
    return len(command.points) == 1


def all_recorded(robot: FakeRobot) -> None:
    """Wait until the recorder, too, hears what we send: a frame it misses cannot be replayed."""
    streams = [*robot.cameras.values(), robot.joint_states]
    assert robot.until(lambda: all(publisher.get_subscription_count() == 2 for publisher in streams))


@pytest.fixture(scope="module")
def lockstep_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in lockstep; in the second the instruction is withdrawn and another given."""
    bag = tmp_path_factory.mktemp("bags") / "lockstep"
    with policy_node() as (robot, _):
        assert robot.change("configure"), robot.log_text()
        with recorder(robot, bag):
            bring_up(robot)
            all_recorded(robot)
            for episode in range(2):
                robot.client.trigger("policy_node/start")
                for step in range(10):
                    if episode == 1 and step == 6:
                        robot.send_instruction("")
                        robot.send_instruction("pick up the ketchup")
                    robot.ask(100 * episode + step)
                robot.client.trigger("policy_node/stop")
            robot.diagnostics.clear()
            assert robot.until(lambda: bool(robot.diagnostics))
    return bag


def test_a_lockstep_recording_comes_out_again_bit_for_bit(lockstep_bag, capsys):
    assert replay.main([str(lockstep_bag)]) == 0
    printed = capsys.readouterr().out
    assert "commands: 20 equal in every bit, in 2 episode(s); 0 periods without a command; 0 joint" in printed
    assert f"on /{COMMANDS}: 20 messages equal, of 20 commands" in printed
    assert "chunks: 0 equal" not in printed and "0 not asked again" in printed


def test_the_bag_holds_inputs_decisions_and_commands(lockstep_bag):
    with Reader(lockstep_bag) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert {"/agentview/image_raw", "/wrist/image_raw", "/joint_states", "/instruction", "/base_pose"} <= set(counts)
    assert counts["/policy_node/recording"] == 1 and counts["/policy_node/decisions"] >= 30
    assert counts[f"/{COMMANDS}"] == 20 and counts["/diagnostics"] > 0 and counts["/instruction"] >= 2
    with Bag(lockstep_bag) as bag:
        assert bag.info["parameters"]["policy"] == "tiny_policy:TinyPolicy"
        assert bag.info["parameters"]["safety.acceleration"] == [40.0]
        assert "<robot" in bag.info["robot_description"]


def test_another_policy_is_a_difference(lockstep_bag, capsys):
    assert replay.main([str(lockstep_bag), "--policy", "tiny_policy:EagerPolicy"]) == 1
    said = capsys.readouterr()
    assert "the policy is asked at 50000000 ns now and was not then" in said.err
    assert "The same commands" not in said.out and len(said.err.splitlines()) == 1


def test_a_policy_that_cannot_begin_an_episode_is_a_difference(lockstep_bag, capsys):
    assert replay.main([str(lockstep_bag), "--policy", "tiny_policy:ForgetfulPolicy"]) == 1
    said = capsys.readouterr().err
    assert "the policy fails now (CUDA out of memory) and did not then" in said and len(said.splitlines()) == 1


def spoil(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Change one thing in the bags that are read from now on."""
    original = Bag.queries

    def queries(self):
        done = False
        for decided, frames in original(self):
            event = dict(decided.event)
            if what == "command" and event["event"] == "tick" and event["n"] > 20 and not done:
                positions = list(event["command"]["positions"])
                positions[3] = float(np.nextafter(positions[3], 10.0))
                event["command"] = {**event["command"], "positions": positions}
                done = True
            if what == "chunk" and event["event"] == "chunk" and event["n"] > 20 and not done:
                actions = np.array(event["actions"])
                actions[0, 0] = np.nextafter(actions[0, 0], 10.0)
                event["actions"], done = actions.tolist(), True
            if what == "frames" and frames is not None and not done:
                frames, done = None, True
            yield changed(decided, event=event), frames

    monkeypatch.setattr(Bag, "queries", queries)


@pytest.mark.parametrize(("what", "said"), [("command", "differs in positions"), ("chunk", "the chunk for")])
def test_one_bit_is_a_difference(lockstep_bag, monkeypatch, capsys, what, said):
    spoil(monkeypatch, what)
    assert replay.main([str(lockstep_bag)]) == 1
    assert said in capsys.readouterr().err


def test_a_command_on_the_wire_that_was_not_decided_is_a_difference(lockstep_bag, monkeypatch, capsys):
    original = Bag.trajectories

    def trajectories(self, topic):
        for number, (time_ns, message) in enumerate(original(self, topic)):
            if number == 7:
                message.points[0].velocities[2] += 1e-9
            yield time_ns, message

    monkeypatch.setattr(Bag, "trajectories", trajectories)
    assert replay.main([str(lockstep_bag)]) == 1
    assert f"message 7 on /{COMMANDS}" in capsys.readouterr().err


def test_a_command_whose_decision_the_recorder_did_not_live_to_hear_is_no_difference(lockstep_bag, monkeypatch, capsys):
    original = Bag.__init__

    def shorter(self, folder):
        original(self, folder)
        while self.decisions[-1].event["event"] != "tick" or not self.decisions[-1].event["command"]:
            self.decisions.pop()
        self.decisions.pop()

    monkeypatch.setattr(Bag, "__init__", shorter)
    assert replay.main([str(lockstep_bag)]) == 0
    assert "; 1 after the last recorded decision not compared" in capsys.readouterr().out


def test_what_the_recorder_missed_is_said(lockstep_bag, monkeypatch, capsys):
    spoil(monkeypatch, "frames")
    monkeypatch.setattr(Bag, "samples", lambda self, parameters: {})
    # The policy counts its queries, so that one it was not asked makes the next differ.
    assert replay.main([str(lockstep_bag)]) == 1
    assert "the chunk for" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(Bag, "samples", lambda self, parameters: {})
    assert replay.main([str(lockstep_bag)]) == 0
    assert "20 joint states missing" in capsys.readouterr().out


@pytest.mark.parametrize("filter_s", [0.0, 0.05], ids=["", "without velocities"])
def test_a_realtime_recording_comes_out_again_bit_for_bit(filter_s, tmp_path, capsys):
    bag, noise = tmp_path / "realtime", np.random.default_rng(0)
    settings = {"clock_mode": "realtime", "max_age_s": 5.0, "max_skew_s": 1.0, "committed": True}
    settings["velocity_filter_s"] = filter_s
    # With stamps, and with commands that a busy machine makes too late to be sent.
    with policy_node(**settings, command_ahead_s=0.05) as (robot, _):
        assert robot.change("configure"), robot.log_text()
        count, pictures = [0], [image_of(seed) for seed in range(4)]

        def tick() -> None:
            stamp = now_ns()
            for index, camera in enumerate(CAMERAS):
                robot.send_image(camera, pictures[(count[0] + index) % 4], stamp)
            sample = changed(robot.sample_now(), stamp_ns=stamp)
            if filter_s:  # with it goes that encoders are never quite still
                flicker = sample.positions + noise.normal(0.0, 1e-5, 7)
                sample = changed(sample, positions=flicker, velocities=np.zeros(7))
            robot.send_joints(sample)
            count[0] += 1

        with recorder(robot, bag):
            bring_up(robot)
            all_recorded(robot)
            with Pace(robot, 0.05, tick):
                robot.client.trigger("policy_node/start")
                assert robot.until(lambda: len(robot.commands) > 20), robot.sentence()
                robot.send_instruction("pick up the ketchup")
                assert robot.until(lambda: len(robot.commands) > 40), robot.sentence()
                # The controller goes, and comes back.
                deafen(robot)
                assert robot.shows(2, "Nobody listens")
                back = len(robot.commands)
                robot.node.create_subscription(JointTrajectory, COMMANDS, robot.hear, 100)
                assert robot.until(lambda: len(robot.commands) > back + 10), robot.sentence()
                assert is_lead(robot.commands[back]) and not is_lead(robot.commands[-1])
                robot.client.trigger("policy_node/stop")
                robot.client.trigger("policy_node/start")
                before = len(robot.commands)
                assert robot.until(lambda: len(robot.commands) > before + 10), robot.sentence()
                robot.client.trigger("policy_node/stop")
    status = replay.main([str(bag)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "in 2 episode(s)" in printed.out and "The same commands came out." in printed.out
    assert ("velocities not compared" in printed.out) == bool(filter_s)
    with Bag(bag) as read:
        commands = sum(1 for d in read.decisions if d.event["event"] == "tick" and d.event["command"])
        assert commands > 50 and f"commands: {commands} equal" in printed.out


def test_a_recorder_alone_does_not_count_as_an_arm(tmp_path):
    with policy_node() as (robot, _):
        assert robot.change("configure"), robot.log_text()
        deafen(robot)
        with recorder(robot, tmp_path / "bag"):
            bring_up(robot)
            robot.client.trigger("policy_node/start")
            robot.send_images(1)
            robot.send_joints(sample_at(1))
            assert robot.shows(2, "Nobody listens")
            robot.node.create_subscription(JointTrajectory, COMMANDS, robot.commands.append, 100)
            robot.ask(2)


def test_recording_that_cannot_begin_is_refused_with_one_sentence(tmp_path):
    with policy_node() as (robot, _):
        assert robot.change("configure"), robot.log_text()
        domain = robot.node.context.get_domain_id()
        command = [sys.executable, "-m", "vega3d_ros.recording.recording_node"]
        command += ["--ros-args", "-p", "bag:=/proc/nowhere/bag"]
        with (
            ChildProcess("recorder", command, environment=node_environment(domain), on_line=None),
            pytest.raises(VegaError, match="The bag /proc/nowhere/bag cannot be made"),
        ):
            robot.client.trigger("recorder/start", DEADLINE_S)


@pytest.fixture(scope="module")
def killed_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a recorder killed in the middle of an episode, once ten commands were on the disk."""
    bag = tmp_path_factory.mktemp("bags") / "killed"
    with policy_node() as (robot, _):
        assert robot.change("configure"), robot.log_text()
        domain = robot.node.context.get_domain_id()
        command = [sys.executable, "-m", "vega3d_ros.recording.recording_node", "--ros-args", "-p", f"bag:={bag}"]
        with ChildProcess("recorder", command, environment=node_environment(domain), on_line=None) as child:
            robot.client.trigger("recorder/start", DEADLINE_S)
            bring_up(robot)
            all_recorded(robot)
            robot.client.trigger("policy_node/start")
            for step in range(10):
                robot.ask(step)

            def commands_on_disk() -> int:
                """Read beside the recorder that writes."""
                with tempfile.TemporaryDirectory() as folder:
                    recover(bag, Path(folder) / "copy")
                    with Reader(Path(folder) / "copy") as reader:
                        return sum(
                            connection.msgcount for connection in reader.connections if "/joint_t" in connection.topic
                        )

            assert robot.until(lambda: bool(list(bag.glob("*.mcap"))) and commands_on_disk() >= 10)
            child.signal(signal.SIGKILL)
            child.wait(DEADLINE_S)
    assert not (bag / "metadata.yaml").exists()
    return bag


def test_what_a_killed_recorder_left_comes_out_again(killed_bag, tmp_path, capsys):
    assert replay.main([str(killed_bag)]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "recovered up to the last whole chunk: " in printed and "commands: 10 equal in every bit" in printed
    (file,) = killed_bag.glob("*.mcap")
    alone = tmp_path / "alone.mcap"
    alone.write_bytes(file.read_bytes())
    assert replay.main([str(alone)]) == 0
    # Within a record: what is whole is read, what is not is counted.
    alone.write_bytes(file.read_bytes()[:-1])
    assert replay.main([str(alone)]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("recovered"))
    assert " 0 bytes after them are lost" in first and " 0 bytes after them are lost" not in second


def test_the_file_alone_of_a_whole_bag_is_read(lockstep_bag, tmp_path, capsys):
    (file,) = lockstep_bag.glob("*.mcap")
    alone = tmp_path / "somewhere.mcap"
    alone.write_bytes(file.read_bytes())
    assert replay.main([str(alone)]) == 0
    assert "commands: 20 equal in every bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "has 0 bytes"), (b"\x89MCAP0\r\n", "not one whole chunk"), (b"hello world" * 9, "Nothing of the bag")],
)
def test_a_file_with_nothing_in_it_is_one_sentence(tmp_path, capsys, data, said):
    folder = tmp_path / "bag"
    folder.mkdir()
    (folder / "bag.mcap").write_bytes(data)
    for bag in (folder, folder / "bag.mcap"):
        assert replay.main([str(bag)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line and "reindex" not in line


def test_a_damaged_bag_is_read_or_refused_in_one_sentence(tmp_path):
    """Whatever byte is damaged, and whether or not its index is there."""
    store = get_typestore(Stores.LATEST)
    kind = store.types["std_msgs/msg/String"]
    names = ("/policy_node/recording", "/policy_node/decisions", f"/{COMMANDS}")
    kinds = (*[WORDS.kind] * 2, "trajectory_msgs/msg/JointTrajectory")
    topics = {name: Topic(name, of) for name, of in zip(names, kinds, strict=True)}
    writer = BagWriter(tmp_path / "bag", topics)
    notes = [{"node": "/policy_node", "parameters": {}}, *({"n": n, "event": "start"} for n in range(20))]
    for number, note in enumerate(notes):
        message = store.serialize_cdr(kind(data=json.dumps(note)), WORDS.kind)
        writer.offer(names[number > 0], number, bytes(message))
        writer.offer(names[2], number, b"\0\1\0\0" + bytes(28))
    writer.close()
    (file,) = (tmp_path / "bag").glob("*.mcap")
    whole, index = file.read_bytes(), (tmp_path / "bag" / "metadata.yaml").read_bytes()
    random, refused = np.random.default_rng(0), 0
    for attempt in range(60):
        data, place = bytearray(whole), int(random.integers(8, len(whole)))
        if attempt % 3 == 0:
            data[place] ^= 1 << int(random.integers(8))
        elif attempt % 3 == 1:
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        else:
            del data[place : place + 100]
        damaged = tmp_path / f"damaged{attempt}"
        damaged.mkdir()
        (damaged / file.name).write_bytes(data)
        if attempt % 2:
            (damaged / "metadata.yaml").write_bytes(index)
        try:
            with Bag(damaged) as bag:
                list(bag.trajectories(names[2]))
        except VegaError as error:
            refused += 1
            assert str(damaged) in str(error) and "\n" not in str(error)
    assert refused > 5
