"""The writer of a bag: soon on the disk, never in the way, and nothing of others is written over."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import threading
import time

import pytest
from ros_harness import DEADLINE_S, ROOT, node_environment
from rosbags.rosbag2 import Reader

from policies.types import VegaError
from sim.robot.ros_client import unused_domain
from vega3d_ros.recording import recording
from vega3d_ros.recording.recording import FLUSH_S, BagWriter, Topic
from vega3d_ros.recording.recovery import recover

WORDS = Topic("/words", "std_msgs/msg/String")


def test_a_message_is_on_the_disk_as_a_whole_chunk_within_a_second(tmp_path):
    writer = BagWriter(tmp_path / "bag", {"/words": WORDS})
    offered = time.monotonic()
    writer.offer("/words", 7, b"\0\1\0\0\2\0\0\0a\0\0\0")
    found, number = None, 0
    while found is None and time.monotonic() < offered + DEADLINE_S:
        number += 1
        with contextlib.suppress(VegaError):
            found = recover(tmp_path / "bag", tmp_path / f"copy{number}")
    assert found is not None and found.messages == 1 and found.first_ns == 7
    assert FLUSH_S < 1.0
    writer.close()
    with Reader(tmp_path / "bag") as reader:
        assert [time_ns for _, time_ns, _ in reader.messages()] == [7]


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path):
    writer = BagWriter(tmp_path / "bag", {"/words": WORDS}, queue_bytes=100)
    gate, write = threading.Event(), writer._writer.write

    def slow(*arguments) -> None:
        gate.wait(DEADLINE_S)
        write(*arguments)

    writer._writer.write = slow
    for number in range(5):
        writer.offer("/words", number, bytes(40))
    assert writer.written.dropped["/words"] == 3
    gate.set()
    assert writer.close().sentence() == "2 messages are recorded; 3 of /words were dropped."
    with Reader(tmp_path / "bag") as reader:
        assert [time_ns for _, time_ns, _ in reader.messages()] == [0, 1]


def test_what_a_slow_disk_does_not_take_in_time_is_dropped_and_counted_and_the_bag_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "WRITE_SHARE", 0.05)
    writer = BagWriter(tmp_path / "bag", {"/words": WORDS})
    write = writer._writer.write

    def slow(*arguments) -> None:
        time.sleep(0.1)
        write(*arguments)

    writer._writer.write = slow
    for number in range(3000):
        writer.offer("/words", number, bytes(40))
    written = writer.close(20.0)
    kept, dropped = written.messages["/words"], written.dropped["/words"]
    assert kept + dropped == 3000 and dropped > 0 and f"{dropped} of /words were dropped" in written.sentence()
    assert (tmp_path / "bag" / "metadata.yaml").exists()
    with Reader(tmp_path / "bag") as reader:
        assert [time_ns for _, time_ns, _ in reader.messages()] == list(range(kept))


def test_a_disk_that_takes_nothing_is_one_sentence_with_what_was_dropped(tmp_path):
    writer = BagWriter(tmp_path / "bag", {"/words": WORDS})
    gate = threading.Event()
    writer._writer.write = lambda *_: gate.wait(DEADLINE_S)
    for number in range(3):
        writer.offer("/words", number, bytes(40))
    try:
        with pytest.raises(VegaError, match=r"too slow, and the bag was left .*: .*3 of /words were dropped\.$"):
            writer.close(0.2)
    finally:
        gate.set()


SLOW_RECORDER = """
import pathlib, sys, threading, time
import os, signal
from vega3d_ros.recording import recording, recording_node
from vega3d_ros.ros.node_process import run_node
recording.WRITE_SHARE = 0.1

def make():
    recorder = recording_node.Recorder()
    writer = recording.BagWriter(pathlib.Path(sys.argv[1]), {"/x": recording.Topic("/x", "std_msgs/msg/String")})
    write = writer._writer.write
    def slow(*arguments):
        time.sleep(0.2)
        write(*arguments)
    writer._writer.write = slow
    for number in range(1000):
        writer.offer("/x", number, bytes(40))
    recorder._writer = writer
    os.kill(os.getpid(), signal.SIGINT)
    return recorder

sys.exit(run_node(make, ["recorder"], recording_node.LINGER_S))
"""


def test_a_recorder_on_a_slow_disk_is_done_before_its_process_is_ended(tmp_path):
    environment = {**node_environment(50), "VEGA3D_END_S": "30"}
    command = [sys.executable, "-c", SLOW_RECORDER, str(tmp_path / "bag")]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0 and "of /x were dropped. The bag is" in run.stdout, run
    assert (tmp_path / "bag" / "metadata.yaml").exists()


def test_a_full_disk_is_one_sentence_and_ends_nothing_else(tmp_path):
    writer = BagWriter(tmp_path / "bag", {"/words": WORDS})

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    writer._writer.write = full
    writer.offer("/words", 0, b"x")
    with pytest.raises(VegaError, match=r"cannot be written .*No space left.*: make room or record elsewhere"):
        writer.close()
    writer.offer("/words", 1, b"x")
    assert writer.written.dropped["/words"] == 1


def test_an_existing_folder_is_never_written_to(tmp_path):
    with pytest.raises(VegaError, match="exists already"):
        BagWriter(tmp_path, {"/words": WORDS})


@pytest.mark.parametrize("folder", ["missing", "empty", "other", "another program's"])
def test_what_is_no_bag_of_ours_is_one_sentence(tmp_path, folder):
    if folder == "empty":
        (tmp_path / folder).mkdir()
    elif folder == "other":
        BagWriter(tmp_path / folder, {"/words": WORDS}).close()
    elif folder == "another program's":
        said = {"/camera/recording": b'{"node": "/camera"}', "/camera/decisions": b"{}"}
        writer = BagWriter(tmp_path / folder, {name: Topic(name, WORDS.kind) for name in said})
        for name, text in said.items():
            writer.offer(name, 0, b"\0\1\0\0" + struct.pack("<I", len(text) + 1) + text + b"\0")
        writer.close()
    command = [sys.executable, "-m", "vega3d_ros.recording.replay", str(tmp_path / folder)]
    environment = node_environment(50)
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("vega3d-replay: ") and len(run.stderr.strip().splitlines()) == 1, run.stderr


FULL = """
import os, resource, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from vega3d_ros.ros.dds import apply_defaults; apply_defaults()
from vega3d_ros.recording import recording_node
from vega3d_ros.recording.recording import BagWriter, Topic
def make():
    recorder = recording_node.Recorder()
    recorder._writer = writer = BagWriter(Path(sys.argv[1]), {"/words": Topic("/words", "std_msgs/msg/String")})
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    def more():
        for _ in range(50):
            writer.offer("/words", time.time_ns(), b"\\0\\1\\0\\0" + os.urandom(60_000))
    recorder.create_timer(0.2, more)
    return recorder
sys.exit(recording_node.run(make, ["recorder"]))
"""


def test_a_recorder_whose_disk_is_full_says_so_once_and_ends(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "bag")]
    environment = node_environment(unused_domain())
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 1, run.stderr
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith(f"The bag {tmp_path / 'bag'} cannot be written") and "make room" in line
    assert run.stdout == ""
