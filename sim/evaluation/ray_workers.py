"""Episodes on a Ray cluster: the shards of `workers.py` as Ray tasks.

Ray places them, one task for each CPU (or GPU) of the cluster, and runs a shard again where its process or its machine
died.  Every machine needs this package and the policy's checkpoint at the same place; what an episode leaves besides
its record travels back with it.
"""

from __future__ import annotations

import functools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies.types import VegaError
from sim.evaluation.settings import EpisodeSettings, Runner
from sim.evaluation.workers import ATTEMPTS, Shard
from sim.results.evaluation import EpisodeRecord

CONNECT_S = 30


@dataclass(frozen=True)
class Finished:
    """An episode, and the files it left: path in the run's folder -> content."""

    record: EpisodeRecord
    files: dict[str, bytes]
    node: str


def run_on_ray(
    settings: EpisodeSettings,
    shards_for: Callable[[int], Sequence[Shard]],
    address: str,
    on_record: Callable[[EpisodeRecord], None],
    on_node: Callable[[str], None] = lambda node: None,
) -> None:
    """Run shards on the cluster at `address` (host:port, or `auto`).

    shards_for: what is to be done, divided for so many episodes at once as the cluster has room for.
    on_record: called in this thread with each finished episode.  on_node: with the id of the node it ran on.
    An episode at which processes died three times is recorded as an error.  Raises VegaError if there is no cluster or
    the policy cannot be loaded there.
    """
    ray = connect(address)
    try:
        task = ray.remote(num_returns="streaming", max_retries=ATTEMPTS - 1)(_work)
        kind, each = ("GPU", 1) if settings.device.startswith("cuda") else ("CPU", max(1, settings.threads))
        room = sum(int(node["Resources"].get(kind, 0)) // each for node in ray.nodes() if node["Alive"])
        if room < 1:
            raise VegaError(
                f"No node of the Ray cluster at {address} has the {each} {kind} that an episode needs: add one."
            )
        resources = {f"num_{kind.lower()}s": each}
        shards = shards_for(room)

        def submit(shard: Shard) -> Any:
            return task.options(**resources).remote(settings, shard)

        running = {submit(shard): list(shard.trials) for shard in shards}
        of_task = {stream: shard.task for stream, shard in zip(running, shards, strict=True)}
        while running:
            (stream,), _ = ray.wait(list(running), num_returns=1)
            left, number = running[stream], of_task[stream]
            try:
                finished = ray.get(next(stream))
            except StopIteration:
                del running[stream]
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, VegaError) else error from None
            except ray.exceptions.RayError as error:
                on_record(settings.lost(number, left.pop(0), _died(error)))
                del running[stream]
                if left:
                    again = submit(Shard(number, tuple(left)))
                    running[again], of_task[again] = left, number
                continue
            left.remove(finished.record.trial)
            _keep(settings.folder, finished.files)
            on_node(finished.node)
            on_record(finished.record)
    finally:
        ray.shutdown()


def connect(address: str) -> Any:
    """The `ray` module, connected.  Raises VegaError without it and where no cluster answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise VegaError("Ray is not installed: pip install 'ray>=2.40', or leave --ray out.") from error
    if address != "auto":
        _check_reachable(address, ray.util.get_node_ip_address())
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, by the kind of address
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise VegaError(f"No Ray cluster answers at {address} ({first}): start one with `ray start --head`.") from error
    return ray


def _check_reachable(address: str, here: str) -> None:
    """Ray itself waits for minutes where nobody listens.

    here: this machine's address on the network, which Ray puts for the loopback address.
    """
    host, _, port = address.rpartition(":")
    host = here if host in ("localhost", "127.0.0.1") else host
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise VegaError(
            f"No Ray cluster answers at {address} ({error}): start one with `ray start --head`, and give its host:port."
        ) from error


def _died(error: Exception) -> str:
    return f"{ATTEMPTS} processes of the Ray cluster died in this episode ({type(error).__name__})."


def _keep(folder: Path | None, files: dict[str, bytes]) -> None:
    if folder is None:
        return
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    except OSError as error:
        raise VegaError(f"Results cannot be written to {folder} ({error.strerror}): make room there.") from error


def _work(settings: EpisodeSettings, shard: Shard) -> Iterator[Finished]:
    """A shard, in a process of the cluster."""
    import ray

    runner, folder = _runner(replace(settings, folder=None))
    node = str(ray.get_runtime_context().get_node_id())
    for trial in shard.trials:
        record = settings.run_trial(runner, shard.task, trial)
        yield Finished(record, _take(Path(folder.name)), node)


@functools.lru_cache(maxsize=1)
def _runner(settings: EpisodeSettings) -> tuple[Runner, tempfile.TemporaryDirectory[str]]:
    """Ray gives one process many shards: the policy, and the environment where the task is the same, stay."""
    folder = tempfile.TemporaryDirectory(prefix="vega3d-")
    return replace(settings, folder=Path(folder.name)).build(), folder


def _take(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    taken = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    return taken
