"""The course of a training as a picture: `python -m policies.training.curves FOLDER` draws FOLDER/curves.png.

From log.jsonl, which training writes: every part of the loss, and of rows that were held out.  From success.jsonl, if
`python -m sim.demonstrations.try_layouts` has written one: episodes solved on layouts of ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.files.command_line import command, command_parser
from policies.files.made_once import write_whole
from policies.types import VegaError

LOG, SUCCESS, PICTURE = "log.jsonl", "success.jsonl", "curves.png"
COLUMNS = 3


def read_log(path: Path, before: int | None = None) -> list[dict[str, Any]]:
    """Lines of a log, those with a `step` up to `before` only; a line that was cut off by a kill is left out.

    Raises VegaError for a file that is no log.
    """
    if not path.is_file():
        return []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in lines]
        return [line for line in found if before is None or line["step"] <= before]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VegaError(
            f"The log {path} holds a line that is none of a training ({error}): remove it, or give another folder."
        ) from error


def cut_log(path: Path, step: int) -> None:
    """Leave out what was logged after `step`: it is done again.  A new log where there is none."""
    write_whole(path, "".join(json.dumps(line) + "\n" for line in read_log(path, step)))


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """At the end of a log, which is begun where there is none.  Raises VegaError where there is no room."""
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(dict(line)) + "\n")
    except OSError as error:
        raise VegaError(
            f"The log {path} cannot be written ({error.strerror}): make room there and run the command again, which "
            "goes on."
        ) from error


def draw(folder: Path) -> Path:
    """Write the picture of a training's folder.  Raises VegaError where nothing is logged there."""
    log = read_log(folder / LOG)
    if not log or not isinstance(log[-1].get("train"), dict):
        raise VegaError(f"Nothing is logged in {folder} that is drawn: give the --output of a small policy's training.")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    success = read_log(folder / SUCCESS)
    names = list(log[-1]["train"])
    count = len(names) + bool(success)
    rows = -(-count // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 3 * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for kind in ("train", "held_out"):
            points = [(line["step"], line[kind][name]) for line in log if name in line.get(kind, {})]
            if points:
                axis.plot(*zip(*points, strict=True), label=kind.replace("_", " "))
        axis.set(title=name, xlabel="step")
        axis.legend()
    if success:
        axis = axes.flat[len(names)]
        for suite in dict.fromkeys(line["suite"] for line in success):
            lines = [line for line in success if line["suite"] == suite]
            points = [(line["step"], 100 * line["solved"] / line["tried"]) for line in lines]
            axis.plot(*zip(*points, strict=True), marker="o", label=suite)
        axis.set(title="solved, new layouts", xlabel="step", ylabel="%", ylim=(0, 100))
        axis.legend()
    figure.tight_layout()
    figure.savefig(folder / PICTURE, dpi=100)
    pyplot.close(figure)
    return folder / PICTURE


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.curves", __doc__, paragraphs=1)
    parser.add_argument("folder", type=Path, help="--output of a training")
    print(draw(parser.parse_args(argv).folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
