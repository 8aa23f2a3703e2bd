"""Whose a dataset is: it names the tapes it was joined from, and is replaced only by a dataset that holds them too.

Each folder of tapes has an identity of its own, drawn when its first dataset is written, so that it may be moved.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.files.json_config import read_json
from policies.types import VegaError

IDENTITY = "identity"  # in a folder of tapes
MARK = "meta/vega3d_tapes.json"  # in a dataset


def mark(dataset: Path, tapes: Sequence[Path]) -> None:
    """Note in a dataset which tapes, all of one folder, it was joined from.  Raises OSError."""
    path = tapes[0].parent / IDENTITY
    if not _identity(tapes):
        path.write_text(f"{uuid.uuid4()}\n")
    noted = {"tapes": _identity(tapes), "episodes": [tape.stem for tape in tapes]}
    (dataset / MARK).write_text(json.dumps(noted, indent=1) + "\n")


def check_replaceable(dataset: Path, tapes: Sequence[Path]) -> None:
    """Raise VegaError unless nothing is there, or a dataset of these tapes, or of some of them."""
    if not dataset.exists():
        return
    found, ours = _read(dataset), _identity(tapes)
    if not found and (dataset / "meta" / "info.json").is_file():
        raise VegaError(
            f"{dataset} exists already and does not say which tapes it was made of, as older versions left it: if they "
            "are this run's, remove it, and it is made again; or record elsewhere."
        )
    if not ours or found.get("tapes") != ours or not isinstance(found.get("episodes"), list):
        raise VegaError(f"{dataset} exists already and was not recorded by this run: remove it, or record elsewhere.")
    names = {tape.stem for tape in tapes}
    lost = [name for name in found["episodes"] if name not in names]
    if lost:
        raise VegaError(
            f"{dataset} exists already and holds episodes that it would not hold any more, such as {lost[0]}: ask for "
            "all of its tasks and episodes, or record elsewhere."
        )


def forget_tapes(folder: Path) -> None:
    """Remove the tapes of an earlier run, which would be joined to the dataset of one that begins there anew."""
    for pattern in ("task*_trial*.npz", "task*_trial*.mp4", ".task*_trial*.partial.*", IDENTITY):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _identity(tapes: Sequence[Path]) -> str:
    """Of the folder of these tapes; empty where no dataset has been made of them."""
    path = tapes[0].parent / IDENTITY if tapes else None
    return path.read_text().strip() if path is not None and path.is_file() else ""


def _read(dataset: Path) -> dict[str, Any]:
    """What a dataset says of its tapes; nothing where it was made otherwise."""
    try:
        found = read_json(dataset / MARK) if (dataset / MARK).is_file() else {}
    except VegaError:
        return {}
    return found if isinstance(found, dict) else {}
