"""What is whole of a recording whose recorder was killed: read chunk by chunk from the start, written as a bag again.

A killed recorder leaves a file without an end and no metadata.yaml, so no index says where messages are; but each chunk
that was written carries its own messages.  `mcap`'s streaming reader gives them up to the last whole one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcap.exceptions import EndOfFile
from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from policies.types import VegaError

MAX_RECORD = 2**30  # bytes; what a damaged length says must not be believed


@dataclass
class Recovered:
    """What was found: messages, the time from the first to the last, and the bytes behind the last whole chunk."""

    messages: int = 0
    first_ns: int = 0
    last_ns: int = 0
    bytes_lost: int = 0
    reason: str = ""
    unknown: set[str] = field(default_factory=set)

    def sentence(self) -> str:
        seconds = (self.last_ns - self.first_ns) / 1e9
        whole = f"recovered up to the last whole chunk: {self.messages} messages of {seconds:.1f} s"
        text = f"{whole}; {self.bytes_lost} bytes after them are lost"
        return f"{text} ({self.reason})" if self.reason else text


def storage_files(bag: Path) -> list[Path]:
    """The MCAP files of a bag's folder, or the file itself, in the order in which they were written."""
    if bag.is_file():
        return [bag]
    return sorted(bag.glob("*.mcap"), key=lambda path: (len(path.name), path.name))


def recover(bag: Path, folder: Path) -> Recovered:
    """Write what is whole of `bag` (a folder, or an .mcap file) as the new bag `folder`.

    Raises VegaError where there is nothing to recover, or no room for it.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    files = storage_files(bag)
    if not files:
        raise VegaError(f"The bag {bag} has no .mcap file: give the folder, or the .mcap, that record:=true made.")
    if not any(path.stat().st_size for path in files):
        raise VegaError(f"The bag {bag} has 0 bytes: nothing was recorded before its recorder ended, record again.")
    found, store = Recovered(), get_typestore(Stores.LATEST)
    connections: dict[str, Any] = {}
    try:
        with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            for path in files:
                for topic, kind, time_ns, data in _messages(path, found):
                    if topic not in connections:
                        known = kind in store.fielddefs
                        connections[topic] = writer.add_connection(topic, kind, typestore=store) if known else None
                    if connections[topic] is None:
                        found.unknown.add(topic)
                        continue
                    writer.write(connections[topic], time_ns, data)
                    found.messages += 1
                    found.first_ns = min(found.first_ns or time_ns, time_ns)
                    found.last_ns = max(found.last_ns, time_ns)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise VegaError(
            f"What is left of the bag {bag} cannot be written to {folder} ({error.strerror}): make room there, or set "
            "TMPDIR to where there is some."
        ) from error
    if not found.messages:
        raise VegaError(
            f"Nothing of the bag {bag} can be read ({found.reason or 'it has no messages'}): not one whole chunk was "
            "written, record again."
        )
    return found


def _messages(path: Path, found: Recovered) -> Iterator[tuple[str, str, int, bytes]]:
    """(topic, type, time of recording in ns, CDR) of every whole chunk; then notes in `found` what comes after."""
    schemas: dict[int, str] = {}
    channels: dict[int, Channel] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        whole = 0
        try:
            records = StreamReader(file, emit_chunks=True, record_size_limit=MAX_RECORD).records
            for record in records:
                for item in breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]:
                    if isinstance(item, Schema):
                        schemas[item.id] = item.name
                    elif isinstance(item, Channel):
                        channels[item.id] = item
                    elif isinstance(item, Message):
                        channel = channels[item.channel_id]
                        yield channel.topic, schemas.get(channel.schema_id, ""), item.log_time, bytes(item.data)
                whole = file.tell()
            whole = size
        except OSError:
            raise
        except EndOfFile:
            found.reason = "the file was not ended"
        except Exception as error:  # of many kinds: lengths, checksums, decompressors
            found.reason = str(error) or type(error).__name__
        found.bytes_lost += size - whole
