"""What the commands of this package share."""

from __future__ import annotations

import argparse
import functools
import math
import os
import select
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TextIO

from policies.types import VegaError

P = ParamSpec("P")
MOST_THREADS = 256  # as in a robot's file; torch dies of too many
MOST_SEED = 2**32 - 1  # that every generator takes
UNREAD = 141  # what shells say of a command that wrote into a closed pipe


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


class _Parser(argparse.ArgumentParser):
    """Reads every `type=Path` with `_path`; the parsers of its subcommands do, too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, _path)


def _path(text: str) -> Path:
    """A path as a user gave it; nothing, such as a variable that is not set, is not the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"'{text}' names no file or folder: give its path")
    return Path(text)


def command_parser(program: str, doc: str | None, paragraphs: int = 1, **options: Any) -> argparse.ArgumentParser:
    """The parser of one of our commands, whose --help tells every default.

    program: as it is typed.  doc: the module's docstring, whose first `paragraphs` describe it.  options: of argparse.
    """
    described = "\n\n".join((doc or "").split("\n\n")[:paragraphs])
    return _Parser(prog=program, description=described, formatter_class=Help, **options)


def given(parser: argparse.ArgumentParser, argv: Sequence[str] | None, args: argparse.Namespace) -> set[str]:
    """Attributes of args, what `parser` makes of a command line, whose options stand there."""
    names, nothing = vars(args), object()
    seen = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, nothing))))
    return {name for name in names if seen[name] is not nothing}


def refuse_idle(named: Collection[str], without_effect: Iterable[str], why: str) -> None:
    """Raise VegaError for an option without an effect, where it is among those `given`.

    why: what goes on behind the option's name.
    """
    for name in without_effect:
        if name in named:
            raise VegaError(f"--{name.replace('_', '-')} {why}")


def add_threads(parser: argparse.ArgumentParser, described: str = "torch threads", default: int = 1) -> None:
    parser.add_argument("--threads", type=whole("--threads", 1, MOST_THREADS), default=default, help=described)


def add_seed(parser: argparse.ArgumentParser, default: int, described: str) -> None:
    parser.add_argument("--seed", type=whole("--seed", 0, MOST_SEED), default=default, help=described)


def whole(option: str, least: int, most: int) -> Callable[[str], int]:
    """The argparse type of a number that else another package would refuse, after minutes."""

    def read(text: str) -> int:
        try:
            return _within(int(text), option, least, most)
        except ValueError as error:
            raise VegaError(f"{option} {text} is no whole number: give one from {least} to {most}.") from error

    return read


def positive(option: str) -> Callable[[str], float]:
    """The argparse type of a finite number above 0, such as a learning rate."""
    return _number(option, "finite number above 0", lambda value: 0 < value < math.inf)


def finite(option: str) -> Callable[[str], float]:
    """The argparse type of a finite number, such as a coordinate."""
    return _number(option, "finite number", math.isfinite)


def _number(option: str, what: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise VegaError(f"{option} {text} is no {what}: give one.")
        return value

    return read


def possible(threads: int) -> int:
    """The number of torch's threads.  Raises VegaError where it cannot be."""
    return _within(threads, "threads", 1, MOST_THREADS)


def _within(value: int, name: str, least: int, most: int) -> int:
    if not least <= value <= most:
        raise VegaError(f"{name} {value} is out of range: give a whole number from {least} to {most}.")
    return value


def command(main: Callable[P, int]) -> Callable[P, int]:
    """An entry point whose VegaError becomes `error: ...` on the terminal and status 2, as argparse's own errors do.

    As `while_read`, too.
    """

    @while_read
    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except VegaError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def while_read(main: Callable[P, int]) -> Callable[P, int]:
    """An entry point that ends, with status 141 and no word, where nobody reads its output any more (`... | head`)."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            status = main(*args, **kwargs)
            if sys.stdout is not None:  # it is None where a process was started without
                sys.stdout.flush()
        except BrokenPipeError:
            if not _is_unread(sys.stdout):
                raise  # another pipe's
            # What is still in the buffer is written at the end of the process, where it would be told once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNREAD
        return status

    return run


def _is_unread(stream: TextIO) -> bool:
    """Whether the other end of the pipe that a stream writes into is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # POLLERR and POLLHUP are told unasked
    return any(told & (select.POLLERR | select.POLLHUP) for _, told in poll.poll(0))


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
