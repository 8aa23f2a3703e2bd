"""Writing a rosbag2 bag (MCAP) beside whoever hands over the messages: `BagWriter.offer` never waits.

No ROS: messages come serialised (CDR), as rclpy hands them to a raw subscription.  One thread writes.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from policies.types import VegaError

QUEUE_BYTES = 256 * 2**20
CLOSE_S = 30.0  # where nothing else ends the process
WRITE_SHARE = 0.6  # of the time to close, in which what is queued is still written; the rest is for the bag's own end
FLUSH_S = 0.5  # a recorder that is killed loses less than a second
# Metadata of this version is read by rosbag2 from Iron on; Jazzy and later write the next one.
BAG_VERSION: Literal[8] = 8


@dataclass(frozen=True)
class Topic:
    """One topic of a bag: its full name, type (`package/msg/Name`) and the QoS with which it shall be played back."""

    name: str
    kind: str
    reliable: bool = False
    latched: bool = False


@dataclass
class Written:
    """What became of the messages: topic -> count."""

    messages: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def lost(self) -> str:
        """How many of which topic, or 'none'."""
        return ", ".join(f"{count} of {topic}" for topic, count in sorted(self.dropped.items()) if count) or "none"

    def sentence(self) -> str:
        return f"{sum(self.messages.values())} messages are recorded; {self.lost()} were dropped."


class BagWriter:
    """A new bag `folder` with these topics.

    When the disk is slower than the messages for longer than `queue_bytes` last, messages are dropped and counted.
    offer() may be called from any thread; `error` is a sentence once writing has failed, and nothing is written then.
    Raises VegaError if the bag cannot be made.
    """

    def __init__(self, folder: Path, topics: Mapping[str, Topic], queue_bytes: int = QUEUE_BYTES) -> None:
        self.folder = folder
        self.written = Written()
        self.error = ""
        self._queue: queue.SimpleQueue[tuple[str, int, bytes] | None] = queue.SimpleQueue()
        self._room = queue_bytes
        self._queued: Counter[str] = Counter()
        self._until_s = math.inf  # time.monotonic() from which on what is queued is dropped
        self._lock = threading.Lock()
        self._writer, self._connections = _open(folder, topics)
        self._thread = threading.Thread(target=self._run, name="bag writer", daemon=True)
        self._thread.start()

    def offer(self, topic: str, time_ns: int, data: bytes) -> None:
        """Hand over one serialised message, received at `time_ns` (wall clock)."""
        with self._lock:
            if len(data) > self._room or self.error:
                self.written.dropped[topic] += 1
                return
            self._room -= len(data)
            self._queued[topic] += 1
        self._queue.put((topic, time_ns, data))

    def lost(self, topic: str, count: int) -> None:
        """Messages that were lost before they could be handed over."""
        with self._lock:
            self.written.dropped[topic] += count

    def close(self, within_s: float = CLOSE_S) -> Written:
        """Write what is queued and end the file; what the disk does not take in time is dropped and counted.

        Raises VegaError if the bag could not be ended within `within_s`, or failed before.
        """
        self._until_s = time.monotonic() + WRITE_SHARE * within_s
        self._queue.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive() and not self.error:
            with self._lock:
                self.written.dropped += self._queued
            self.error = (
                f"The disk of {self.folder} is too slow, and the bag was left unfinished: vega3d-replay reads what is "
                f"whole of it; {self.written.lost()} were dropped."
            )
        if self.error:
            raise VegaError(self.error)
        return self.written

    def _run(self) -> None:
        try:
            flushed, waiting = time.monotonic(), False
            while True:
                with contextlib.suppress(queue.Empty):
                    if (item := self._queue.get(timeout=FLUSH_S)) is None:
                        break
                    topic, time_ns, data = item
                    late = time.monotonic() > self._until_s
                    if not late:
                        self._writer.write(self._connections[topic], time_ns, data)
                        waiting = True
                    with self._lock:
                        self._room += len(data)
                        self._queued[topic] -= 1
                        (self.written.dropped if late else self.written.messages)[topic] += 1
                if waiting and time.monotonic() - flushed > FLUSH_S:
                    flush(self._writer)
                    flushed, waiting = time.monotonic(), False
            self._writer.close()
        except Exception as error:  # whatever it was, the recorder must say it and the robot must not notice
            self.error = f"The bag {self.folder} cannot be written ({error}): make room or record elsewhere."


def flush(writer: Any) -> None:
    """Hand all messages so far to the system as a whole chunk; rosbags waits for a MiB, and then for a full buffer."""
    storage = writer.storage
    if storage.chunk.msgs:
        storage.close_chunk()
    storage.bio.flush()


def _open(folder: Path, topics: Mapping[str, Topic]) -> tuple[Any, dict[str, Any]]:
    from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
    from rosbags.typesys import Stores, get_typestore

    if folder.exists():
        raise VegaError(f"The bag {folder} exists already: give another folder as bag:=.")
    store = get_typestore(Stores.LATEST)
    try:
        writer = Writer(folder, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP)
        writer.open()
        connections = {
            name: writer.add_connection(topic.name, topic.kind, typestore=store, offered_qos_profiles=[_profile(topic)])
            for name, topic in topics.items()
        }
    except (OSError, WriterError, KeyError) as error:
        raise VegaError(f"The bag {folder} cannot be made ({error}): give another folder as bag:=.") from error
    return writer, connections


def _profile(topic: Topic) -> Any:
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(9223372036, 854775807)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=10,
        reliability=QosReliability.RELIABLE if topic.reliable else QosReliability.BEST_EFFORT,
        durability=QosDurability.TRANSIENT_LOCAL if topic.latched else QosDurability.VOLATILE,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )
