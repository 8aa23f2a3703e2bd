"""JSON objects as dataclasses: one way to write a configuration, and one strict way to read what a user edited.

Lists become tuples and objects the dataclasses or mappings that a field is annotated with.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from policies.files.paths import refuse_pointer
from policies.types import VegaError

C = TypeVar("C")


class _Misfit(Exception):
    """A JSON value is not of the kind that is wanted."""


def read_json(path: Path) -> dict:
    """The object in a JSON file, or VegaError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VegaError(f"File '{path}' is missing: copy or download the whole checkpoint folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise VegaError(f"File '{path}' is not readable JSON ({error}): copy or download it again.") from None
    if not isinstance(value, dict):
        raise VegaError(f"File '{path}' holds no JSON object: copy or download it again.")
    return value


def read_counts(path: Path, *names: str) -> list[int]:
    """Whole numbers above 0 in another program's JSON file; VegaError with the file for one that is not there."""
    values = read_json(path)
    for name in names:
        if type(values.get(name)) is not int or values[name] < 1:
            raise VegaError(f"File '{path}' gives no '{name}' above 0: download it again.")
    return [values[name] for name in names]


POSITIVE = {"positive": True}  # metadata of a field whose numbers are all above 0
LATER = {"later": True}  # metadata of a field that older files lack: left out at its default, so that they stay equal


def write_config(path: Path, config: Any, indent: int = 2, **marks: Any) -> None:
    """Write a dataclass as a JSON object; marks: what stands before its fields, such as the kind of the file."""
    path.write_text(json.dumps(marks | _plain(config), indent=indent) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """A dataclass and what is in it, as JSON has it."""
    if is_dataclass(value):
        named = {field: getattr(value, field.name) for field in fields(value)}
        return {f.name: _plain(v) for f, v in named.items() if not (f.metadata.get("later") and v == f.default)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_config(kind: type[C], values: Mapping[str, Any], path: Path, foreign: bool = False) -> C:
    """The dataclass `kind` from a JSON object that `path` holds.

    foreign: another program's file, whose further settings are left aside.
    Raises VegaError, with the file, for a setting that is unknown, missing or of another type, however deep it lies.
    """
    assert is_dataclass(kind)
    known = {field.name: field for field in fields(kind)}
    if foreign:
        values = {name: value for name, value in values.items() if name in known}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise VegaError(f"Setting '{unknown[0]}' in '{path}' is unknown: remove it, or choose one of {sorted(known)}.")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in values:
            raise VegaError(f"File '{path}' lacks '{name}': add it.")
    hints = get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        try:
            arguments[name] = _converted(value, hints[name], path, foreign)
        except _Misfit:
            plain = isinstance(value, list | str | int | float | None)
            wanted = "an object" if plain and _is_object(hints[name]) else None
            raise VegaError(f"Setting '{name}' in '{path}' is {value!r}: give {wanted or known[name].type}.") from None
        if known[name].metadata.get("positive") and not _positive(arguments[name]):
            raise VegaError(f"Setting '{name}' in '{path}' is {value!r}: give what is above 0.")
    return kind(**arguments)


def _positive(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_positive(item) for item in value.values())
    if isinstance(value, tuple):
        return bool(value) and all(_positive(item) for item in value)
    return value is None or value > 0


def _is_object(kind: Any) -> bool:
    return any(is_dataclass(option) or get_origin(option) is dict for option in (kind, *get_args(kind)))


def _converted(value: Any, kind: Any, path: Path, foreign: bool) -> Any:
    """`value` as a `kind`: a dataclass, dict, tuple, Literal, union with None, or plain type; else _Misfit."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [part for part in parts if part is not types.NoneType]
        return None if value is None else _converted(value, options[0], path, foreign)
    if origin is Literal:
        return _checked(value, value in parts)
    if origin is dict and isinstance(value, dict):
        return {str(key): _converted(item, parts[1], path, foreign) for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [parts[0]] * len(value) if parts[-1] is ... else list(parts)
        _checked(value, len(kinds) == len(value))
        return tuple(_converted(item, part, path, foreign) for item, part in zip(value, kinds, strict=True))
    if is_dataclass(kind) and isinstance(value, dict):
        return read_config(kind, value, path, foreign)  # type: ignore[arg-type]
    if kind is float:
        return _checked(value, type(value) in (int, float) and math.isfinite(value))
    return _checked(value, kind is Any or type(value) is kind)


def _checked(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Misfit
    return value
