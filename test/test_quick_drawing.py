"""What demonstrations leave out of their pictures changes little of what is seen and nothing of what happens."""

from __future__ import annotations

import numpy as np
import pytest

from sim.demonstrations.quick_drawing import LEAST, PLAIN, draw_quickly, simplify_meshes
from sim.worlds.libero_env import CAMERAS, LiberoEnvironment

TASK = ("libero_spatial", 1)
# Mean difference of a pixel, levels of 255; meshes of one colour alone come to 5 and more, faces in disorder to 7.
FACES, ALL = 2.0, 3.0  # of fewer faces alone; with edges that are not smoothed


@pytest.fixture(scope="module")
def environment():
    made = LiberoEnvironment(*TASK)
    yield made
    made.close()


def seen_and_done(environment: LiberoEnvironment) -> tuple[dict[str, np.ndarray], list[bytes]]:
    """Pictures, and the states of thirty steps that bring the hand down among the things."""
    environment.reset(0)
    states = []
    for _ in range(30):
        environment.step_eef(np.array([0.3, 0.2, -1.0, 0.0, 0.0, 0.3, -1.0]))
        states.append(environment.states_digest())
    return {camera: environment.render(camera).astype(int) for camera in CAMERAS}, states


def test_what_is_touched_keeps_its_faces(environment: LiberoEnvironment) -> None:
    """Before the other test, which leaves no mesh with more faces."""
    model = environment.env.sim.model._model
    faces, kinds = model.mesh_facenum.copy(), model.geom_contype.copy()
    model.geom_contype[:] = 1
    try:
        assert simplify_meshes(environment) == 0
        assert (model.mesh_facenum == faces).all()
    finally:
        model.geom_contype[:] = kinds


def test_contacts_solved_once_move_alike(environment: LiberoEnvironment) -> None:
    """Down among the things and into one of them: to less than a tenth of a micrometre, and as scored afterwards."""
    _, states = seen_and_done(environment)
    environment.step_quickly()
    try:
        _, quick = seen_and_done(environment)
    finally:
        environment._control_step.quick = False
    apart = [np.abs(np.frombuffer(a) - np.frombuffer(b)).max() for a, b in zip(states, quick, strict=True)]
    assert 0 < max(apart) < 1e-7
    assert seen_and_done(environment)[1] == states


def test_quick_pictures_look_alike_and_move_alike(environment: LiberoEnvironment) -> None:
    pictures, states = seen_and_done(environment)
    model = environment.env.sim.model._model
    before = model.mesh_facenum.copy()
    left_out = simplify_meshes(environment)
    assert left_out == (before - model.mesh_facenum).sum() > before.sum() / 2
    few = before <= PLAIN * LEAST
    assert (model.mesh_facenum[few] == before[few]).all()
    fewer, again = seen_and_done(environment)
    assert again == states
    draw_quickly(environment)
    quick, again = seen_and_done(environment)
    assert again == states
    for camera, picture in pictures.items():
        assert 0 < np.abs(fewer[camera] - picture).mean() < FACES, camera
        assert np.abs(quick[camera] - fewer[camera]).mean() > 0, camera
        assert np.abs(quick[camera] - picture).mean() < ALL, camera
