"""JSON objects as dataclasses: what a user wrote by hand is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from policies.types import VegaError

_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def arguments_for(kind: type, values: Mapping[str, Any], path: Path, aside: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments of the dataclass `kind` from a JSON object; lists become tuples.

    aside: fields that are dealt with elsewhere.  Raises VegaError, with the file, for a setting that is unknown,
    missing or of another type.
    """
    known = {field.name: field for field in fields(kind) if field.name not in aside}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise VegaError(f"Setting '{unknown[0]}' in '{path}' is unknown: remove it, or choose one of {sorted(known)}.")
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            raise VegaError(f"File '{path}' lacks '{name}': add it.")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in arguments.items():
        if not _fits(value, str(known[name].type)):
            raise VegaError(f"Setting '{name}' in '{path}' is {value!r}: give {known[name].type}.")
    return arguments


def _fits(value: Any, annotation: str) -> bool:
    """Whether a JSON value is of a type as annotated: the kinds above, tuples of one of them, or None."""
    annotation, _, none = annotation.partition(" | ")
    if value is None:
        return bool(none)
    if not annotation.startswith("tuple["):
        return type(value) in _KINDS[annotation]
    items = annotation.removeprefix("tuple[").removesuffix("]").split(", ")
    if not isinstance(value, tuple) or (items[-1] != "..." and len(items) != len(value)):
        return False
    return all(type(item) in _KINDS[items[0]] for item in value)
