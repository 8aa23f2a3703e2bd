"""What the commands of this package share."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from policies.types import VegaError

P = ParamSpec("P")


class Help(argparse.RawDescriptionHelpFormatter):
    """Says of every option that takes a value whether it is required, and else what its default is."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or "default" in text or not action.option_strings:
            return text
        if action.required:
            return f"{text} (required)"
        if action.default in (None, "", []):
            return f"{text} (default: none)"
        if isinstance(action.default, (list, tuple)):
            return f"{text} (default: {' '.join(map(str, action.default))})"
        return f"{text} (default: %(default)s)"


def command_parser(program: str, doc: str | None, paragraphs: int = 1, **options: Any) -> argparse.ArgumentParser:
    """The parser of one of our commands, whose --help tells every default.

    program: as it is typed.  doc: the module's docstring, whose first `paragraphs` describe it.  options: of argparse.
    """
    described = "\n\n".join((doc or "").split("\n\n")[:paragraphs])
    return argparse.ArgumentParser(prog=program, description=described, formatter_class=Help, **options)


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


def results_folder(path: Path, option: str = "--output") -> Path:
    """Create the folder for results; VegaError where nothing can be written.  option: by which another one is given."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process may try the same folder
    except OSError as error:
        raise VegaError(f"Results cannot be written to {path} ({error.strerror}): give another {option}.") from error
    return path
