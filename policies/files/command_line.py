"""What the commands of this package share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from policies.types import VegaError

P = ParamSpec("P")


def command(main: Callable[P, int]) -> Callable[P, int]:
    """An entry point whose VegaError becomes `error: ...` on the terminal and status 2, as argparse's own errors do."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except VegaError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def results_folder(path: Path) -> Path:
    """Create the folder for results; VegaError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise VegaError(f"Results cannot be written to {path} ({error.strerror}): give another --output.") from error
    return path
