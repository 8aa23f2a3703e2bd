"""Whether a bag says what a replay reads: other versions note less or more, and other programs' topics may be named so.

`INFO` is what the recorder notes at its start, `EVENTS` what each event of the journal says (`control/journal.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Check = Callable[[Any], bool]
ORIGIN = "record again, or replay it with the version that made it"


def _of(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, int | float) for one in value)


def _actions(value: Any) -> bool:
    """Numbers in an array of any shape, or null where the policy failed: a wrong shape is a fault to be replayed."""
    try:
        return value is None or np.array(value, dtype=np.float64).ndim >= 0
    except (TypeError, ValueError):
        return False


def _frames(value: Any) -> bool:
    """Camera -> stamps, ns; at least one each."""
    return isinstance(value, dict) and bool(value) and all(stamps and _numbers(stamps) for stamps in value.values())


INFO: dict[str, Check] = {
    "node": _of(str), "parameters": _of(dict), "robot_description": _of(str), "checkpoint_sha256": _of(str),
    "commands": _of(list),
}  # fmt: skip
EVENT: dict[str, Check] = {"event": _of(str), "n": _of(int)}
EVENTS: dict[str, dict[str, Check]] = {
    "configure": {},
    "start": {},
    "discard": {},
    "query": {
        "query": _of(int), "sample_ns": _of(int), "frames_ns": _frames, "instruction": _of(str),
        "base_position": _numbers, "base_quaternion": _numbers,
    },
    "chunk": {"query": _of(int), "latency_s": _of(int, float), "actions": _actions, "error": _of(str)},
    "tick": {"sample_ns": _of(int), "sample": _of(dict), "command": _of(dict, type(None))},
    "unheard": {},
    "release": {"elsewhere": _of(bool), "held": lambda value: value is None or _numbers(value)},
    "gripper": {"position": _of(int, float), "off": _of(int, float)},
    "forget": {},
    "withdraw": {},
    "brake": {"time_ns": _of(int), "begin_ns": _of(int)},
}  # fmt: skip
SAMPLE: dict[str, Check] = {"positions": _numbers, "velocities": _numbers, "gripper_positions": _numbers}
COMMAND: dict[str, Check] = {
    "positions": _numbers, "velocities": _numbers, "gripper": _of(int, float), "rejected": _of(list),
    "touched": _of(list), "lead": _of(bool),
}  # fmt: skip


def wrong_note(info: Mapping[str, Any]) -> str:
    """What is wrong with the recorder's note for this version, '' if nothing is."""
    wrong = _lacking(info, INFO)
    if wrong:
        return _told("recording", wrong)
    values = info["parameters"]
    cameras = {name.split(".")[1] for name in values if name.startswith("cameras.") and name.count(".") > 1}
    needed = ["policy", "clock_mode", *(f"cameras.{camera}.topic" for camera in sorted(cameras))]
    wrong = _lacking(values, dict.fromkeys(needed, _of(str)))
    return _told("recording", f"parameters.{wrong}") if wrong else ""


def wrong_event(event: Mapping[str, Any]) -> str:
    """What is wrong with an event of the journal for this version, '' if nothing is."""
    wrong = _lacking(event, EVENT)
    if wrong:
        return _told("decision", wrong)
    name, number = event["event"], event["n"]
    if name not in EVENTS:
        return f"its decision {number} is '{name[:60]}', which this version does not know"
    what = f"decision {number}, '{name}',"
    wrong = _lacking(event, EVENTS[name])
    if not wrong and name == "tick":
        wrong = _below("sample", event["sample"], SAMPLE)
        if not wrong and event["command"] is not None:
            wrong = _below("command", event["command"], COMMAND)
    return _told(what, wrong) if wrong else ""


def _told(what: str, wrong: str) -> str:
    return f"its {what} does not say '{wrong}' as this version reads it"


def _lacking(found: Mapping[str, Any], checks: Mapping[str, Check]) -> str:
    """The first of the names that is missing, or has another kind of value."""
    return next((name for name, check in checks.items() if name not in found or not check(found[name])), "")


def _below(name: str, found: Mapping[str, Any], checks: Mapping[str, Check]) -> str:
    """The same, by full name; here nothing else may be said either, as everything is compared."""
    wrong = _lacking(found, checks) or next((other for other in found if other not in checks), "")
    return wrong and f"{name}.{wrong}"
