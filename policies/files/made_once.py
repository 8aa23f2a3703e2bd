"""Files that several processes share: made by one of them, and whole whenever another looks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from policies.files.json_config import read_json
from policies.types import VegaError


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, after `make` has written it unless it is there; who comes while another makes it waits for that one.

    make: writes the whole file or folder to the path that it is given, which is renamed; a kill leaves nothing under
    the right name, but perhaps a part of it under the other, with which the next `make` may go on.
    """
    _make(path, make, fcntl.LOCK_EX)
    return path


def all_made_once(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """`made_once` of several: what another process is making comes last, so that processes share the work."""
    for at_once in (fcntl.LOCK_NB, 0):
        for path, make in files.items():
            with contextlib.suppress(BlockingIOError):
                _make(path, make, fcntl.LOCK_EX | at_once)


def _make(path: Path, make: Callable[[Path], object], how: int) -> None:
    """how: to lock, as fcntl.flock has it.  Raises BlockingIOError where another makes it and `how` does not wait."""
    if not path.exists():
        with path.with_name(f".{path.stem}.lock").open("w") as lock:
            fcntl.flock(lock, how)  # gone with the process that holds it, whatever ends that
            if not path.exists():
                partial = path.with_suffix(".partial")
                make(partial)
                partial.rename(path)


@contextlib.contextmanager
def replacing(path: Path, partial: Path) -> Iterator[None]:
    """What is written to `partial` within is renamed to `path` at the end; where anything fails, `partial` goes."""
    try:
        yield
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # there may be no such folder
            partial.unlink()
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all.  Raises VegaError where there is no room for it, or a folder."""
    if path.is_dir():
        raise VegaError(f"File '{path}' cannot be written, a folder has that name: give another.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with replacing(path, partial):
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise VegaError(
            f"File '{path}' cannot be written ({error.strerror}): make room there; what it held is kept."
        ) from error


def differing(before: Mapping[str, Any], now: Mapping[str, Any], older: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings of now that were others before, by their names, and what they were.

    older: what they were where a file of before says nothing of them; of others nobody knows, and they are taken for
    the same.
    """
    began = {name: before.get(name, older.get(name, value)) for name, value in now.items()}
    return [(name, value) for name, value in began.items() if value != now[name]]


def made_with(path: Path, settings: Mapping[str, Any], older: Mapping[str, Any] | None = None) -> None:
    """Note in `path`, a JSON file, what decides the files beside it, which are made in several goes.

    older: what decided where a file of before says nothing of it.  Raises VegaError where something else decided those
    that are there, which would be taken for what is asked now.
    """
    before = read_json(path) if path.is_file() else dict(settings)
    for name, began in differing(before, settings, older or {}):
        raise VegaError(
            f"What is in {path.parent} was made with {name} {began}, not {settings[name]}: give the same again, or "
            "another --output."
        )
    write_whole(path, json.dumps(before | dict(settings), indent=1) + "\n")
