"""Which frames a policy will look at when the world waits for it, so that no other is drawn."""

from __future__ import annotations

import numpy as np

from policies.types import Image, Observation, PolicySpec
from sim.worlds.environment import Environment


class FrameWindow:
    """The frames between now and the oldest that the next decision needs.

    The policy decides at steps 0, H, 2H, ... (H = open_loop_horizon) and then sees the frames of `window` steps lying
    `stride` apart, the newest being its own; before the first step there is only the first frame, which is repeated.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._reach = (spec.window - 1) * spec.stride
        self._frames: dict[int, dict[str, Image]] = {}

    def needed(self, step: int) -> bool:
        """Whether a decision at this step or later will look at this step's frame."""
        spec = self._spec
        return step == 0 or any((step + age * spec.stride) % spec.open_loop_horizon == 0 for age in range(spec.window))

    def add(self, step: int, images: dict[str, Image]) -> None:
        """images: camera -> (H, W, 3) uint8.  Steps must come in order."""
        self._frames[step] = images
        for old in [s for s in self._frames if 0 < s < step - self._reach]:
            del self._frames[old]

    def images(self, step: int) -> dict[str, Image]:
        """camera -> (window, H, W, 3), oldest first, for a decision at this step."""
        steps = [max(step - age * self._spec.stride, 0) for age in reversed(range(self._spec.window))]
        return {camera: np.stack([self._frames[s][camera] for s in steps]) for camera in self._spec.cameras}

    def observation(self, environment: Environment, step: int, instruction: str) -> Observation:
        """What the policy is told for a decision at this step, which is now."""
        images, state = self.images(step), environment.state()
        base = environment.base_position, environment.base_quaternion
        return Observation(images, state, instruction, state.stamp_ns, *base)
