"""A measurement that is no number is not passed over for the largest of the others: its row fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.training import farthest
from benchmarks.wire_judge.controller import Controller, Limits, Point, Verdict
from policies.measuring import speed
from policies.parity import spatial as parity
from policies.spatial.scores import boxes, vsi

GOLDEN = Path(__file__).parent / "golden" / "spatial"
JOINTS = np.ones(2)


def sometimes(function: Any, when: int) -> Any:
    """The function, but NaN at its call of that number."""
    calls = iter(range(10**6))
    return lambda *arguments: math.nan if next(calls) == when else function(*arguments)


def failed(rows: list[parity.Line]) -> set[str]:
    return {name for name, error, tolerance in rows if not error <= tolerance}


@pytest.mark.parametrize("when", [0, 3])
def test_a_score_that_is_no_number_fails_its_row(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not failed(list(parity.check_vsi(GOLDEN / "vsi_scores.json")))
    monkeypatch.setattr(vsi, "score", sometimes(vsi.score, when))
    assert "vsi/score_of_an_answer" in failed(list(parity.check_vsi(GOLDEN / "vsi_scores.json")))


@pytest.mark.parametrize("when", [0, 3])
def test_an_overlap_that_is_no_number_fails_its_row(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not failed(list(parity.check_metrics(GOLDEN / "scene3d_metrics.json")))
    monkeypatch.setattr(boxes, "overlap", sometimes(boxes.overlap, when))
    assert "scanrefer/iou" in failed(list(parity.check_metrics(GOLDEN / "scene3d_metrics.json")))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_largest_of_differences_is_none_where_one_is_none(order: tuple[int, int]) -> None:
    values = [[0.5, math.nan][i] for i in order]
    assert math.isnan(farthest(dict(enumerate(values)), {0: 0.5, 1: 0.5}))
    tensors = [torch.tensor([value]) for value in values]
    assert math.isnan(speed._worst(tensors, [torch.ones(1)] * 2))
    answers = [{"actions": [value]} for value in values]
    assert math.isnan(speed.farthest(answers, [{"actions": [1.0]}] * 2, "actions"))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_path_that_is_no_number_is_outside_whatever_comes_before_or_after(order: tuple[int, int]) -> None:
    for kind in ("position", "velocity", "acceleration"):
        total = Verdict()
        for i in order:
            total.add([Verdict(), Verdict(**{kind: math.nan})][i])
        assert total.outside, kind


def test_a_command_that_begins_at_no_number_is_outside() -> None:
    """Its first place is behind already, and all that comes is finite."""
    controller = Controller(Limits(-JOINTS, JOINTS, JOINTS, JOINTS), 0.0 * JOINTS)
    points: list[Point] = [(0.0, np.nan * JOINTS, 0.0 * JOINTS), (10.0, 0.0 * JOINTS, 0.0 * JOINTS)]
    assert controller.take(0.0, [(0.0, 0.0 * JOINTS, 0.0 * JOINTS), *points[1:]], 0.05).outside is False
    assert controller.take(0.0, points, 0.05).outside
