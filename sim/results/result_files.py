"""What a run writes: one line per finished episode or question, and a summary that is valid at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from policies.files.made_once import differing, replacing
from policies.types import VegaError

SUMMARY_FILE = "summary.json"
LONGEST_TOLD = 100  # characters of a value in a sentence


class Record(Protocol):
    """A dataclass about one episode or question; with an `error` it says nothing about the policy or model."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def error(self) -> str: ...

    @property
    def key(self) -> tuple[int, int]: ...


R = TypeVar("R", bound=Record)


class ResultFiles(ABC, Generic[R]):
    """Keeps the records of a run and `summary.json` in `folder`; raises VegaError when they cannot be written.

    header: the summary's own fields (suite, policy, transport, command, protocol, versions, ...).
    resume: keep the records that an earlier run with the same header has put there, except those with an error, which
        are to be repeated; what an older version did not write into its header is not compared.  Without it a folder
        that holds records is refused: they are hours of work.  `remove` takes them away on purpose.
    One writer a folder, as long as it lives.
    """

    records_file = "episodes.jsonl"
    unit = "episode"

    def __init__(self, folder: Path, header: dict[str, Any], *, resume: bool = False) -> None:
        self.folder, self.header = folder, header
        self.records: list[R] = []
        self._lock = _claim(self.folder)
        self._earlier_s = 0.0
        self._start = time.monotonic()
        try:
            if resume:
                self._read_back()
            else:
                self._refuse_earlier()
            self._write(folder / self.records_file, "".join(json.dumps(asdict(r)) + "\n" for r in self.records))
            self.write_summary()
        except BaseException:
            self.close()
            raise

    def add(self, record: R) -> None:
        """Put a finished record on disk."""
        self.records.append(record)
        try:
            with (self.folder / self.records_file).open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failure(error) from error
        self.write_summary()

    @property
    def wall_s(self) -> float:
        """Of this run and those that it goes on with."""
        return round(self._earlier_s + time.monotonic() - self._start, 2)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds; records by their keys, in whatever order they came."""
        return {**self.header, **self.figures()}

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """What the summary says besides its header, the wall time included."""

    @abstractmethod
    def read_record(self, fields: dict[str, Any]) -> R:
        """A line of the records' file.  Raises TypeError or ValueError for one that is none."""

    def header_now(self, found: dict[str, Any]) -> dict[str, Any]:
        """The summary of an earlier run in today's words, where an older version wrote others.

        May change `header` where what is asked for now comes to what was asked for then.
        """
        now, then = self.header.get("versions"), found.get("versions")
        if not isinstance(now, dict) or not isinstance(then, dict):
            return found
        return {**found, "versions": {**now, **then}}  # of packages that were not told of then

    @classmethod
    def remove(cls, folder: Path) -> None:
        """Take away what an earlier run has written, for one that is to begin anew there.

        Raises VegaError where a run is writing there now.
        """
        if not folder.is_dir():
            return
        lock = _claim(folder)
        try:
            for name in (cls.records_file, SUMMARY_FILE):
                (folder / name).unlink(missing_ok=True)
        finally:
            os.close(lock)

    def close(self) -> None:
        """Let others write to the folder."""
        os.close(self._lock)

    def _refuse_earlier(self) -> None:
        path = self.folder / self.records_file
        try:
            count = path.read_bytes().count(b"\n") if path.is_file() else 0
        except OSError as error:
            raise VegaError(f"{path} cannot be read ({error.strerror}): give another --output.") from error
        if count:
            raise VegaError(
                f"The folder {self.folder} holds {count} {self.unit}{'s' if count > 1 else ''} of an earlier run: add "
                "--resume to go on with it, or give another --output."
            )

    def _read_back(self) -> None:
        path = self.folder / SUMMARY_FILE
        records_path = self.folder / self.records_file
        if not path.is_file():
            if records_path.is_file() and records_path.stat().st_size:  # it would be begun anew
                raise VegaError(
                    f"The run in {self.folder} has no {SUMMARY_FILE} that says what it is: give another --output."
                )
            return
        try:
            found = json.loads(path.read_text())
            lines = records_path.read_text().splitlines(keepends=True)
            # A line without its end was cut off by the kill: that one is repeated.
            records = [self.read_record(json.loads(line)) for line in lines if line.endswith("\n")]
            self._earlier_s = float(found.get("wall_s", 0.0))
            found = self.header_now(found)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise VegaError(f"The run in {self.folder} cannot be read ({error}): give another --output.") from error
        for name, began in differing(found, self.header, {}):
            then, now = _as_told(began, self.header[name])
            raise VegaError(
                f"The run in {self.folder} has {name} {then}, this one {now}: give another --output, or the "
                "options of that run."
            )
        self.records = list({r.key: r for r in records if not r.error}.values())

    def write_summary(self) -> None:
        self._write(self.folder / SUMMARY_FILE, json.dumps(self.summary(), indent=1) + "\n")

    def _write(self, path: Path, text: str) -> None:
        # Written beside and renamed: a full disk or a kill leaves the last valid file.
        partial = path.with_suffix(".partial")
        try:
            with replacing(path, partial):
                partial.write_text(text)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> VegaError:
        return VegaError(
            f"Results cannot be written to {self.folder} ({error.strerror}): make room there; "
            f"the {max(len(self.records) - 1, 0)} {self.unit}s before are kept."
        )


def _as_told(*values: Any) -> list[str]:
    """Values as a sentence tells them: of objects what differs alone, and of what is long the beginning."""
    if all(isinstance(value, dict) for value in values):
        names = [name for name in values[0] | values[1] if values[0].get(name) != values[1].get(name)]
        values = tuple({name: value[name] for name in names if name in value} for value in values)
    texts = [str(value) for value in values]
    return [text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}..." for text in texts]


def _claim(folder: Path) -> int:
    """The lock on a folder.  Raises VegaError where another run has it."""
    lock = -1
    try:
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        raise VegaError(
            f"The folder {folder} is being written by another run: wait for it or give another --output."
        ) from error
    return lock
