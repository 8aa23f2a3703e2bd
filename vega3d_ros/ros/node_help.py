"""`--help` of a node's executable: its parameters, as it declares them, without starting ROS."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.parameter import Parameter

WIDTH = 100
USAGE = "[-h] [--ros-args [-p NAME:=VALUE ...] [--params-file FILE] [-r FROM:=TO ...]]"


class Declarations:
    """Stands for a node where its parameters are declared, and keeps what is said of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def declare_parameter(self, name: str, default: Any, descriptor: ParameterDescriptor) -> None:
        told = [descriptor.description]
        if descriptor.additional_constraints:
            told.append(f"One of: {descriptor.additional_constraints}.")
        for limits in (*descriptor.integer_range, *descriptor.floating_point_range):
            told.append(f"{limits.from_value:g} to {limits.to_value:g}.")
        if "(default: " not in descriptor.description:  # of what ROS is told to have none
            told.append(f"(default: {_shown(default)})")
        self.lines += [f"  {name}", textwrap.indent(textwrap.fill(" ".join(told), WIDTH), " " * 6)]

    def add_on_set_parameters_callback(self, _callback: object) -> None:
        """Nothing is set."""


def answer_help(
    program: str, doc: str | None, declare: Callable[[Any], None], arguments: Sequence[str] | None = None
) -> bool:
    """Print the help, if it is asked for, and say whether it was.

    doc: the module's docstring, of which the first paragraph is shown.  declare: declares a node's parameters.
    arguments: with the program's name first, as rclpy takes them; default: those of this process.
    """
    words = (sys.argv if arguments is None else arguments)[1:]
    if not {"-h", "--help"} & set(words):
        return False
    declarations = Declarations()
    declare(declarations)
    print(f"usage: {program} {USAGE}\n\n{(doc or '').split(chr(10) * 2)[0].strip()}\n\nparameters:")
    print("\n".join(declarations.lines))
    return True


def _shown(default: Any) -> str:
    if isinstance(default, Parameter.Type):
        return f"none; {default.name.lower().replace('_', ' ')}"
    if isinstance(default, bool):
        return str(default).lower()
    return "''" if default == "" else str(default)
