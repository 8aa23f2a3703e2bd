"""A robot's parameter file, read strictly, and handed on in a form that ROS's own parser takes.

ROS ignores keys that nothing declares, and its parser refuses an array of whole and other numbers with words that name
no key; so the file is read here first, by whoever starts the node, and by a node that was started by hand.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from policies.types import VegaError
from vega3d_ros.parameters.table import row_of
from vega3d_ros.parameters.values import check_known, check_together, clean_value

PARAMETERS = "ros__parameters"
_MERGE, _TIMESTAMP = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp"
_LONGEST = 2**63  # whole numbers of ROS are smaller
_WILD = {"**": r"(?:/\w+)*", "*": r"/\w+"}


class _Loader(yaml.SafeLoader):
    """Takes 1e9 for a number and a date for a text, as ROS does, and a key that comes twice for an error; one that is
    merged in may."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A tag with what it cannot mean (!!int abc) is an error with its place in the file."""
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            told = f"a value that cannot be read: {str(error)[:120]}"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from error

    def flatten_mapping(self, node: Any) -> None:
        keys = [
            key.value if key.tag == _MERGE else self.construct_object(key, deep=True)  # type: ignore[no-untyped-call]
            for key, _ in node.value
        ]
        for key in keys:
            if not isinstance(key, str | int | float | bool):
                raise VegaError(f"has the key {key}: use text")
            if keys.count(key) > 1:
                raise VegaError(f"has '{key}' twice in one place: remove one")
        super().flatten_mapping(node)  # type: ignore[no-untyped-call]
        # PyYAML comes here again for a mapping that was merged into another before it was made itself.
        node.value = list({(key.tag, key.value): (key, value) for key, value in node.value}.values())


class _Dumper(yaml.SafeDumper):
    """Quotes every text: ROS's parser takes y, 1e3 or inf without quotes for a flag or a number."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_robot_file(path: Path, node: str = "policy_node") -> dict[str, Any]:
    """Parameters that a file gives the node, by full name (`safety.mode`), each of its row's kind.

    In which namespace the node will be is not known.  Raises VegaError, with the file's name, on what cannot be read, a
    key that nothing reads, values that no arm can mean, and sections for this node in several namespaces.
    """
    values = _read(path, node, None)
    if not values:
        raise VegaError(
            f"The robot's file {path} has no parameters for {node}: begin it with '/**:' and '{PARAMETERS}:'."
        )
    return values


def write_parameters(values: Mapping[str, Any], path: Path) -> None:
    """Write parameters by full name as a file for any node."""
    # ROS's parser gives an empty array no type.
    given = {name: value for name, value in values.items() if value != []}
    path.write_text(yaml.dump({"/**": {PARAMETERS: given}}, Dumper=_Dumper), encoding="utf-8")


@contextmanager
def strict_arguments(words: Sequence[str], node: str) -> Iterator[list[str]]:
    """Command line arguments of a node in which each parameter file is one that was read strictly.

    The files exist within the context.  Raises VegaError as `read_robot_file` does.
    """
    node = _remapped(words, node, "node|name") or node
    namespace = _remapped(words, node, "ns") or "/"
    result = list(words)
    with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
        for index, word in enumerate(words[:-1]):
            if word != "--params-file":
                continue
            values = _read(Path(words[index + 1]), node, namespace)
            if values:
                path = Path(folder) / f"{index}.yaml"
                write_parameters(values, path)
                result[index + 1] = str(path)
        yield result


def _remapped(words: Sequence[str], node: str, what: str) -> str:
    """What a remapping makes of the node's name or namespace; the first rule holds, as in ROS."""
    rule = re.compile(rf"(?:{re.escape(node)}:)?__(?:{what}):=(.+)")
    given = (rule.fullmatch(word) for flag, word in pairwise(words) if flag in ("-r", "--remap"))
    return next((found.group(1) for found in given if found), "")


def _read(path: Path, node: str, namespace: str | None) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        values: dict[str, Any] = {}
        for content in _for_node(tree, node, namespace):
            values |= _clean(content)
        # A node that is started by hand may be given several files, and looks at the whole itself; no other node than
        # policy_node reads all that belongs together.
        check_together(values, whole=namespace is None and node == "policy_node")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise VegaError(f"The robot's file {path} cannot be read ({why}): correct it.") from error
    except VegaError as error:
        verb = "" if str(error).startswith("has ") else ":"
        raise VegaError(f"The robot's file {path}{verb} {error}.") from error
    return values


def _for_node(tree: Any, node: str, namespace: str | None) -> list[Any]:
    """Parameters of the sections for a node, in the order of the file, in which later ones win."""
    if namespace is not None:
        name = f"{namespace.rstrip('/')}/{node}"
        return [content for section, content in _sections(tree, ()) if re.fullmatch(_pattern(section), name)]
    found = [(section, content) for section, content in _sections(tree, ()) if section[-1] in ("**", "*", node)]
    everywhere = (("**",), ("**", node))
    places = list(dict.fromkeys("/" + "/".join(section[:-1]) for section, _ in found if section not in everywhere))
    if len(places) > 1:
        raise VegaError(f"has {node} in the namespaces {' and '.join(places)}: keep one robot in a file")
    return [content for _, content in found]


def _pattern(section: Sequence[str]) -> str:
    """What the full names of the nodes of a section look like."""
    return "".join(_WILD.get(part) or f"/{re.escape(part)}" for part in section)


def _sections(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names of the node, its parameters) for every node of a parameter file."""
    if not isinstance(tree, dict) or not _has_parameters(tree):
        return
    for key, below in tree.items():
        if key == PARAMETERS:
            yield place or ("",), below
            continue
        if not _has_parameters(below):
            raise VegaError(f"has '{key}' outside of '{PARAMETERS}': move it below, indented")
        yield from _sections(below, (*place, *str(key).strip("/").split("/")))


def _has_parameters(tree: Any) -> bool:
    return isinstance(tree, dict) and (PARAMETERS in tree or any(map(_has_parameters, tree.values())))


def _clean(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise VegaError(f"has nothing below '{PARAMETERS}': put the parameters there, indented")
    given = list(_flat(content, ""))
    for name, value in given:
        _check_plain(name, value)
    names = [name for name, _ in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise VegaError(f"has '{twice[0]}' twice: remove one")
    check_known(names)
    rows = {name: row for name in names if (row := row_of(name)) is not None}  # all, as they are known
    return {name: clean_value(rows[name], name, value) for name, value in given}


def _check_plain(name: str, value: Any) -> None:
    """Raises VegaError on what YAML has and no parameter can be: a date, a set, bytes, a number without an end."""
    for item in value if isinstance(value, list) else [value]:
        if item is not None and not isinstance(item, str | bool | int | float | list | dict):
            raise VegaError(f"'{name}' is {str(item)[:60]}: give a number, a text, or a list of them")
        if isinstance(item, int) and abs(item) >= _LONGEST:
            digits = round(item.bit_length() * math.log10(2))  # text of it there may be none
            raise VegaError(f"'{name}' has a number of {digits} digits: give one that a computer can hold")


def _flat(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", None if value == {} else value
