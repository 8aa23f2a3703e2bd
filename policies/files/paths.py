"""Whether a name that a user gave is a path; one that no file can have is not."""

from __future__ import annotations

from pathlib import Path


def exists(name: str) -> bool:
    """Whether a file or folder is called `name`, `~` expanded."""
    try:
        return name != "" and Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long; nobody's home; with a zero byte
        return False


def is_folder(name: str) -> bool:
    """Whether a folder is called `name`, `~` expanded."""
    return exists(name) and Path(name).expanduser().is_dir()
