"""Small deterministic NumPy policies for the tests of the node; loaded by the name `tiny_policy:<Class>`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError, check_images


class TinyPolicy:
    """Looks at every input: the actions depend on both images, the joints, the text and the number of the query."""

    spec = PolicySpec(
        name="tiny",
        cameras=("agentview", "wrist"),
        action_space=ActionSpace(kind="eef_delta"),
        chunk_length=8,
        open_loop_horizon=4,
    )

    def __init__(self) -> None:
        self.queries = 0

    def act(self, observation: Observation) -> ActionChunk:
        check_images(observation.images, self.spec)
        seen = [float(observation.images[camera].mean()) / 255.0 for camera in self.spec.cameras]
        seen += [*observation.state.joint_positions, len(observation.instruction) / 512.0, self.queries / 64.0]
        phase = float(np.sum(np.asarray(seen) * np.arange(1, len(seen) + 1)))
        steps = np.arange(self.spec.chunk_length)[:, None]
        actions = 0.2 * np.sin(phase + steps + np.arange(7))
        actions[:, 6] = 1.0 if self.queries % 2 else -1.0
        self.queries += 1
        ramp = np.linspace(0.0, 1.0, 4, dtype=np.float32).reshape(2, 2)
        return ActionChunk(
            actions=actions,
            stamp_ns=observation.stamp_ns,
            instruction=observation.instruction,
            timings_ms={"thinking": 0.01},
            gates=dict.fromkeys(self.spec.cameras, ramp),
            world_age=(self.queries - 1) % 3,
        )

    def reset(self) -> None:
        self.queries = 0


class EagerPolicy(TinyPolicy):
    """Asked at every step, so that every command needs images."""

    spec = PolicySpec(
        name="eager",
        cameras=("agentview", "wrist"),
        action_space=ActionSpace(kind="eef_delta"),
        chunk_length=8,
        open_loop_horizon=1,
    )


class NanPolicy(TinyPolicy):
    """Its third query gives a number that is none."""

    def act(self, observation: Observation) -> ActionChunk:
        chunk = super().act(observation)
        if self.queries == 3:
            chunk.actions[2, 1] = np.nan
        return chunk


class RaisingPolicy(TinyPolicy):
    """Its second query raises what no policy should."""

    def act(self, observation: Observation) -> ActionChunk:
        if self.queries == 1:
            raise RuntimeError("CUDA error: device lost")
        return super().act(observation)


class ForgetfulPolicy(TinyPolicy):
    """The second episode cannot begin: it raises what no policy should."""

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1
        if self.resets == 2:
            raise RuntimeError("CUDA out of memory")
        super().reset()


class StuckPolicy(TinyPolicy):
    """Its second query never returns."""

    def act(self, observation: Observation) -> ActionChunk:
        if self.queries == 1:
            time.sleep(3600.0)
        return super().act(observation)


class HangingPolicy(TinyPolicy):
    """Never answers."""

    def act(self, observation: Observation) -> ActionChunk:
        time.sleep(3600.0)
        raise VegaError("woke up")


class UnloadablePolicy(TinyPolicy):
    """Cannot be loaded."""

    def __init__(self) -> None:
        raise VegaError("The checkpoint 'weights.safetensors' is cut short: download it again.")


class SpeclessPolicy(TinyPolicy):
    """Describes itself in another way than a policy has to."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = {"name": "tiny"}  # type: ignore[assignment]


class SlowPolicy(TinyPolicy):
    """Is loaded once the file SLOW_POLICY.go exists, and says by SLOW_POLICY.there that it waits for it."""

    def __init__(self) -> None:
        super().__init__()
        path = Path(os.environ["SLOW_POLICY"])
        path.with_suffix(".there").touch()
        while not path.with_suffix(".go").exists():
            time.sleep(0.01)
