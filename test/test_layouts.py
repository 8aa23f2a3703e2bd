"""How far layouts go: fixtures too, and what tells twins apart as one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sim.demonstrations.arrangements import _piles, _told_apart_by_place, lay_out
from sim.demonstrations.skills.scene import Scene
from sim.worlds.libero_env import LiberoEnvironment


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Iterator[LiberoEnvironment]:
    made = LiberoEnvironment(*request.param)
    made.seed_random(0)
    made.random_reset()
    made.settle()
    yield made
    made.close()


@pytest.mark.parametrize("environment", [("libero_spatial", 7)], indirect=True)
def test_random_layouts_shift_fixtures_too_which_stand_apart(environment: LiberoEnvironment) -> None:
    scene, names = Scene(environment), ("flat_stove_1", "wooden_cabinet_1")
    usual, shifts = {name: scene.pose(name).position for name in names}, []
    for seed in range(8):
        assert lay_out(environment, np.random.default_rng(seed), "random") == "random"
        first, second = (scene.box(name) for name in names)
        assert np.any((first.high < second.low) | (second.high < first.low))
        shifts.append([np.abs(scene.pose(name).position - usual[name]).max() for name in names])
    assert 0.04 < np.max(shifts) <= 0.15 + 1e-9
    assert 0 < np.sum(np.max(shifts, axis=1) <= 0.02 + 1e-9) < len(shifts)  # not always so far


@pytest.mark.parametrize("environment", [("libero_spatial", 6)], indirect=True)  # the bowl next to the cookie box
@pytest.mark.parametrize("kind", ["permuted", "random"])
def test_what_tells_twins_apart_goes_far_and_together(environment: LiberoEnvironment, kind: str) -> None:
    scene, gone = Scene(environment), []
    usual = scene.pose("cookies_1").position[:2]
    for seed in range(6):
        assert lay_out(environment, np.random.default_rng(seed), kind) == kind
        things = ("cookies_1", "akita_black_bowl_1", "akita_black_bowl_2")
        box, bowl, twin = (scene.pose(name).position[:2] for name in things)
        assert np.linalg.norm(bowl - box) < 0.2 < np.linalg.norm(twin - box)
        gone.append(np.linalg.norm(box - usual))
    assert max(gone) > 0.1


@pytest.mark.parametrize("environment", [("libero_10", 4)], indirect=True)
def test_mugs_change_places_while_left_and_right_plate_stay_so(environment: LiberoEnvironment) -> None:
    scene = Scene(environment)
    assert _told_apart_by_place(scene, _piles(scene))[0] == {"plate_1", "plate_2"}
