"""Policies by name, folder and hub id."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny
from tiny_reasoner import make_plain, write_tiny_reasoner

from policies.checkpoints import (
    check_instructions,
    checkpoint_sha256,
    find_checkpoint,
    load_policy,
    load_scene_model,
    serves_one,
    shipped_policies,
)
from policies.files.weight_files import resolve_folder
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


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ({"type": "smolvla", "input_features": {}, "n_obs_steps": 1}, "smolvla"),
        ({"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "qwen2_5_vl"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"_class_name": "WanTransformer3DModel"}, "WanTransformer3DModel"),
        ({"scene_type": "vega-nano-spatial"}, "vega-nano-spatial"),
    ],
)
def test_a_checkpoint_of_another_library_is_told_from_one_with_a_wrong_setting(
    written: dict, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(VegaError, match=rf"^[^\n]*is of a checkpoint of kind '{kind}': the policies read here are"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("read", [load_policy, load_scene_model, resolve_folder])
def test_a_file_of_weights_in_the_place_of_its_folder(read: Callable[[str], object], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(VegaError, match=rf"is a file: give its folder, '{tmp_path}'\.$"):
        read(str(tmp_path / "model.safetensors"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3090\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "world_simulator/prompt_embedding.safetensors"])
def test_what_git_leaves_in_the_place_of_a_large_file_is_told(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(find_checkpoint("vega-nano"), tmp_path / "nano")
    (folder / name).write_text(POINTER)
    with pytest.raises(VegaError, match=rf"^File '{folder / name}' is a Git LFS pointer .* `git lfs pull` there"):
        load_policy(str(folder))


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


def linked(folder: Path, target: Path) -> Path:
    """A folder whose every entry is a link to that of `target`."""
    folder.mkdir()
    for path in target.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def add_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def test_the_hash_follows_links_and_is_that_of_a_copy(tmp_path: Path) -> None:
    wan = tiny.wan_folder(tmp_path / "wan")
    links, whole = linked(tmp_path / "links", wan), tmp_path / "whole"
    whole.symlink_to(wan)
    before = checkpoint_sha256(str(wan))
    assert checkpoint_sha256(str(links)) == checkpoint_sha256(str(whole)) == before
    for part in ("vae", "transformer"):
        add_byte(next((wan / part).glob("*.safetensors")))
        now = checkpoint_sha256(str(links))
        assert now == checkpoint_sha256(str(whole)) != before
        before = now
    (wan / "vae" / "round").symlink_to(wan)  # it ends
    (wan / "round").symlink_to("round")
    assert checkpoint_sha256(str(links)) and checkpoint_sha256(str(wan)) == before


def nano_with(source: str, folder: Path) -> str:
    """A copy of vega-nano that names its world simulator like this."""
    shutil.copytree(shipped_policies()["vega-nano"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["world_simulator"]["source"] = source
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("way", ["../prior", "world_simulator/../../prior", "ABSOLUTE", "someone/prior"])
def test_the_hash_of_a_small_policy_follows_a_world_simulator_elsewhere(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    prior = tmp_path / "prior"
    shutil.copytree(shipped_policies()["vega-nano"] / "world_simulator", prior)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(prior))
    policy = nano_with(str(prior) if way == "ABSOLUTE" else way, tmp_path / "policy")
    before = checkpoint_sha256(policy)
    add_byte(next((prior / "vae").glob("*.safetensors")))
    assert checkpoint_sha256(policy) != before


@pytest.mark.parametrize("way", ["wan", "../wan", "ABSOLUTE", "Wan-AI/tiny"])
def test_the_hash_of_spatial_reasoning_follows_its_wan(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = write_tiny_reasoner(tmp_path / "checkpoint")
    wan = folder / "wan" if way == "wan" else (folder / "wan").rename(tmp_path / "wan")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(wan))
    prompt = (wan / "wan_prompt_embedding.pt").rename(wan.parent / "prompt.any")
    names = {"path": str(wan) if way == "ABSOLUTE" else way, "vision_tower_prompt_emb_path": str(prompt)}
    path = folder / "config.json"
    changes = {f"generative_{'encoder_' if name == 'path' else ''}{name}": value for name, value in names.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    before = checkpoint_sha256(str(folder))
    for part in (wan / "Wan2.1_VAE.pth", wan / "diffusion_pytorch_model.safetensors", wan / "config.json", prompt):
        content = part.read_bytes()
        part.write_bytes(content + b" ")
        assert checkpoint_sha256(str(folder)) != before, part
        part.write_bytes(content)
    (wan / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"11 GB that nobody reads")
    assert checkpoint_sha256(str(folder)) == before
    make_plain(folder)
    plain = checkpoint_sha256(str(folder))
    if way != "wan":
        add_byte(wan / "Wan2.1_VAE.pth")
        assert checkpoint_sha256(str(folder)) == plain


def test_the_hash_of_a_policy_counts_no_part_of_its_own_folder_twice(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    policy = Path(nano_with("../policy/world_simulator", tmp_path / "policy"))
    for path in sorted(policy.rglob("*")):
        if path.suffix == ".safetensors" or path.name in ("config.json", "world_simulator.json"):
            digest.update(str(path.relative_to(policy)).encode() + path.read_bytes())
    assert checkpoint_sha256(str(policy)) == digest.hexdigest()


def test_the_hash_of_a_wan_follows_what_chooses_between_its_transformers(tmp_path: Path) -> None:
    wan = tiny.wan_folder(tmp_path / "wan")
    shutil.copytree(wan / "transformer", wan / "transformer_2")
    found = set()
    for ratio in (0.875, 0.2):
        (wan / "model_index.json").write_text(json.dumps({"boundary_ratio": ratio}))
        found.add(checkpoint_sha256(str(wan)))
    assert len(found) == 2
    shutil.rmtree(wan / "transformer_2")
    alone = checkpoint_sha256(str(wan))
    (wan / "model_index.json").unlink()
    assert checkpoint_sha256(str(wan)) == alone  # with one there is nothing to choose, and hashes of caches stay


# That of a folder in the usual layout never changes: records hold it, of all but the second the results.json too.
SHIPPED = {
    "vega-nano": "06efe75dc41c093f3bee40abe9315e8ce9dbd5ef36a888a95e65b4a88bccd184",
    "vega-nano-plain": "c6f4d1445424e3bae010d0ad892622c76d351928706e53dd00ce7be307b912d1",
    "vega-nano-prior": "41ae7de65a6fa6c77f3e5bd46269555eb83a820c8a8a5641e2432138dcd4744f",
    "vega-nano-suites": "022da07d0a1d6385d0a3bec16a58b5b628746c9870e25f74a8831f4c5c3eee5d",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_hashes_in_records_stay_as_they_are(name: str) -> None:
    assert checkpoint_sha256(name) == SHIPPED[name]
    recorded = (shipped_policies()[name] / "results.json").read_text()
    assert name == "vega-nano-plain" or SHIPPED[name] in recorded


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


def test_who_refuses_an_instruction_names_the_shipped_policies_that_can_be_told_it() -> None:
    bowl, milk, shirt = "put the bowl on the stove", "pick up the milk and place it in the basket", "take the shirt"
    for name in ("vega-nano", "vega-nano-prior", str(shipped_policies()["vega-nano"])):
        with pytest.raises(VegaError, match=r", or the policy vega-nano-suites, which can be told it\.$"):
            check_instructions(name, [bowl])
        with pytest.raises(VegaError, match=r"\(1 of 2 .*\), or the policy vega-nano-suites, which can be told all"):
            check_instructions(name, [milk, bowl])
        with pytest.raises(VegaError, match="names 'shirt', which this policy does not know") as told:
            check_instructions(name, [shirt, bowl])
        assert "or the policy" not in str(told.value)
        check_instructions(name, [milk])
    check_instructions("vega-nano-suites", [bowl, milk])
