"""What is wrong with a user's words is said before anything starts: names, policies, devices, tasks."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from policies.checkpoints import check_device, check_exists
from policies.types import VegaError

LAUNCH_FILES = ("manipulation.launch.py", "scene.launch.py")
NEAR = 0.6


def check_words(words: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """`name:=value` words -> name and text.  Raises VegaError, with the nearest name, on one that is not known."""
    values: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or name not in names:
            near = difflib.get_close_matches(name, names, 1, NEAR)
            hint = f" (did you mean '{near[0]}:=...'?)" if near else ""
            raise VegaError(f"'{word}' is not an argument{hint}: write name:=value with one of {', '.join(names)}.")
        values[name] = value
    return values


def check_launch_words(words: Iterable[str], names: Sequence[str]) -> None:
    """`check_words` for `ros2 launch`, which lets unknown names through.

    Only where a launch file of ours was asked for: one that includes it has arguments of its own.
    """
    if any(Path(word).name in LAUNCH_FILES for word in sys.argv):
        check_words((word for word in words if ":=" in word), names)


def check_policy(policy: str, device: str) -> None:
    """Raise VegaError where there is no such policy, or torch cannot use the device (`auto` is the file's own)."""
    check_exists(policy)
    if device not in ("auto", "cpu"):
        check_device(device)  # imports torch, which cpu needs not


def check_task(suite: str, task: int) -> None:
    """Raise VegaError where the simulated robot has no such suite or task."""
    try:
        # By name, as its process is started: the robot side does not know the simulator.
        worlds = importlib.import_module("sim.worlds.libero_env")
        worlds.load_task(suite, task)
    except ImportError as error:
        raise VegaError(
            f"The simulated robot cannot be started ({error}): install the package's extra 'sim', or give a robot "
            "of your own as robot:=."
        ) from error
