"""Which data set's statistics turn a checkpoint's numbers into actions: they are one robot's, and often one suite's.

Statistics of another data set give plausible actions of the wrong size, so none is taken just because it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies.files.json_config import read_json
from policies.types import VegaError

NO_NOOPS = "_no_noops"  # LIBERO's demonstrations without the steps that do nothing, which OpenVLA-OFT trained on
_LIBERO_SUITES = ("spatial", "object", "goal", "10", "90", "long")
# First words of the data sets of other robots in Open X-Embodiment, which OpenVLA was pretrained on.
_OTHER_ROBOTS = (
    "asu_", "austin_", "bc_z", "berkeley_", "bridge", "cmu_", "columbia_", "dlr_", "dobbe", "droid", "eth_", "fmb",
    "fractal", "furniture_", "iamlab_", "imperial", "jaco_", "kaist_", "kuka", "language_table", "maniskill", "nyu_",
    "qut_", "rh20t", "roboset", "roboturk", "stanford_", "taco_", "tokyo_", "toto", "ucsd_", "uiuc_", "usc_",
    "utaustin_", "utokyo_", "viola",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A key, its statistics, and why it was taken."""

    key: str
    statistics: Mapping[str, Any]
    reason: str


def read_statistics(folder: Path) -> dict[str, Any]:
    """Data set -> statistics of a checkpoint: its dataset_statistics.json, else those in its config.

    The config's may be those of pretraining: the file overrides them.
    """
    path = folder / "dataset_statistics.json"
    statistics = read_json(path) if path.is_file() else read_json(folder / "config.json").get("norm_stats")
    if not isinstance(statistics, dict) or not all(isinstance(entry, dict) for entry in statistics.values()):
        raise VegaError(
            f"The statistics in '{folder}' are no object of objects: copy its dataset_statistics.json again."
        )
    return statistics


def choose(
    statistics: Mapping[str, Any], robot: str, checkpoint: str, key: str | None = None, suite: str | None = None
) -> Choice:
    """The statistics that `key` names, or the only ones of this robot and suite.

    robot: a name of robots.PLATFORMS.  key: as a configuration names it.  suite: what is evaluated, such as
    `libero_object_swap`, or a key.  Raises VegaError, which lists the keys, where they are another robot's or suite's,
    where `suite` asks for others than the configuration's, or where there are several and nothing says which.
    """
    keys = sorted(statistics)
    if key is not None:
        return Choice(key, statistics[_checked_key(key, statistics, robot, checkpoint, suite)], "by configuration")
    if suite in statistics:
        return replace(choose(statistics, robot, checkpoint, suite), reason="by name")
    own = [name for name in keys if _is_of(name, robot)]
    if not own:
        possible = [name for name in keys if not _is_of_another(name, robot)] or ["KEY"]
        raise VegaError(
            f"Checkpoint '{checkpoint}' has statistics of {keys}, none of which is known to be of robot '{robot}': "
            "give a checkpoint of this robot, or, if one is its own under another name, say so with '#' behind the "
            f"policy's name, as in '#{possible[0]}', or with `python -m policies.compose --statistics KEY`."
        )
    if suite is not None and (fitting := _of_suite(own, suite)) is not None:
        return Choice(fitting, statistics[fitting], f"by suite {suite}")
    if suite is not None and not (suite.startswith("libero_") and len(own) == 1 and not _one_suite(own[0])):
        raise VegaError(
            f"Checkpoint '{checkpoint}' has statistics of {keys} and none of suite '{suite}': evaluate a suite that it "
            "was trained on, or choose one with `python -m policies.compose --statistics KEY`."
        )
    if all(statistics[name] == statistics[own[0]] for name in own):
        others = f", as {len(own) - 1} others are equal" if len(own) > 1 else ""
        return Choice(own[0], statistics[own[0]], f"by robot {robot}{others}")
    raise VegaError(
        f"Checkpoint '{checkpoint}' has statistics of {keys}: choose one with '#' behind the policy's name, as in "
        f"'{checkpoint}#{own[0]}', or with `python -m policies.compose --statistics KEY`."
    )


def _checked_key(key: str, statistics: Mapping[str, Any], robot: str, checkpoint: str, suite: str | None) -> str:
    if key not in statistics:
        raise VegaError(f"The checkpoint has no statistics '{key}': choose one of {sorted(statistics)}.")
    if _is_of_another(key, robot):
        raise VegaError(
            f"The statistics '{key}' of checkpoint '{checkpoint}' are of another robot than '{robot}': choose among "
            f"{sorted(statistics)}, or name its own robot."
        )
    if suite in (None, key) or _of_suite([key], str(suite)) is not None:
        return key
    assert suite is not None
    better = _of_suite(sorted(statistics), suite)
    if better is not None:
        raise VegaError(
            f"The policy is composed with the statistics '{key}' of checkpoint '{checkpoint}', which has '{better}' "
            f"for suite '{suite}': compose it with those, or without --statistics."
        )
    # A suite whose name nobody has in his statistics may be evaluated by those that were chosen; a data set not.
    if suite in statistics or not suite.startswith("libero"):
        raise VegaError(
            f"Policy '{checkpoint}' was made to act by '{key}' alone, not by the statistics of another data set: leave "
            f"'#{suite}' out, or compose or train one for it."
        )
    return key


def _is_of(key: str, robot: str) -> bool:
    """Whether a data set is known to be of a robot.  14 numbers are ALOHA's alone; 7 are those of many arms."""
    return robot != "libero" or key.startswith("libero")


def _is_of_another(key: str, robot: str) -> bool:
    return robot == "libero" and key.startswith(("aloha", *_OTHER_ROBOTS))


def _one_suite(key: str) -> str:
    """The suite that a key names, however it goes on; empty where it names none, or several, as of a checkpoint that
    was trained on all together."""
    named = [word for word in key.split("_")[1:] if word in _LIBERO_SUITES]
    return f"libero_{named[0]}".replace("libero_long", "libero_10") if len(named) == 1 else ""


def _of_suite(keys: list[str], suite: str) -> str | None:
    """The key of a suite, or of the one that it varies: `libero_object_swap` was trained on as `libero_object`."""
    name = suite.removesuffix(NO_NOOPS).replace("libero_plus_", "libero_").replace("libero_long", "libero_10")
    while name.startswith("libero_"):
        for key in keys:
            if key.removesuffix(NO_NOOPS).replace("libero_long", "libero_10") == name:
                return key
        for key in keys:
            if key.startswith("libero_") and _one_suite(key) == name:
                return key
        name = name.rpartition("_")[0]
    return None
