"""A class that a user names as `module:Class`."""

from __future__ import annotations

import importlib
import os
from typing import Any

from policies.types import VegaError


def call_class(name: str, what: str) -> Any:
    """What that class makes without arguments.  what: is to be named in the VegaError where it cannot be made."""
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise VegaError(
            f"The {what} '{name}' cannot be imported ({error}) from {os.getcwd()}: check module, class and PYTHONPATH."
        ) from error
    try:
        return found()
    except VegaError:
        raise
    except (Exception, SystemExit) as error:  # it is somebody's own
        reason = str(error).partition("\n")[0]
        raise VegaError(
            f"The {what} '{name}' cannot be made ({type(error).__name__}: {reason}): give a class that is called with "
            "no arguments."
        ) from error
