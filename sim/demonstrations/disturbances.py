"""What disturbs demonstrations, so that they show how to recover: noise in what is executed, a policy at the wheel."""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray, Policy, VegaError
from sim.worlds.frames import FrameWindow
from sim.worlds.libero_env import LiberoEnvironment
from vega3d_ros.control.chunk_scheduler import LockstepQueue


class Bursts:
    """Adds bursts of disturbance to actions; half of the episodes are disturbed much, the others little."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rate = float(rng.choice([0.01, 0.06]))
        self.left = 0
        self.push = np.zeros(7)

    def __call__(self, action: FloatArray) -> FloatArray:
        if self.left == 0 and self.rng.random() < self.rate:
            self.left = int(self.rng.integers(2, 7))
            self.push = np.concatenate([self.rng.uniform(-0.9, 0.9, 3), self.rng.uniform(-0.15, 0.15, 3), [0.0]])
        noisy = action.copy()
        noisy[:6] += self.rng.normal(0.0, 0.03, 6) * np.array([1, 1, 1, 0.3, 0.3, 0.3])
        if self.left:
            self.left -= 1
            noisy += self.push
        return np.clip(noisy, -1.0, 1.0)


class Driver:
    """A policy that acts in an environment in lockstep, as an evaluation has it, from where the environment stands."""

    def __init__(self, environment: LiberoEnvironment, policy: Policy, instruction: str) -> None:
        if policy.spec.action_space.kind != "eef_delta":
            raise VegaError(f"Policy {policy.spec.name} commands joints: give one whose actions are eef deltas.")
        policy.reset()
        self._environment, self._policy, self._instruction = environment, policy, instruction
        self._queue, self._frames, self._steps = LockstepQueue(policy.spec), FrameWindow(policy.spec), 0

    def step(self) -> bool:
        """One control step; True once the task is solved."""
        environment, policy = self._environment, self._policy
        if self._frames.needed(self._steps):
            pictures = {camera: environment.render(camera) for camera in policy.spec.cameras}
            self._frames.add(self._steps, pictures)
        if self._queue.empty:
            self._queue.submit(policy.act(self._frames.observation(environment, self._steps, self._instruction)))
        self._steps += 1
        return environment.step_eef(self._queue.pop().action)
