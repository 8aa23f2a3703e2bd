"""What policy_node says about itself: one sentence on what it does, or why the robot stands still, and all counts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from vega3d_ros.control.body.approach import Approach
from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.ros.diagnostics import Latencies, Level, Status, counts
from vega3d_ros.topics.inputs import JOINTS, Inputs
from vega3d_ros.topics.node_outputs import Outputs

# A world in lockstep may stand still for good reasons; after this long it is worth saying.
LOCKSTEP_PATIENCE_S = 1.0


@dataclass
class Condition:
    """The node's own state.

    strict: every problem while the arm moves is a fault.  running: between ~/start and ~/stop.  fault: why it stopped
    by itself, until ~/start.  started_s: time.monotonic() of the last start.  moving: a command has left since then.
    qos_problems: topic -> sentence, until the cleanup, since nobody tells when such a one has gone.
    refused_in_a_row, refused_for: commands that the guard refused since the last that it let pass, and the rules.
    late_in_a_row: commands that came too late to be sent, since the last that was.
    """

    strict: bool = False
    running: bool = False
    fault: str = ""
    started_s: float = 0.0
    moving: bool = False
    refused_in_a_row: int = 0
    refused_for: tuple[str, ...] = ()
    late_in_a_row: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    qos_problems: dict[str, str] = field(default_factory=dict)

    @property
    def not_connected(self) -> str:
        """strict: who is not heard, or hears nothing, and so holds the arm; '' if nobody does."""
        problem = next(iter(self.qos_problems.values()), "") if self.strict else ""
        return problem and f"{problem.rstrip('.')}, then clean policy_node up and configure it again."


def report(
    condition: Condition, runner: Lockstep | Realtime, inputs: Inputs, outputs: Outputs | None, now_ns: int
) -> tuple[Level, str, list[Status]]:
    """Level and sentence of the whole, and every status for /diagnostics."""
    level, sentence = _judge(condition, runner, inputs, outputs, now_ns)
    counters = counts({**condition.counts, **inputs.drops})
    if isinstance(runner, Realtime):
        counters |= {f"scheduler_{name}": value for name, value in runner.scheduler.counts.items()}
    values = {"running": condition.running, "instruction": inputs.instruction or "", **counters}
    if outputs is not None:
        values["world_age"] = outputs.world_age
    statuses = [Status("command", level, sentence, values)]
    now_s = time.monotonic()
    # An inactive node hears nobody, and a world in lockstep waits.
    listens = outputs is not None and isinstance(runner, Realtime)
    for name, stream in inputs.streams.items():
        problem = stream.problem or (inputs.stale(now_ns, only=name) if listens else "")
        details = stream.values(now_s)
        if name in inputs.watches:
            details |= inputs.watches[name].values()
        details |= {why: n for (camera, why), n in sorted(inputs.buffer.drops.items()) if camera == name}
        statuses.append(Status(name, Level.ERROR if problem else Level.OK, problem or "ok", details))
    statuses += _body(runner, inputs)
    statuses.append(Status("latency", Level.OK, "milliseconds per stage", condition.latencies.values()))
    statuses += [Status(f"qos {topic}", Level.ERROR, text) for topic, text in condition.qos_problems.items()]
    return level, sentence, statuses


def _body(runner: Lockstep | Realtime, inputs: Inputs) -> list[Status]:
    """How near the arm is to trouble, and what slows it; nothing where that is not watched."""
    pace = None if runner.loop.guard is None else runner.loop.guard.pace
    if not isinstance(pace, Approach):
        return []
    slowed = pace.last
    values: dict[str, object] = {"speed_factor": f"{slowed.factor:.2f}", "slowed_by": slowed.why}
    if pace.limits.condition_stop:
        values["condition_number"] = f"{pace.condition:.1f}"
    nearest = None if pace.body is None or inputs.sample is None else pace.body.nearest(inputs.sample.positions)
    if nearest is not None:
        values |= {"distance_m": f"{nearest.distance_m:.3f}", "nearest": " - ".join(nearest.names)}
    if slowed.factor >= 1.0:
        return [Status("body", Level.OK, "Nothing slows the arm.", values)]
    where = f" ({values['nearest']}, {values['distance_m']} m)" if slowed.why == "body" and nearest else ""
    return [Status("body", Level.WARN, f"Slowed to {slowed.factor:.0%} by {slowed.why}{where}.", values)]


def is_waiting(condition: Condition, inputs: Inputs) -> bool:
    """Whether nothing is wrong yet: since the start no command has left, and no input has brought anything bad."""
    wrong = condition.fault or condition.not_connected
    return not (wrong or condition.moving or any(stream.problem for stream in inputs.streams.values()))


def _judge(
    condition: Condition, runner: Lockstep | Realtime, inputs: Inputs, outputs: Outputs | None, now_ns: int
) -> tuple[Level, str]:
    if condition.fault:
        return Level.ERROR, condition.fault
    if outputs is None:
        return Level.OK, "Not active: activate policy_node, then call ~/start."
    if not condition.running:
        problem = condition.not_connected or _failing(runner, inputs, now_ns) or outputs.missing
        told = f"Active and still, and after ~/start it would wait: {problem}"
        return (Level.WARN, told) if problem else (Level.OK, "Active and still: call ~/start to command.")
    problem = condition.not_connected or inputs.problem()
    if not problem and not outputs.heard():
        problem = outputs.unheard
    if not problem and isinstance(runner, Realtime):
        problem = inputs.stale(now_ns) or outputs.behind
    if problem:
        return Level.ERROR, problem
    if isinstance(runner, Realtime):
        waiting = runner.waiting_for or runner.scheduler.notice
        if runner.waiting_for and "max_skew_s" in runner.waiting_for:
            waiting = inputs.drifting() or waiting
    else:
        level, waiting = _judge_lockstep(condition, runner, inputs)
        if level is Level.ERROR:
            return level, waiting
    if not waiting and condition.refused_in_a_row:
        waiting = (
            f"The guard refused the last {condition.refused_in_a_row} command(s): {', '.join(condition.refused_for)}. "
            "See safety in the robot's YAML."
        )
    if not waiting and condition.late_in_a_row:
        waiting = (
            f"The last {condition.late_in_a_row} command(s) came too late to be sent: give this machine less to do, or "
            "raise command_ahead_s."
        )
    return (Level.WARN, waiting) if waiting else (Level.OK, f"Commanding: {inputs.instruction}")


def _failing(runner: Lockstep | Realtime, inputs: Inputs, now_ns: int) -> str:
    """Which input is wrong or silent, '' if none is; an instruction may still come."""
    wrong = next((stream.problem for stream in inputs.streams.values() if stream.problem), "")
    return wrong or (inputs.stale(now_ns) if isinstance(runner, Realtime) else "")


def _judge_lockstep(condition: Condition, runner: Lockstep, inputs: Inputs) -> tuple[Level, str]:
    now_s = time.monotonic()
    silent = inputs.streams[JOINTS].age_s(now_s) > LOCKSTEP_PATIENCE_S
    if runner.pending is not None:
        overdue = now_s - runner.offered_s > LOCKSTEP_PATIENCE_S
        return (Level.ERROR, inputs.buffer.waiting_for) if overdue else (Level.OK, "")
    if inputs.sample is None:
        overdue = now_s - condition.started_s > LOCKSTEP_PATIENCE_S
        sentence = "No joint_states have come since the start: start the robot, or correct the topic."
        return (Level.ERROR, sentence) if overdue else (Level.OK, "")
    if silent:
        return Level.WARN, "Every joint state is answered and no new one comes: the world stands still."
    return Level.OK, ""
