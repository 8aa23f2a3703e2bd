"""One value against its row of the table, and values against each other: what no arm can mean is refused.

Sentences name the parameter and what is wrong with it; who reads a file puts its name before them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from policies.types import VegaError
from vega3d_ros.parameters.table import CAMERA_ROWS, Row, known_names, row_of

NEAR = 0.6
_A_TURN = 2 * math.pi
# A finger slides by less than a hand's breadth, m, or turns by less than half a turn, rad; what counts in per cent,
# millimetres or steps has its ends further apart than this.
_FINGER, _COUNTS = 3.2, 20.0
# Namespace, ~/dry_run/ and what an action adds fit into the 247 characters of ROS's longest topic.
_LONGEST = 128
_WORDS = r"[A-Za-z_][A-Za-z0-9_]*(?:/[A-Za-z_][A-Za-z0-9_]*)*"
_PER_JOINT = ("safety.lower", "safety.upper", "safety.velocity", "safety.acceleration", "forward_position.jerk")
_ONE = (
    "safety.position_margin",
    "safety.velocity_scale",
    "safety.acceleration_scale",
    "safety.min_interval_s",
    "safety.max_rejections",
)
_PAIRS = (
    ("safety.lower", "safety.upper"),
    ("safety.workspace_lower", "safety.workspace_upper"),
    ("body.cell_lower", "body.cell_upper"),
)


def clean_value(row: Row, name: str, value: Any) -> Any:
    """`value` as the kind that `row` asks for: whole numbers become floats where floats are wanted, and a number alone
    becomes an array of one.  Raises VegaError on anything else, and on what is out of range."""
    if value is None:
        raise VegaError(f"'{name}' has no value: give one, or remove it")
    if row.kind in ("texts", "numbers"):
        values = [value] if isinstance(value, str | bool | int | float) else list(value)
        if row.kind == "numbers" and not values:
            raise VegaError(f"'{name}' is empty: give numbers, or remove it")
        one = _number if row.kind == "numbers" else _text
        return [one(row, name, item) for item in values]
    if row.kind == "flag":
        if not isinstance(value, bool):
            raise VegaError(f"'{name}' is {_shown(value)}: give true or false")
        return value
    if row.kind in ("text", "topic", "part"):
        return _text(row, name, value)
    number = _number(row, name, value)
    if row.kind == "number":
        return number
    if number != int(number):
        raise VegaError(f"'{name}' is {_shown(value)}: give a whole number")
    return int(number)


def check_known(names: Iterable[str]) -> None:
    """Raises VegaError, with the nearest known one for each, if any of these names of parameters is unknown."""
    names = list(names)
    unknown = [name for name in names if row_of(name) is None]
    if not unknown:
        return
    cameras = tuple({name.split(".")[1] for name in names if name.startswith("cameras.") and name.count(".") >= 2})
    known = known_names(cameras)
    told = dict.fromkeys(_wrong_section(name, unknown, known) or _with_nearest(name, known) for name in unknown)
    raise VegaError(f"nothing reads {', '.join(told)}: correct or remove {'it' if len(told) == 1 else 'them'}")


def check_together(values: Mapping[str, Any], whole: bool = True) -> None:
    """What is given, by full name, must agree with the rest of what is given.  Raises VegaError.

    whole: nothing is given elsewhere.
    """
    joints = values.get("joint_names")
    if joints:
        _check_counts(values, list(joints))
    for name, size in (
        ("base_position", 3), ("base_quaternion", 4), ("safety.workspace_lower", 3), ("safety.workspace_upper", 3),
        ("body.floor", 1), ("body.cell_lower", 3), ("body.cell_upper", 3),
        *((name, 1) for name in _ONE),
    ):  # fmt: skip
        if values.get(name) is not None and len(values[name]) != size:
            raise VegaError(f"'{name}' has {len(values[name])} numbers: give {size}")
    for low, high in _PAIRS:
        if values.get(low) is not None and values.get(high) is not None:
            lower, upper = np.broadcast_arrays(values[low], values[high])
            if np.any(lower >= upper):
                raise VegaError(f"'{low}' is not below '{high}': correct them")
    quaternion = values.get("base_quaternion")
    if quaternion is not None and abs(np.linalg.norm(quaternion) - 1.0) > 1e-3:
        raise VegaError("'base_quaternion' is not a unit quaternion xyzw: correct it")
    _check_gripper(values, whole)
    _check_body(values)
    _check_home(values)


def _check_counts(values: Mapping[str, Any], joints: Sequence[str]) -> None:
    if len(set(joints)) != len(joints):
        raise VegaError("'joint_names' lists a joint twice: give each once")
    home = values.get("home")
    if home is not None and len(home) != len(joints):
        raise VegaError(f"'home' has {len(home)} angles for {len(joints)} joints: give one each")
    for name in _PER_JOINT:
        given = values.get(name)
        if given is not None and len(given) not in (0, 1, len(joints)):
            raise VegaError(f"'{name}' has {len(given)} numbers: give one, or one for each of {len(joints)} joints")


def _check_gripper(values: Mapping[str, Any], whole: bool) -> None:
    joint, listed = values.get("gripper.command_joint"), values.get("gripper.joints")
    for name, fingers in (("gripper.joints", listed or []), ("gripper.command_joint", [joint])):
        of_the_arm = [finger for finger in fingers if finger in (values.get("joint_names") or [])]
        if of_the_arm:
            raise VegaError(f"'{name}' has '{of_the_arm[0]}', which is one of joint_names too: name it in one of them")
        if len(set(fingers)) != len(fingers):
            raise VegaError(f"'{name}' lists a joint twice: give each once")
    if joint and joint not in (listed or []) and (whole or listed is not None):
        raise VegaError(
            f"'gripper.command_joint' is '{joint}': list it in gripper.joints too, so that its position is known"
        )
    forward = values.get("command_interface") == "forward_position"
    if joint and whole and forward and not values.get("gripper.controller"):
        raise VegaError(
            "'gripper.controller' is empty, and with command_interface forward_position the arm's own does not move "
            "the gripper: name its controller, or set gripper.command_joint to '' to have it told nothing"
        )
    arms, own = (str(values.get(name) or "").strip("/") for name in ("controller", "gripper.controller"))
    if own and own == arms:
        raise VegaError(
            f"'gripper.controller' is that of the arm, '{own}': leave gripper.controller empty where one controller "
            "has both"
        )
    opened, closed = values.get("gripper.open"), values.get("gripper.closed")
    if not joint or opened is None or closed is None:
        return
    if opened == closed:
        raise VegaError("'gripper.open' and 'gripper.closed' are equal: give the two ends of the gripper's way")
    ends = (abs(opened), abs(closed))
    if max(ends) > _FINGER and (abs(opened - closed) < _COUNTS or 0 < min(ends) <= _FINGER):
        raise VegaError(
            f"'gripper.open' is {opened:g} and 'gripper.closed' is {closed:g}, which is no way of a finger in m, rad "
            "or per cent: give both in the unit in which joint_states has them"
        )


def _check_body(values: Mapping[str, Any]) -> None:
    boxes = values.get("body.boxes")
    if boxes is not None:
        if len(boxes) % 6:
            raise VegaError(f"'body.boxes' has {len(boxes)} numbers: give six for each box, its lower and upper corner")
        for number, (low, high) in enumerate(np.reshape(boxes, (-1, 2, 3)), 1):
            if np.any(low >= high):
                raise VegaError(f"'body.boxes' has box {number} with a lower corner that is not below its upper one")
    cell = [values.get(f"body.cell_{end}") is None for end in ("lower", "upper")]
    if cell[0] != cell[1]:
        raise VegaError("'body.cell_lower' and 'body.cell_upper' belong together: give both")
    for low, high in (
        ("body.clearance", "body.slow_distance"),
        ("approach.condition_slow", "approach.condition_stop"),
    ):
        near, far = values.get(low), values.get(high)
        if near and far is not None and near >= far:
            raise VegaError(f"'{low}' is {near:g} and '{high}' is {far:g}: make the second larger")


def _check_home(values: Mapping[str, Any]) -> None:
    home = values.get("home")
    if home is None:
        return
    names = values.get("joint_names") or [f"joint {i + 1}" for i in range(len(home))]
    margin = (values.get("safety.position_margin") or [0.0])[0]
    lower = np.broadcast_to(values.get("safety.lower") or [-np.inf], (len(home),)) + margin
    upper = np.broadcast_to(values.get("safety.upper") or [np.inf], (len(home),)) - margin
    check_home(home, names, lower, upper)


def check_home(home: Sequence[float], joints: Sequence[str], lower: Sequence[float], upper: Sequence[float]) -> None:
    """Raises VegaError where an angle of `home`, rad, lies outside `lower` to `upper`."""
    for joint, angle, low, high in zip(joints, home, lower, upper, strict=False):
        if not low <= angle <= high:
            hint = "it looks like degrees, give radians" if abs(angle) > _A_TURN else "choose a posture within them"
            raise VegaError(
                f"'home' puts {joint} at {angle:g} rad, outside its limits of {low:.4g} to {high:.4g} rad: {hint}"
            )


def _text(row: Row, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise VegaError(f"'{name}' is {_shown(value)}: give text, in quotes where it looks like a number")
    if row.choices and value not in row.choices:
        raise VegaError(f"'{name}' is '{value}': choose one of {', '.join(row.choices)}")
    if row.kind in ("topic", "part") and (value or row.default):
        plain, what = (value, "topic") if row.kind == "topic" else (value.strip("/"), "controller or action")
        if len(plain) > _LONGEST or not re.fullmatch((r"(?:~?/)?" if row.kind == "topic" else "") + _WORDS, plain):
            raise VegaError(
                f"'{name}' is {_shown(value)}, which is no name of a {what} in ROS: give letters a to z, digits and _, "
                f"in words that begin with no digit and have one slash between them, {_LONGEST} at most"
            )
    return value


def _number(row: Row, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        quoted = isinstance(value, str) and re.fullmatch(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", value)
        remedy = "remove the quotes" if quoted else "give a number"
        raise VegaError(f"'{name}' is {_shown(value)}: {remedy}")
    number = float(value)
    low, high = -math.inf if row.low is None else row.low, math.inf if row.high is None else row.high
    if not (low <= number <= high) or (row.above and number == low) or not math.isfinite(number):
        span = f"above {low:g} and up to {high:g}" if row.above else f"from {low:g} to {high:g}"
        raise VegaError(f"'{name}' is {number:g}{_guess(row, number)}: give a number {span}")
    return number


def _guess(row: Row, number: float) -> str:
    """What a number too large for its unit looks like."""
    if not math.isfinite(number) or row.high is None or abs(number) <= row.high:
        return ""
    if row.unit.startswith("rad") and abs(math.radians(number)) <= row.high:
        return f", which looks like degrees where {row.unit} is meant"
    if row.unit == "m" and abs(number) / 1000 <= row.high:
        return ", which looks like millimetres where m is meant"
    return ""


def _wrong_section(name: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    """What is told of all names in a section that nothing reads; empty where the section is right, or there is none."""
    section, dot, _ = name.partition(".")
    sections = _sections(known)
    if not dot or section in sections:
        return ""
    inside = [other.partition(".")[2] for other in unknown if other.startswith(f"{section}.")]
    score, best = max((difflib.SequenceMatcher(None, section, other).ratio(), other) for other in sections)
    if score >= NEAR and any(row_of(f"{best}.{rest}") for rest in inside):
        return f"the section '{section}' (did you mean '{best}'?)"
    return f"the section '{section}'" if len(inside) > 1 else ""


def _sections(known: Sequence[str]) -> set[str]:
    return {"cameras", *(name.partition(".")[0] for name in known if "." in name)}


def _with_nearest(name: str, known: Sequence[str]) -> str:
    below = [other for other in known if other.startswith(f"{name}.")]
    if name.count(".") == 1 and name.startswith("cameras."):
        below = [f"{name}.{row.name}" for row in CAMERA_ROWS]
    if below:
        return f"'{name}' by itself (put {', '.join(other[len(name) + 1 :] for other in below)} below it)"
    section, dot, _ = name.partition(".")
    if dot and section in _sections(known):
        known = [other for other in known if other.startswith(f"{section}.")]
    score, best = max(((_likeness(name, other), other) for other in known), default=(0.0, ""))
    return f"'{name}' (did you mean '{best}'?)" if score >= NEAR else f"'{name}'"


def _likeness(name: str, other: str) -> float:
    """0 to 1; of a name without a section the right last part is nearly as good as the whole."""
    whole = difflib.SequenceMatcher(None, _plain(name), _plain(other)).ratio()
    if "." in name:
        return whole
    ends = difflib.SequenceMatcher(None, _plain(name.rpartition(".")[2]), _plain(other.rpartition(".")[2])).ratio()
    return max(whole, 0.95 * ends)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _shown(value: Any) -> str:
    text = f"the text '{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
