"""Shards as tasks of a real Ray cluster of two nodes, which talks over the loopback interface only."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_workers import PretendedSettings

from policies.types import VegaError
from sim.evaluation.ray_workers import connect, run_on_ray
from sim.evaluation.workers import Shard, make_shards, run_here
from sim.results.evaluation import EpisodeRecord

if importlib.util.find_spec("ray") is None:
    pytest.skip("the extra `ray` is not installed", allow_module_level=True)
SHARDS = make_shards([0, 1, 2], 4, 2)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from benchmarks.evaluation.ray_cluster import two_nodes

    with pytest.MonkeyPatch.context() as patch:
        # What the nodes import is what is imported here.
        patch.setenv("PYTHONPATH", ":".join(sys.path))
        with two_nodes() as found:
            yield found


def settings(folder: Path, pause_s: float = 0.0) -> PretendedSettings:
    return PretendedSettings("s", "a:B", trouble=folder, folder=folder / "run", pause_s=pause_s)


def by_key(records: list[EpisodeRecord]) -> dict[tuple[int, int], tuple[bool, str, str]]:
    assert len({r.key for r in records}) == len(records)
    return {r.key: (r.success, r.states_sha256, r.error) for r in records}


def test_two_nodes_find_what_one_process_finds(address: str, tmp_path: Path) -> None:
    here: list[EpisodeRecord] = []
    there: list[EpisodeRecord] = []
    nodes: list[str] = []
    run_here(settings(tmp_path), SHARDS, here.append)
    rooms: list[int] = []

    def shards_for(room: int) -> list[Shard]:
        rooms.append(room)
        return SHARDS

    run_on_ray(settings(tmp_path, 0.2), shards_for, address, there.append, nodes.append)
    assert rooms == [2]
    assert by_key(there) == by_key(here)
    assert len(set(nodes)) == 2
    assert (tmp_path / "run" / "pictures" / "2_3.txt").read_text() == "2 3"


def test_ray_repeats_the_shard_of_a_dead_process_and_a_deadly_episode_is_an_error(address: str, tmp_path: Path) -> None:
    here: list[EpisodeRecord] = []
    there: list[EpisodeRecord] = []
    run_here(settings(tmp_path), SHARDS, here.append)
    for name in ("once_0_1", "once_2_0", "always_1_2"):
        (tmp_path / name).touch()
    run_on_ray(settings(tmp_path), lambda room: SHARDS, address, there.append)
    expected, found = by_key(here), by_key(there)
    assert "died in this episode" in found.pop((1, 2))[2]
    del expected[1, 2]
    assert found == expected


def test_a_policy_that_cannot_be_loaded_there_is_one_sentence(address: str, tmp_path: Path) -> None:
    (tmp_path / "no_policy").touch()
    with pytest.raises(VegaError, match="choose another"):
        run_on_ray(settings(tmp_path), lambda room: SHARDS, address, lambda record: None)


def test_a_cluster_without_room_is_one_sentence(address: str, tmp_path: Path) -> None:
    with pytest.raises(VegaError, match="has the 2 CPU"):
        run_on_ray(replace(settings(tmp_path), threads=2), lambda room: SHARDS, address, lambda record: None)


@pytest.mark.skipif(shutil.which("ss") is None, reason="no ss, the tool that lists sockets")
def test_nothing_listens_on_the_network(address: str) -> None:
    sockets = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True, timeout=60).stdout
    of_ray = [line.split()[3] for line in sockets.splitlines() if re.search(r'"(raylet|gcs_server)"', line)]
    assert any(where.endswith(address.rpartition(":")[2]) for where in of_ray)
    assert all("127.0.0.1" in where for where in of_ray)


@pytest.mark.parametrize("nobody", ["127.0.0.1:1", "nonsense", "no.such.host.invalid:6379"])
def test_where_no_cluster_answers_one_sentence_says_so(nobody: str) -> None:
    with pytest.raises(VegaError, match="No Ray cluster answers at"):
        connect(nobody)


def test_without_ray_one_sentence_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VegaError, match="pip install"):
        connect("auto")
