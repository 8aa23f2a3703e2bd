"""Whether a name that a user gave is a path, where it leads, and what lies below a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from policies.types import VegaError

_POINTER = b"version https://git-lfs"


def exists(name: str) -> bool:
    """Whether a file or folder is called `name`, `~` expanded."""
    try:
        return name != "" and Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long; nobody's home; with a zero byte
        return False


def is_folder(name: str) -> bool:
    """Whether a folder is called `name`, `~` expanded."""
    return exists(name) and Path(name).expanduser().is_dir()


def refuse_file(name: str) -> None:
    """Raise VegaError for a name of a file where a folder is wanted."""
    if exists(name) and not is_folder(name):
        raise VegaError(f"'{name}' is a file: give its folder, '{Path(name).parent}'.")


def refuse_pointer(path: Path) -> None:
    """Raise VegaError for what git leaves in the place of a large file that was not fetched."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # whoever reads it says so
    if pointer:
        raise VegaError(
            f"File '{path}' is a Git LFS pointer and not the file itself: run `git lfs pull` there, or download it "
            "with `hf download`."
        )


def leads_out(source: str) -> bool:
    """Whether a name that stands in a folder's file may lead out of that folder."""
    path = Path(source)
    return path.is_absolute() or ".." in path.parts


def files_below(folder: Path) -> list[Path]:
    """All that lies below a folder and is no folder, links followed, sorted; a folder inside itself is left out.

    Raises VegaError for a folder that cannot be read.
    """
    return sorted(_below(folder, ())) if folder.is_dir() else []


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise VegaError(f"Folder '{folder}' cannot be read ({error.strerror}): copy or download it again.") from error
    for path in entries:
        if path.is_dir():
            yield from _below(path, (*above, here))
        else:
            yield path


def refuse_twice(data: Sequence[Path], held_out: Sequence[Path] = ()) -> None:
    """Raise VegaError for a folder that would be learned from twice, or learned from and judged by."""
    learned = [folder.resolve() for folder in data]
    if (folder := _double(data)) is not None:
        raise VegaError(
            f"--data names {folder} twice: name it once, since what is held out would be learned from its double."
        )
    for folder in held_out:
        if folder.resolve() in learned:
            raise VegaError(f"--held-out names {folder}, which --data names too: hold out what is not learned from.")


def check_named_once(folders: Sequence[Path]) -> None:
    """Raise VegaError for a run that is named twice: pooled, it would make an interval narrower than it is."""
    if (folder := _double(folders)) is not None:
        raise VegaError(f"Run '{folder}' is named twice: name each once, since the same again tells nothing new.")


def _double(folders: Sequence[Path]) -> Path | None:
    """The first folder that another one of them is too, by whatever name."""
    places = [folder.resolve() for folder in folders]
    return next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None)
