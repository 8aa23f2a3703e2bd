"""The policy in a process of its own, for `realtime`: what it computes must not delay what is commanded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import cast

from policies.types import AS_CONFIGURED, ActionChunk, Observation, PolicySpec, SpeedOptions
from vega3d_ros.inference.failures import begin_episode, policy_failed
from vega3d_ros.inference.separate import SeparateModel, serve

BEGIN = "from vega3d_ros.inference.separate_policy import serve_policy; serve_policy()"


class SeparatePolicy(SeparateModel):
    """A `policies.types.Policy` whose process is another; see `SeparateModel`.

    name, device, threads, world_simulator, speed: as for `policies.checkpoints.load_policy`.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        threads: int = 1,
        world_simulator: str = "on",
        speed: SpeedOptions = AS_CONFIGURED,
    ) -> None:
        words = (name, device, str(threads), world_simulator, json.dumps(asdict(speed)))
        super().__init__(BEGIN, words, "policy", "policy_node")
        assert isinstance(self.greeting, PolicySpec)
        self.spec = self.greeting

    def act(self, observation: Observation) -> ActionChunk:
        return cast(ActionChunk, self._ask(observation))  # checked with what is in it, by `check_chunk`

    def reset(self) -> None:
        self._ask(None)


def serve_policy() -> None:
    """The life of the policy's process."""

    def load(words: list[str]) -> tuple[PolicySpec, Callable[[Observation | None], object]]:
        from policies.checkpoints import load_policy  # torch is imported in this process only

        name, device, threads, world_simulator, options = words
        speed = SpeedOptions(**json.loads(options))
        policy = load_policy(name, device, int(threads), world_simulator, speed=speed)

        def answer(question: Observation | None) -> ActionChunk | None:
            if question is not None:
                return policy.act(question)
            begin_episode(policy.reset)
            return None

        return policy.spec, answer

    serve(load, policy_failed)
