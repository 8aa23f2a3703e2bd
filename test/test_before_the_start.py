"""What /diagnostics and ~/start say of an arm whose controller does not listen, before anything could move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from test_controller_away import ARM, GRIPPER, GRIPPERS, Heard, outputs
from test_position_stream import Clockwork, clock  # noqa: F401

from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.node.node_report import Condition, report
from vega3d_ros.ros.diagnostics import Level


def told(made: Any) -> tuple[Level, str]:
    """Of a node that is active and still, and whose inputs are as they should be."""
    inputs = SimpleNamespace(streams={}, drops={}, instruction="go", watches={})
    runner = Lockstep.__new__(Lockstep)
    runner.loop = SimpleNamespace(guard=None)  # type: ignore[assignment]
    level, sentence, _ = report(Condition(), runner, inputs, made, 0)  # type: ignore[arg-type]
    return level, sentence


def test_who_does_not_listen_is_told_before_the_start_and_what_a_start_mends_is_not(clock: Clockwork) -> None:  # noqa: F811
    graph = Heard()
    made = outputs(graph, clock)
    assert told(made) == (Level.OK, "Active and still: call ~/start to command.")
    for away, sentence in ((ARM, f"Nobody listens to {ARM}: start the arm's controller"), (GRIPPER, GRIPPERS)):
        graph.away = {away}
        clock.sleep(1.0)
        level, said = told(made)
        assert level is Level.WARN and said.startswith(f"Active and still, and after ~/start it would wait: {sentence}")
    graph.away.clear()
    made._writer._held_up_s = 1.0  # type: ignore[union-attr]
    assert "held up" in made.unheard and told(made)[0] is Level.OK
