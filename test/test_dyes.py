"""Dyes: things of a demonstration in other colours, but for what an instruction tells by its colour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.demonstrations.dyes import GREY, Dyes, dyed, told_by_colour
from sim.demonstrations.skills.scene import turn
from sim.worlds.libero_env import LiberoEnvironment


@pytest.fixture(scope="module")
def stove() -> Iterator[LiberoEnvironment]:
    environment = LiberoEnvironment("libero_spatial", 7)  # "pick up the black bowl on the stove ..."
    yield environment
    environment.close()


def test_things_and_fixtures_are_dyed_until_they_are_washed_but_not_what_is_told_by_its_colour(
    stove: LiberoEnvironment,
) -> None:
    """Of "pick up the black bowl on the stove ..." both bowls keep their colours; so does all that stands around."""
    dyes, model = Dyes(stove), stove.env.sim.model._model
    stove.reset(0)
    plain, look, opaque = stove.render("agentview").astype(int), _look(model), model.mat_rgba[:, 3].copy()
    bowls = [thing for name, thing in stove.env.objects_dict.items() if "bowl" in name]
    others = [thing for name, thing in stove.env.objects_dict.items() if "bowl" not in name]
    changed, seen = set(), []
    for seed in range(8):
        dyes.draw(np.random.default_rng(seed))
        now = _look(model)
        changed |= {name for name, body in look.items() if (body != now[name]).any()}
        np.testing.assert_array_equal(model.mat_rgba[:, 3], opaque)
        seen.append(np.abs(stove.render("agentview").astype(int) - plain).mean())
    roots = {thing.root_body for thing in (*others, *stove.env.fixtures_dict.values())} & {*look}
    assert len(bowls) == 2 and changed == roots
    assert max(seen) > 1.0
    dyes.wash()
    np.testing.assert_array_equal(stove.render("agentview"), plain)


def _look(model: Any) -> dict[str, np.ndarray]:
    """Of each thing, by its root body, the mean colours of what it is drawn with."""
    looks: dict[str, list[float]] = {}
    for geom in range(model.ngeom):
        name, material = model.body(int(model.body_rootid[model.geom_bodyid[geom]])).name, int(model.geom_matid[geom])
        colour = [*model.geom_rgba[geom]]
        if material >= 0:
            colour += [*model.mat_rgba[material]]
            texture = int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])
            if texture >= 0:
                size = model.tex_height[texture] * model.tex_width[texture] * model.tex_nchannel[texture]
                colour.append(model.tex_data[model.tex_adr[texture] :][:size].mean())
        looks.setdefault(name, []).extend(colour)
    return {name: np.array(look) for name, look in looks.items()}


@given(
    st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1),
    st.floats(-np.pi, np.pi), st.floats(0.0, 1.0), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
)  # fmt: skip
def test_a_dye_is_the_same_for_textures_and_for_plain_colours(
    colours: list[list[int]], angle: float, share: float, paint: list[float]
) -> None:
    texels, hues = np.array(colours, dtype=np.uint8), turn(GREY, angle)
    painted = dyed(texels, 255.0, hues, share, np.array(paint))
    plain = dyed(texels / 255.0, 1.0, hues, share, np.array(paint))
    assert painted.dtype == np.uint8 and (plain >= 0.0).all() and (plain <= 1.0).all()
    np.testing.assert_allclose(painted / 255.0, plain, atol=1.0 / 255.0)  # OpenCV counts in whole numbers
    greys = dyed(np.full((1, 3), 0.5), 1.0, hues, share, np.array(paint))[0]
    np.testing.assert_allclose(greys, (1 - share) * 0.5 + share * np.array(paint), atol=1e-6)


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("put the white mug on the left plate and put the yellow and white mug on the right plate", {"mug"}),
        ("pick up the black bowl next to the cookie box and place it on the plate", {"bowl"}),
        ("turn on the stove", set()),
    ],
)
def test_what_an_instruction_tells_by_its_colour(instruction: str, told: set[str]) -> None:
    assert told_by_colour(instruction) == told
