"""Policies by name, folder and hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny

from policies.checkpoints import checkpoint_sha256, load_policy, load_scene_model, serves_one, shipped_policies
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


def test_the_hash_names_what_cannot_be_read_and_passes_folders_by(tmp_path: Path) -> None:
    before = checkpoint_sha256(str(tmp_path))
    (tmp_path / "model.safetensors").mkdir()
    assert checkpoint_sha256(str(tmp_path)) == before
    (tmp_path / "config.json").symlink_to("nowhere")
    with pytest.raises(VegaError, match=r"'.*config\.json' cannot be read"):
        checkpoint_sha256(str(tmp_path))


def test_a_configuration_too_deep_to_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not serves_one(str(tmp_path))
    with pytest.raises(VegaError, match=r"config\.json' is not readable JSON"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("", "There is no policy ''"),
        (":", "cannot be imported"),
        (":Class", "cannot be imported"),
        ("os:path", "cannot be made"),
        ("sys:exit", "cannot be made"),
        ("x" * 5000, "There is no policy"),
        (f"someone/{'x' * 5000}", "There is no policy"),
        ("~nobody_of_that_name/x/y", "There is no policy"),
    ],
)
def test_a_name_that_can_be_no_policy_is_one_sentence(name: str, named: str) -> None:
    with pytest.raises(VegaError, match=named):
        load_policy(name)
