"""The table of noise levels and blocks as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.types import VegaError

SHOWN = {"raw": "the paper's score", "gap": "matched - random", "retrieval": "retrieval"}


def draw_heat_maps(rows: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """One row of maps for each encoder read at several k and blocks; its path, None where there is no such encoder.

    Cells are percent; each kind of map has one colour scale for all encoders.  Raises VegaError without matplotlib.
    """
    known = dict.fromkeys(row["encoder"] for row in rows if row["k"] is not None)
    names = [name for name in known if len({row["k"] for row in rows if row["encoder"] == name}) > 1]
    if not names:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VegaError("The heat map needs matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(4.2 * len(SHOWN), 3.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(SHOWN), squeeze=False)
    for column, (key, title) in enumerate(SHOWN.items()):
        values = [row[key] for row in rows if row["encoder"] in names]
        for line, name in zip(axes, names, strict=True):
            own = {(row["block"], row["k"]): row[key] for row in rows if row["encoder"] == name}
            blocks, ks = (sorted({cell[axis] for cell in own}) for axis in (0, 1))
            table = np.array([[own[block, k] for k in ks] for block in blocks])
            image = line[column].imshow(table, cmap="viridis", vmin=min(values), vmax=max(values), aspect="auto")
            _label(line[column], table, image)
            line[column].set_xticks(range(len(ks)), [str(k) for k in ks])
            line[column].set_yticks(range(len(blocks)), ["before" if block < 0 else str(block) for block in blocks])
            line[column].set(xlabel="noise level k", ylabel="block", title=f"{name}\n{title}, %")
    figure.savefig(path, dpi=120)
    return path


def _label(axis: Any, table: Any, image: Any) -> None:
    """Each cell's number on it, dark on light and light on dark."""
    for (i, j), value in np.ndenumerate(table):
        light = image.norm(value) > 0.6
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color="black" if light else "white")
