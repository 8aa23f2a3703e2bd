"""Which cameras come from a process of this machine that shares no memory with this one.

Fast DDS 2 (Humble, Jazzy) and 3 (from Kilted on) find each other and talk, but each has shared memory of its own, so
that pictures come by UDP, whose buffers are too small unless somebody enlarges them.  Nothing in the graph says which
generation a publisher is of; the files by which each lets others of its kind write to it do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rclpy.node import Node

from vega3d_ros.ros.dds import fast_dds_generation, udp_remedy

SHARED_MEMORY, LOCKS = Path("/dev/shm"), Path("/proc/locks")
# Generation -> how its files are called.  One that is locked is the port of a process that lives.
_PORTS = {2: "fastrtps_port*_el", 3: "fastdds_port*_el"}
_EPROSIMA = (1, 15)  # vendor, the first two bytes of an endpoint's GID; then two of the host, two of the process


class Neighbours:
    """topics: those of the cameras, by camera.  Used from the executor's thread."""

    def __init__(self, node: Node, topics: dict[str, str], folder: Path = SHARED_MEMORY, locks: Path = LOCKS) -> None:
        self._node, self._folder, self._locks = node, folder, locks
        self._topics = {camera: node.resolve_topic_name(topic) for camera, topic in topics.items()}
        self._known: set[tuple[int, ...]] = set()

    def news(self) -> list[str]:
        """A sentence for each camera whose publisher was not known before and shares no memory with this process."""
        sentences: list[str] = []
        for camera, topic in self._topics.items():
            infos = self._node.get_publishers_info_by_topic(topic)
            # An endpoint may be known a moment before the name of its node is.
            infos = [info for info in infos if "_UNKNOWN_" not in info.node_name]
            fresh = [info for info in infos if tuple(info.endpoint_gid) not in self._known]
            self._known.update(tuple(info.endpoint_gid) for info in fresh)
            sentences += [self._sentence(camera, info.node_name, kind) for info in fresh if (kind := self._other(info))]
        return sentences

    def _other(self, info: Any) -> int:
        """The publisher's generation of Fast DDS where it is of this host and not ours, else 0."""
        own, gid = fast_dds_generation(), list(info.endpoint_gid)
        if not own or tuple(gid[:2]) != _EPROSIMA or gid[2:4] != self._host():
            return 0
        for kind, pattern in _PORTS.items():
            if kind != own and _process(gid) in _processes(self._folder.glob(pattern), self._locks):
                return kind
        return 0

    def _host(self) -> list[int]:
        name, namespace = self._node.get_name(), self._node.get_namespace()
        for topic in ("/rosout", *self._topics.values()):
            for infos in (self._node.get_publishers_info_by_topic, self._node.get_subscriptions_info_by_topic):
                for info in infos(topic):
                    if (info.node_name, info.node_namespace) == (name, namespace):
                        return list(info.endpoint_gid[2:4])
        return []

    def _sentence(self, camera: str, name: str, kind: int) -> str:
        remedy = udp_remedy()
        how = f"; so that large ones are not lost, {remedy}" if remedy else ", which costs time"
        return (
            f"Camera '{camera}' comes from {name}, whose Fast DDS {kind} shares no memory with Fast DDS "
            f"{fast_dds_generation()} here, so its pictures come by UDP{how}, or run both with one ROS distribution."
        )


def _process(gid: Sequence[int]) -> int:
    return int(gid[4]) + 256 * int(gid[5])


def _processes(files: Iterable[Path], locks: Path) -> set[int]:
    """The last two bytes of the ids of the processes that hold these files."""
    try:
        held = {(os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino) for stat in map(Path.stat, files)}
        lines = [line.replace("->", "").split() for line in locks.read_text().splitlines()] if held else []
    except OSError:
        return set()  # one has gone meanwhile, or the system does not tell
    found = set()
    for _, _, _, _, process, file, *_ in lines:
        if file.startswith("<"):  # of no file, as the kernel writes it
            continue
        major, minor, inode = file.split(":")
        if (int(major, 16), int(minor, 16), int(inode)) in held:
            found.add(int(process) & 0xFFFF)
    return found
