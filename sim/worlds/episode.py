"""One trial of a task, driven joint command by joint command, and the fingerprint of what was executed.

The same class serves `sim_node` and the direct evaluation, so that two runs can be compared bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from policies.types import FloatArray
from sim.worlds.environment import Environment


class DigestedEnvironment(Environment, Protocol):
    """An environment that can give its whole physical state as bytes."""

    def states_digest(self) -> bytes: ...


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended.

    steps: control periods executed.  error: empty, or one sentence; an episode with an error says nothing about the
    policy.  actions_sha256: over the commands in order, each as float64 positions (rad), velocities (rad/s) and gripper
    sign, or as the float64 eef_delta action, after what was drawn of a perturbed view; states_sha256: over the
    simulator's state after each step.  perturbed: what was drawn of the view; empty for the suite's own.
    """

    success: bool
    steps: int
    error: str
    actions_sha256: str
    states_sha256: str
    perturbed: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Fingerprint:
    """Running hashes over what an episode executed and where it led."""

    def __init__(self) -> None:
        self._actions = hashlib.sha256()
        self._states = hashlib.sha256()
        self._gripper = -1.0

    def command(self, positions: FloatArray, velocities: FloatArray, gripper: float) -> None:
        """Add one joint command; a gripper of 0 keeps its last sign (open at first), and is hashed as that sign."""
        self._gripper = float(np.sign(gripper)) or self._gripper
        self._actions.update(np.concatenate([positions, velocities, [self._gripper]]).astype(np.float64).tobytes())

    def action(self, action: FloatArray) -> None:
        """Add one eef_delta action as float64."""
        self._actions.update(np.asarray(action, dtype=np.float64).tobytes())

    def perturbed(self, drawn: Mapping[str, Any]) -> None:
        """Add what was drawn of a perturbed view, before any command."""
        self._actions.update(json.dumps(drawn, sort_keys=True).encode())

    def state(self, state: bytes) -> None:
        """Add the simulator's state after a step."""
        self._states.update(state)

    @property
    def actions_sha256(self) -> str:
        return self._actions.hexdigest()

    @property
    def states_sha256(self) -> str:
        return self._states.hexdigest()


class Episode:
    """A trial under way.  The environment has been reset to it.  Single-threaded.

    perturbed: what was drawn of the view, where that is not the suite's own.
    """

    def __init__(self, environment: DigestedEnvironment, perturbed: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.environment, self.perturbed = environment, perturbed
        self.steps = 0
        self.success = False
        self.error = ""
        self.over = False
        self._fingerprint = Fingerprint()
        if perturbed:
            self._fingerprint.perturbed(perturbed)

    def step(self, positions: FloatArray, velocities: FloatArray, gripper: float) -> bool:
        """Execute one command for one control period; True once the episode is over.

        positions, velocities: (n,) rad, rad/s.  gripper: > 0 closes, < 0 opens, 0 keeps.
        """
        self._fingerprint.command(positions, velocities, gripper)
        return self._advance(self.environment.step_joints(positions, velocities, gripper))

    def step_eef(self, action: FloatArray) -> bool:
        """Execute one (7,) eef_delta action with the simulator's own controller; True once the episode is over."""
        self._fingerprint.action(action)
        return self._advance(self.environment.step_eef(action))

    def _advance(self, success: bool) -> bool:
        if self.over:
            raise RuntimeError("the episode is over")
        self.success = success
        self._fingerprint.state(self.environment.states_digest())
        self.steps += 1
        self.over = self.success or self.steps >= self.environment.max_steps
        return self.over

    def abort(self, error: str) -> None:
        """End the episode with an error."""
        self.error, self.over, self.success = error, True, False

    def result(self) -> EpisodeResult:
        return EpisodeResult(
            success=self.success,
            steps=self.steps,
            error=self.error,
            actions_sha256=self._fingerprint.actions_sha256,
            states_sha256=self._fingerprint.states_sha256,
            perturbed=dict(self.perturbed),
        )
