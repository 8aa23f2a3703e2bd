"""The policy of an evaluation: on this machine, or behind a policy server."""

from __future__ import annotations

from policies.checkpoints import load_policy
from policies.types import Policy, VegaError
from sim.evaluation.remote_policy import RemotePolicy


def open_policy(name: str, device: str, threads: int, world_simulator: str = "on") -> Policy:
    """A policy of this machine, or ws://host:port.  world_simulator: see `load_policy`.  Raises VegaError."""
    if name.startswith(("ws://", "wss://")):
        if world_simulator != "on":
            raise VegaError("A policy behind a server keeps its world simulator: leave --world-simulator at on.")
        return RemotePolicy(name)
    return load_policy(name, device, threads, world_simulator)
