"""While nothing is commanded: when the place where the arm was told to be last is none to begin at any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_position_stream import Clockwork, Graph, parameters

from vega3d_ros.control.journal import no_journal
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.node import still_watch
from vega3d_ros.node.still_watch import LONGEST_LOOK_S, StillWatch

PLACE = np.array([0.3])


class Runner(Realtime):
    """One whose arm was led once; `resets` are what its guard was told."""

    def __init__(self) -> None:
        self.resets: list[Any] = []
        guard = SimpleNamespace(at_once=True, reset=lambda *told: self.resets.append(told))
        self.loop = SimpleNamespace(guard=guard)  # type: ignore[assignment]
        self.scheduler = SimpleNamespace(discard=lambda: None)  # type: ignore[assignment]
        self._maker = SimpleNamespace(reset=lambda: None)  # type: ignore[assignment]
        self.journal = no_journal
        self.led()

    def led(self) -> None:
        self._led, self._told, self._held = True, True, None


@pytest.fixture
def clock(monkeypatch) -> Clockwork:
    clockwork = Clockwork()
    monkeypatch.setattr(still_watch, "time", clockwork)
    return clockwork


def watch_of(runner: Runner) -> tuple[StillWatch, Graph, list[str]]:
    graph, said = Graph(), []
    graph.get_logger = lambda: SimpleNamespace(info=said.append)  # type: ignore[attr-defined]
    return StillWatch(graph, parameters(1000.0), runner), graph, said  # type: ignore[arg-type]


@pytest.mark.parametrize("why", ["another commands", "no controller"])
def test_an_inactive_node_sees_who_could_move_the_arm_and_says_so_once(clock, why) -> None:
    runner = Runner()
    watch, graph, said = watch_of(runner)
    watch.look(None, False)
    assert not runner.resets
    if why == "another commands":
        graph.others.append("teleoperation")
    else:
        graph.listeners[:] = ["recorder"]
    for _ in range(3):
        clock.sleep(0.1)
        watch.look(None, False)
    assert runner.resets == [(True, None)] and len(said) == 1
    runner.led()
    watch.look(None, running=True)
    assert len(runner.resets) == 1, "while it commands it sees to that elsewhere"


@pytest.mark.parametrize(("name", "forgets_after_s"), [("policy_node", 2.0), ("teleoperation", 0.1)])
def test_its_own_publisher_that_is_listed_after_a_deactivation_is_nobody_elses_unless_it_stays(
    clock, name, forgets_after_s
) -> None:
    runner = Runner()
    watch, graph, _ = watch_of(runner)
    outputs = SimpleNamespace(stop=lambda watched: watched, held=None)
    watch.look(outputs, False)  # type: ignore[arg-type]
    began_s = clock.monotonic()
    graph.others.append(name)
    while not runner.resets:
        clock.sleep(0.1)
        watch.look(None, False)
        assert clock.monotonic() - began_s < 10.0
    assert clock.monotonic() - began_s == pytest.approx(forgets_after_s, abs=0.15)


@pytest.mark.parametrize("active", [False, True])
def test_a_node_that_could_not_look_counts_on_nothing(clock, active) -> None:
    asked: list[bool] = []
    outputs = SimpleNamespace(stop=lambda watched: asked.append(watched) or watched, held=PLACE)
    runner = Runner()
    watch, _, _ = watch_of(runner)
    for pause_s, news in ((0.1, 0), (LONGEST_LOOK_S - 0.1, 0), (LONGEST_LOOK_S + 0.1, 1), (0.1, 1)):
        clock.sleep(pause_s)
        watch.look(outputs if active else None, False)  # type: ignore[arg-type]
        assert len(runner.resets) == news
    assert runner.resets == [(True, None)]
    assert asked == ([True, True, False, True] if active else [])


def test_a_pause_while_it_commanded_counts_when_commanding_ends(clock) -> None:
    runner = Runner()
    watch, _, _ = watch_of(runner)
    clock.sleep(LONGEST_LOOK_S + 1.0)
    watch.look(None, True)
    assert not runner.resets
    clock.sleep(0.1)
    watch.look(None, False)
    assert runner.resets == [(True, None)]


def test_a_place_where_a_path_was_left_is_told_once_and_forgotten_once_others_may_command() -> None:
    runner = Runner()
    assert [runner.release(True, PLACE) for _ in range(3)] == [True, False, False]
    assert runner.release(True, PLACE + 0.1), "left anew"
    assert [runner.release(True) for _ in range(2)] == [True, False]
    assert [held for _, held in runner.resets][-1] is None
    # An episode that has led nothing yet goes on from the place of the one before it.
    runner.led()
    runner._leave()
    assert not runner.release(False) and runner.release(True)
