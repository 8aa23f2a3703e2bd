"""Policies by name, folder and hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny

from policies.checkpoints import checkpoint_sha256, load_policy, load_scene_model, shipped_policies
from policies.types import VegaError


def test_a_hub_id_is_downloaded_and_is_the_same_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        return str(shipped_policies()["vega-nano"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_policy("someone/nano").spec == load_policy("vega-nano").spec
    assert checkpoint_sha256("someone/nano") == checkpoint_sha256("vega-nano") != ""
    assert asked == ["someone/nano"] * 2


def test_a_hub_id_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(name: str, **options: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(VegaError, match="give a local folder"):
        load_policy("someone/nano")


@pytest.mark.parametrize("threads", [0, 99999])
def test_threads_that_cannot_be_are_one_sentence(threads: int) -> None:
    with pytest.raises(VegaError, match=f"threads {threads} is out of range: give a whole number from 1 to 256"):
        load_policy("vega-nano", threads=threads)
    with pytest.raises(VegaError, match=f"threads {threads} is out of range"):
        load_scene_model("vega-nano-spatial", threads=threads)


def test_the_hash_follows_every_file_that_decides(tmp_path: Path) -> None:
    names = ("config.json", "dataset_statistics.json", "model.safetensors", "head--1_checkpoint.pt", "README.md")
    for name in names:
        (tmp_path / name).write_text("a")
    before = checkpoint_sha256(str(tmp_path))
    changed = {}
    for name in names:
        (tmp_path / name).write_text("b")
        changed[name] = checkpoint_sha256(str(tmp_path)) != before
        (tmp_path / name).write_text("a")
    assert changed == {name: name != "README.md" for name in names}


def test_the_hash_of_a_composed_policy_follows_its_parts(tmp_path: Path) -> None:
    openvla, wan = tiny.openvla_folder(tmp_path / "openvla"), tiny.wan_folder(tmp_path)
    policy = str(tiny.composed(tmp_path / "policy", openvla, wan))
    before = checkpoint_sha256(policy)
    for path in (
        next(openvla.glob("*.safetensors")),
        openvla / "dataset_statistics.json",
        next((wan / "vae").glob("*.safetensors")),
        wan / "transformer" / "config.json",
        wan / "prompt_embedding.safetensors",
    ):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert checkpoint_sha256(policy) != before, path
        path.write_bytes(content)
    assert checkpoint_sha256(policy) == before
