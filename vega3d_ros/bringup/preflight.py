"""What is wrong with a user's words is said before anything starts: names, policies, devices, tasks."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from policies.checkpoints import check_device, check_exists, check_instructions, for_suite, statistics_key
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
    """Raise VegaError where there is no such policy, or torch cannot use the device."""
    check_exists(policy)
    check_torch_device(device)


def check_torch_device(device: str) -> None:
    """Raise VegaError where torch cannot use it."""
    if device != "cpu":
        check_device(device)  # imports torch, which cpu needs not


def check_simulated(policy: str, suite: str, task: int, trial: int, instruction: str) -> str:
    """The policy's name for this suite.  instruction: the user's, empty for the task's own.

    Raises VegaError where there is no such task or trial, where the policy has no statistics for the suite, or where it
    cannot be told the sentence.
    """
    own = check_task(suite, task, trial)
    check_instructions(policy, [instruction or own])
    policy = for_suite(policy, suite)
    statistics_key(policy)
    return policy


def check_task(suite: str, task: int, trial: int) -> str:
    """The sentence of a task of the simulated robot.  Raises VegaError where there is no such suite, task or trial."""
    try:
        # By name, as its process is started: the robot side does not know the simulator.
        suites = importlib.import_module("sim.worlds.suites")
        benchmark = suites.load_task(suite, task)
        trials = len(suites.initial_states(suite, benchmark, task))
        sentence = str(suites.task_instruction(suite, benchmark, task))
    except ImportError as error:
        raise VegaError(
            f"The simulated robot cannot be started ({error}): install the package's extra 'sim', or give a robot "
            "of your own as robot:=."
        ) from error
    if trial >= trials:
        raise VegaError(f"trial:={trial} does not exist: task {task} of {suite} has the trials 0 to {trials - 1}.")
    return sentence
