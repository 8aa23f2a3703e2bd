"""What scene_node says about itself: one sentence on what it does or lacks, every camera, and all latencies."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from vega3d_ros.ros.diagnostics import Latencies, Level, Status, counts
from vega3d_ros.scene.settings import SceneSettings
from vega3d_ros.scene.views import Views


@dataclass
class Condition:
    """The node's own state.

    fault: why the model answers nothing until it is configured again.  frames: (camera, stamp) of what was seen.
    unseen: why the model could not take the last frame.  tf_problem: of the last message of tf.  qos_problems: topic ->
    sentence.
    """

    counts: Counter[str]
    latencies: Latencies
    qos_problems: dict[str, str]
    fault: str = ""
    frames: tuple[tuple[str, int], ...] = ()
    unseen: str = ""
    tf_problem: str = ""


def report(
    condition: Condition, views: Views, settings: SceneSettings, now_ns: int
) -> tuple[Level, str, list[Status]]:
    """Level and sentence of the whole, and every status for /diagnostics."""
    level, sentence = _judge(condition, views, now_ns)
    newest_ns = condition.frames[-1][1] if condition.frames else ""
    values = {"model": settings.model, "frames_kept": len(condition.frames), "newest_frame_ns": newest_ns}
    values |= counts(condition.counts)
    statuses = [Status("scene", level, sentence, values)]
    now_s = time.monotonic()
    for name in settings.cameras:
        stream, problem = views.inputs.streams[name], views.problem(name) or views.stale(name, now_ns)
        worst = Level.ERROR if stream.problem else Level.WARN if problem else Level.OK
        details = {**stream.values(now_s), **views.inputs.watches[name].values(), **views.drops(name)}
        statuses.append(Status(name, worst, problem or "ok", details))
    statuses.append(Status("latency", Level.OK, "milliseconds per stage", condition.latencies.values()))
    statuses += [Status(f"qos {topic}", Level.ERROR, text) for topic, text in condition.qos_problems.items()]
    return level, sentence, statuses


def _judge(condition: Condition, views: Views, now_ns: int) -> tuple[Level, str]:
    if condition.fault:
        return Level.ERROR, condition.fault
    bad = [stream.problem for stream in views.inputs.streams.values() if stream.problem]
    if condition.unseen or bad:
        return Level.ERROR, bad[0] if bad else condition.unseen
    lacking = [problem for name in views.inputs.streams if (problem := views.problem(name))]
    warning = views.jump or condition.tf_problem or next(iter(lacking), "")
    silent = (told for name in views.inputs.streams if (told := views.stale(name, now_ns)))
    warning = warning or views.inputs.drifting() or next(silent, "")
    if warning:
        return Level.WARN, warning
    return Level.OK, f"Answers from {len(condition.frames)} frames."
