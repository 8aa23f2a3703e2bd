"""What a bag of `recording_node.py` holds, read with little memory: frames are kept only until they were used."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, JointState
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from policies.types import FloatArray, Image, VegaError
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.control.frame_buffer import FrameSet
from vega3d_ros.recording.recovery import recover, storage_files
from vega3d_ros.recording.replay_check import ORIGIN, wrong_event, wrong_note
from vega3d_ros.ros import conversions
from vega3d_ros.ros.joint_states import TURN, JointReader

# A frame reaches the recorder at about the time at which the decision does that used it.
LATE_NS = 5_000_000_000
ROUNDING = 1e-9  # rad; adding a turn and taking it off again changes less
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


@dataclass(frozen=True)
class Decided:
    """One event of the journal and when the recorder heard it."""

    time_ns: int
    event: Mapping[str, Any]


class Bag(AbstractContextManager["Bag"]):
    """An open bag.  Raises VegaError if it is none, or not one of ours.

    info: what the recorder noted at its start.  decisions: all events of the journal, in order.  recovered: what was
    saved of a recording that was not ended, empty where it was.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise VegaError(f"There is no bag {folder}: give the folder that record:=true made.")
        self.recovered = ""
        self._scratch = tempfile.TemporaryDirectory(prefix="vega3d-bag-")
        try:
            self._reader = self._open(folder)
        except BaseException:
            self._scratch.cleanup()
            raise
        self._folder = folder
        topics = [c.topic for c in self._reader.connections if c.topic.endswith("/recording")]
        notes = [self._note(data) for topic in topics for _, data in self._raw(topic)]
        if not notes:
            self._reader.close()
            raise VegaError(f"The bag {folder} was not made by record:=true: it does not say what was recorded.")
        self.info: dict[str, Any] = notes[0]
        decisions = f"{self.info.get('node')}/decisions"
        self.decisions = [Decided(time_ns, self._note(data)) for time_ns, data in self._raw(decisions)]
        self._check_ours(folder)
        self._check_complete(folder)

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._scratch.cleanup()

    def _open(self, folder: Path) -> Any:
        """A reader of the bag, or of what is whole of it."""
        from rosbags.rosbag2 import Reader

        try:
            if folder.is_dir() and (folder / "metadata.yaml").is_file():
                reader = Reader(folder)
                reader.open()
                return reader
        except Exception as error:  # of damaged files it raises whatever their bytes lead to
            if not storage_files(folder):
                raise VegaError(f"The bag {folder} cannot be read ({error}): record again.") from error
        whole = Path(self._scratch.name) / "recovered"
        self.recovered = recover(folder, whole).sentence()
        reader = Reader(whole)
        reader.open()
        return reader

    def trajectories(self, topic: str) -> Iterator[tuple[int, JointTrajectory]]:
        """When the recorder heard what was commanded on a topic; nothing where it has messages of another type."""
        if any(c.topic == topic and c.msgtype == TRAJECTORY for c in self._reader.connections):
            for time_ns, data in self._raw(topic):
                yield time_ns, self._decode(data, JointTrajectory)

    def samples(self, reader: JointReader) -> dict[int, list[JointSample]]:
        """Stamp -> the joint states that carry it."""
        found: dict[int, list[JointSample]] = defaultdict(list)
        for time_ns, data in self._raw(self._resolve("joint_states")):
            message = self._decode(data, JointState)
            try:
                sample = reader.read(message, time_ns / 1e9)
            except VegaError:
                continue  # the node refused it too
            if sample is not None:
                found[sample.stamp_ns].append(sample)
        return found

    def queries(self) -> Iterator[tuple[Decided, FrameSet | None]]:
        """Every event in order; with a query come the frames it was made of, None where the bag lacks one."""
        needed: Counter[tuple[str, int]] = Counter(
            (camera, stamp) for decided in self.decisions for camera, stamp in _frames_of(decided.event)
        )
        held: dict[tuple[str, int], Image] = {}
        images = self._images()
        waiting = next(images, None)
        for decided in self.decisions:
            wanted = _frames_of(decided.event)
            while waiting is not None and any(key not in held for key in wanted):
                time_ns, key, image = waiting
                if time_ns > decided.time_ns + LATE_NS:
                    break
                if needed[key]:
                    held[key] = image
                waiting = next(images, None)
            yield decided, _frame_set(decided.event, held) if wanted else None
            for key in wanted:
                needed[key] -= 1
                if not needed[key]:
                    held.pop(key, None)

    def _images(self) -> Iterator[tuple[int, tuple[str, int], Image]]:
        values = self.info["parameters"]
        cameras = {key.split(".")[1] for key in values if key.startswith("cameras.")}
        by_topic = {self._resolve(values[f"cameras.{camera}.topic"]): camera for camera in cameras}
        connections = [c for c in self._reader.connections if c.topic in by_topic]
        for connection, time_ns, data in self._messages(connections):
            camera = by_topic[connection.topic]
            compressed = connection.msgtype == "sensor_msgs/msg/CompressedImage"
            message = self._decode(data, CompressedImage if compressed else ImageMessage)
            try:
                if compressed:
                    image = conversions.compressed_image_array(message, camera)
                else:
                    image = conversions.image_array(message, camera)
            except VegaError:
                continue  # the node refused it too
            yield time_ns, (camera, conversions.stamp_ns(message.header.stamp)), image

    def _resolve(self, topic: str) -> str:
        namespace = str(self.info["node"]).rsplit("/", 1)[0]
        return topic if topic.startswith("/") else f"{namespace}/{topic}"

    def _raw(self, topic: str) -> Iterator[tuple[int, bytes]]:
        connections = [c for c in self._reader.connections if c.topic == topic and c.msgcount]
        for _, time_ns, data in self._messages(connections):
            yield time_ns, data

    def _messages(self, connections: list[Any]) -> Iterator[tuple[Any, int, bytes]]:
        if not connections:
            return
        try:
            yield from self._reader.messages(connections)
        except Exception as error:  # lengths, offsets, decompressors: whatever damaged bytes lead to
            raise self._damaged(error) from error

    def _decode(self, data: bytes, kind: Any) -> Any:
        try:
            return deserialize_message(data, kind)
        except Exception as error:  # RMWError, which every distribution imports from elsewhere
            raise self._damaged(error) from error

    def _note(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(self._decode(data, String).data)
        except ValueError as error:
            raise self._damaged(error) from error
        if not isinstance(value, dict):
            raise self._damaged(TypeError("a note is no object"))
        return value

    def _damaged(self, error: Exception) -> VegaError:
        why = str(error).partition(", at /")[0] or type(error).__name__
        alone = (
            ""
            if self.recovered or not self._folder.is_dir()
            else ("give its .mcap file alone, which is read up to the damage, or ")
        )
        return VegaError(f"The bag {self._folder} is damaged ({why[:120]}): {alone}record again.")

    def _check_ours(self, folder: Path) -> None:
        """Other programs' topics may be called so, too, and other versions note less or more."""
        told = wrong_note(self.info) or next(filter(None, (wrong_event(one.event) for one in self.decisions)), "")
        if told:
            raise VegaError(f"The bag {folder} was not made by this version's record:=true: {told}, {ORIGIN}.")

    def _check_complete(self, folder: Path) -> None:
        if not self.decisions:
            raise VegaError(f"Nothing was decided in the bag {folder}: record while the robot is commanded.")
        expected = 0
        for decided in self.decisions:
            number = decided.event["n"]
            if number not in (expected, 0) or (expected == 0 and number != 0):
                raise VegaError(
                    f"The bag {folder} lacks decisions before number {number}: record from the start, on a faster disk."
                )
            expected = number + 1


def used_sample(
    event: Mapping[str, Any], samples: Mapping[int, Sequence[JointSample]], endless: NDArray[np.bool_], derived: bool
) -> JointSample | None:
    """The joint state of a tick as the bag has it, None where it lacks it.

    The node hears joint states only while it is active, and forgets them at `~/start`: what it makes of those before
    differs from what the bag leads to, and is taken from the tick.  That is the turn of joints without end (endless:
    which of them), and where `derived` the velocities.
    """
    if not samples.get(event.get("sample_ns", -1)):
        return None
    known, recorded = samples[event["sample_ns"]], event["sample"]
    if derived:
        velocities = np.array(recorded["velocities"], dtype=np.float64)
        known = [replace(sample, velocities=velocities) for sample in known]
    positions = np.array(recorded["positions"], dtype=np.float64)
    if endless.any() and positions.shape == endless.shape:
        known = [replace(sample, positions=_in_turn(sample.positions, positions, endless)) for sample in known]
    # A driver whose stamps stand still sends several of one stamp: the one that was used, if it is there.
    return next((sample for sample in known if sample.positions.tolist() == recorded["positions"]), known[0])


def _in_turn(positions: FloatArray, recorded: FloatArray, endless: NDArray[np.bool_]) -> FloatArray:
    """(n,) rad: as recorded, where only whole turns lie between the two."""
    apart = positions - recorded
    turns = np.round(apart / TURN)
    same = endless & (turns != 0.0) & (np.abs(apart - TURN * turns) < ROUNDING)
    return np.where(same, recorded, positions)


def _frames_of(event: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(camera, int(stamp)) for camera, stamps in event.get("frames_ns", {}).items() for stamp in stamps]


def _frame_set(event: Mapping[str, Any], held: Mapping[tuple[str, int], Image]) -> FrameSet | None:
    if any(key not in held for key in _frames_of(event)):
        return None
    stamps = {camera: np.array(values, dtype=np.int64) for camera, values in event["frames_ns"].items()}
    images = {
        camera: np.stack([held[camera, int(stamp)] for stamp in values])
        for camera, values in event["frames_ns"].items()
    }
    return FrameSet(images, stamps, min(int(values[-1]) for values in stamps.values()))
