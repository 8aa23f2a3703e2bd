"""Which comparisons a golden folder holds, and all of them one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from policies.parity import openvla, spatial
from policies.parity.golden import Line, some
from policies.parity.wan import check_wan
from policies.parity.world import FUSIONS_FILE, WORLD_FILE, check_fusions, check_world
from policies.types import VegaError


def check(folder: Path) -> Iterator[Line]:
    """(quantity, largest error, tolerance) for everything a golden folder holds.

    Raises VegaError for a folder that holds nothing known; what a damaged one raises is any error of torch and NumPy.
    """
    if spatial.is_golden(folder):
        yield from spatial.check(folder)
        return
    if (folder / "transformer").is_dir():
        yield from check_wan(folder)
        if (folder / WORLD_FILE).is_file():
            yield from check_world(folder)
        if (folder / FUSIONS_FILE).is_file():
            yield from some(check_fusions(folder / FUSIONS_FILE), folder / FUSIONS_FILE)
        return
    present = [file for file in openvla.FILES if (folder / file).is_file()]
    if not (folder / "config.json").is_file() or not present:
        raise VegaError(
            f"'{folder}' is no golden folder: it needs 'transformer/' and 'cases.npz', or an OpenVLA-OFT checkpoint "
            "with 'cases.npz', 'libero_observation.npz' or 'prompts.json'."
        )
    for file in present:
        yield from some(openvla.FILES[file](folder), folder / file)


def checked(folder: Path) -> Iterator[Line]:
    """`check`, with VegaError for whatever is wrong with the folder."""
    try:
        yield from some(check(folder), folder)
    except KeyError as error:
        raise VegaError(f"The golden vectors in '{folder}' lack {error}: copy the folder again.") from None
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        reason = str(error).split("\n")[0]
        raise VegaError(
            f"The golden vectors in '{folder}' do not fit their model ({reason}): copy the folder again."
        ) from error
