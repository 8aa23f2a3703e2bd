"""The teacher: goal predicates of a task, met one after the other with the skills of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from policies.types import FloatArray, VegaError
from sim.demonstrations.skills.grasps import known_grasps
from sim.demonstrations.skills.insert import Insert, behind_a_door
from sim.demonstrations.skills.joints import along_joint
from sim.demonstrations.skills.places import Place
from sim.demonstrations.skills.scene import Scene
from sim.demonstrations.skills.slide import Slide
from sim.demonstrations.skills.transfer import Transfer
from sim.worlds.libero_env import LiberoEnvironment

Predicate = Sequence[str]


class Skill(Protocol):
    """One thing to do; knows when it is over."""

    finished: bool

    @property
    def attention(self) -> FloatArray:
        """(3,) point in the world that matters now."""
        ...

    def action(self) -> FloatArray:
        """(7,) eef_delta action for the present state."""
        ...


class SkillExpert:
    """Solves a task from wherever it stands.  One instance per episode; ask `action` once a control step.

    goal: bddl predicates such as [["in", "milk_1", "basket_1_contain_region"]], by default the task's own.
    Raises VegaError where no skill is known for a predicate.
    """

    def __init__(self, environment: LiberoEnvironment, goal: Sequence[Predicate] | None = None) -> None:
        self.scene = Scene(environment)
        self.goal = [list(p) for p in (goal or environment.env.parsed_problem["goal_state"])]
        self._steps = ordered(self.scene, self.goal)
        self._skill: Skill | None = None
        self._met = 0

    @property
    def progress(self) -> float:
        """Share of the steps towards the goal that are done, in [0, 1]; never falls."""
        return 1.0 if self.solved else self._met / len(self._steps)

    @property
    def solved(self) -> bool:
        """Whether all predicates hold."""
        return all(self.scene.holds(p) for p in self.goal)

    @property
    def attention(self) -> FloatArray:
        """(3,) point in the world that the hand is heading for."""
        return self._current().attention

    def action(self) -> FloatArray:
        return self._current().action()

    def _current(self) -> Skill:
        if self._skill is None or self._skill.finished:
            self._skill = self._next()
        return self._skill

    def _next(self) -> Skill:
        for index, predicate in enumerate(self._steps):
            if not self.scene.holds(predicate):
                self._met = max(self._met, index)
                return skill_for(self.scene, predicate)
        return skill_for(self.scene, self._steps[-1])


def ordered(scene: Scene, goal: Sequence[Predicate]) -> list[list[str]]:
    """Predicates in the order in which they can be met: what has to be open first, closing last."""
    before = [["open", p[2]] for p in goal if p[0] == "in" and scene.joints_of(p[2])]
    for _, _, where in (p for p in goal if p[0] == "in" and behind_a_door(scene, p[2]) and not scene.holds(p)):
        if scene.holds(["close", str(scene.parent(where))]):
            before.append(["open", str(scene.parent(where))])
    middle = [list(p) for p in goal if p[0] != "close"]
    # Something that is taken out of nowhere needs no opening; a drawer that stands open is left as it is.
    return [*before, *middle, *(list(p) for p in goal if p[0] == "close")]


def skill_for(scene: Scene, predicate: Predicate) -> Skill:
    kind = predicate[0]
    if kind in ("on", "in"):
        name, place = predicate[1], Place(scene, predicate[1], list(predicate))
        if kind == "in" and behind_a_door(scene, predicate[2]):
            return Insert(scene, name, predicate[2])
        if not known_grasps(scene, name) and place.under is None:
            return Slide(scene, name, place, list(predicate))
        return Transfer(scene, name, place)
    if kind in ("open", "close", "turnon", "turnoff") and scene.joints_of(predicate[1]):
        return along_joint(scene, list(predicate))
    raise VegaError(f"No skill meets the predicate ({' '.join(predicate)}): this task has no expert yet.")
