"""Other colours for things and fixtures in demonstrations, so that a policy knows them by shape and label too."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray
from sim.demonstrations.skills.scene import turn
from sim.worlds.libero_env import LiberoEnvironment

DYED = 0.4  # share of the things
PAINTED = 0.85  # most that one colour takes of a thing's own ones
COLOURS = {"black", "blue", "brown", "green", "grey", "pink", "purple", "red", "silver", "white", "yellow"}
GREY = np.ones(3) / np.sqrt(3.0)  # a turn about it changes hues and leaves greys


@dataclass
class Part:
    """Something of a thing that has a colour: views of the model's arrays."""

    colours: NDArray[Any]  # (N, 3), 0 to `full`
    full: float
    texture: int = -1  # to be given to the renderer anew


class Dyes:
    """Dyes things of one environment, textures and all.

    What an instruction tells by its colour keeps it ("the white mug": every mug), and so do the surroundings, which
    `Views` tints.
    """

    def __init__(self, environment: LiberoEnvironment) -> None:
        self._sim = environment.env.sim
        self._things = _things(environment)
        self._built: dict[int, list[NDArray[Any]]] = {}  # of what is dyed

    def draw(self, rng: np.random.Generator) -> None:
        """Dye some things anew; the others are as they were built."""
        self.wash()
        for index, parts in enumerate(self._things):
            if rng.random() < DYED:
                self._built[index] = [part.colours.copy() for part in parts]
                hues = turn(GREY, rng.uniform(-np.pi, np.pi))
                share, paint = rng.uniform(0.0, PAINTED), rng.uniform(0.0, 1.0, 3)
                self._give(parts, [dyed(part.colours, part.full, hues, share, paint) for part in parts])

    def wash(self) -> None:
        """Everything as it was built."""
        for index, built in self._built.items():
            self._give(self._things[index], built)
        self._built = {}

    def _give(self, parts: list[Part], colours: list[NDArray[Any]]) -> None:
        context = self._sim._render_context_offscreen
        context.gl_ctx.make_current()
        for part, now in zip(parts, colours, strict=True):
            part.colours[:] = now
            if part.texture >= 0:
                mujoco.mjr_uploadTexture(self._sim.model._model, context.con, part.texture)


def dyed(colours: NDArray[Any], full: float, hues: FloatArray, share: float, paint: FloatArray) -> NDArray[Any]:
    """(N, 3) colours, 0 to `full`: hues turned by a (3, 3) rotation, then mixed with a share of (3,) paint, 0 to 1."""
    mixed = np.column_stack([(1.0 - share) * hues, share * full * paint])
    painted = cv2.transform(np.ascontiguousarray(colours)[:, None], mixed)[:, 0]
    return painted if painted.dtype == np.uint8 else np.clip(painted, 0.0, full)  # it saturates whole numbers itself


def _things(environment: LiberoEnvironment) -> list[list[Part]]:
    env, model = environment.env, environment.env.sim.model._model
    told = told_by_colour(environment.instruction)
    roots = model.body_rootid[model.geom_bodyid]
    found: list[list[Part]] = []
    taken: set[int] = set()
    for name, body in env.obj_body_id.items():
        if told & {*name.split("_")}:
            continue
        geoms = np.flatnonzero(roots == body)
        materials = {int(m) for m in model.geom_matid[geoms] if m >= 0}
        textures = {m: int(model.mat_texid[m, mujoco.mjtTextureRole.mjTEXROLE_RGB]) for m in materials}
        parts = [Part(model.geom_rgba[g : g + 1, :3], 1.0) for g in geoms if model.geom_matid[g] < 0]
        parts += [Part(model.mat_rgba[m : m + 1, :3], 1.0) for m in materials if textures[m] < 0]
        for texture in {*textures.values()} - taken - {-1}:
            first, channels = model.tex_adr[texture], model.tex_nchannel[texture]
            size = model.tex_height[texture] * model.tex_width[texture] * channels
            if channels >= 3:
                texels = model.tex_data[first : first + size].reshape(-1, channels)
                parts.append(Part(texels[:, :3], 255.0, texture))
        taken |= {*textures.values()}
        found.append(parts)
    return found


def told_by_colour(instruction: str) -> set[str]:
    """The nouns that an instruction has behind colours: {"mug"} of "put the yellow and white mug on the left plate"."""
    words = instruction.split()
    return {word for before, word in pairwise(words) if before in COLOURS} - {*COLOURS, "and"}
