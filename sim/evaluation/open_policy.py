"""The policy of an evaluation: on this machine, or behind a policy server."""

from __future__ import annotations

from policies.checkpoints import load_policy
from policies.types import Policy
from sim.evaluation.remote_policy import RemotePolicy


def open_policy(name: str, device: str, threads: int) -> Policy:
    """A policy of this machine, or ws://host:port.  Raises VegaError."""
    if name.startswith(("ws://", "wss://")):
        return RemotePolicy(name)
    return load_policy(name, device, threads)
