"""The golden vectors of the reference implementations, and that the comparison can fail."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from policies.check_parity import main
from policies.measuring.mutations import mutations, undetected
from policies.types import VegaError

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    "folder, quantities",
    [
        (
            "wan_tiny",
            (
                *("noisy", "features_block2", "features_block4", "velocity", "sigma", "timestep"),
                *("canvas", "latents", "features", "pooled", "token_gate", "channel_gate_raw", "weighted", "concat"),
            ),
        ),
        (
            "openvla_oft_tiny",
            (
                *("vision_sample", "projected_sample", "action_hidden", "normalized_actions", "actions"),
                *(
                    "bias_of_action_6_lost_in_file",
                    "gripper_decisions",
                    "state",
                    "normalized_proprio",
                    "pixel_stats",
                    "actions_per_range",
                ),
                "ids",
                *("policy_image_off_by_2", "policy_wrist_image_off_by_2", "env_actions_per_range", "gripper_signs"),
            ),
        ),
    ],
)
def test_golden_vectors_agree(folder, quantities, capsys):
    assert main([str(GOLDEN / folder)]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert all(line.endswith(" ok") for line in lines)
    names = {line.split(" ")[0].split("/")[1] for line in lines}
    assert set(quantities) <= names


@pytest.mark.parametrize(
    "folder, file, key, change",
    [
        ("wan_tiny", "cases.npz", "case1_features_block4", 2e-3),
        ("wan_tiny", "cases.npz", "case2_velocity", 2e-3),
        ("wan_tiny", "world_cases.npz", "cropped_canvas", 1e-3),
        ("wan_tiny", "world_cases.npz", "window_latents", 2e-3),
        ("wan_tiny", "world_cases.npz", "square_pooled", 2e-3),
        ("openvla_oft_tiny", "cases.npz", "case0_vision_sample", 2e-3),
        ("openvla_oft_tiny", "cases.npz", "case1_actions", 2e-3),
        ("openvla_oft_tiny", "cases.npz", "case0_normalized_actions", 2e-3),
        ("openvla_oft_tiny", "libero_observation.npz", "case1_policy_wrist_image", 2),
        ("openvla_oft_tiny", "libero_observation.npz", "case0_state", 1e-4),
        ("openvla_oft_tiny", "libero_observation.npz", "case0_env_actions", 0.1),
    ],
)
def test_a_changed_number_fails(folder, file, key, change, tmp_path, capsys):
    copy = shutil.copytree(GOLDEN / folder, tmp_path / folder)
    with np.load(copy / file) as arrays:
        changed = dict(arrays)
    array = changed[key]
    if array.dtype == np.uint8:
        array += np.uint8(change)
    else:
        array.flat[0] += change
    np.savez(copy / file, **changed)
    assert main([str(copy)]) == 1
    case, quantity = key.split("_", 1)
    failed = [line for line in capsys.readouterr().out.split("\n") if line.endswith(" FAIL")]
    assert len(failed) == 1 and failed[0].startswith(f"{case}/{quantity}")


@pytest.mark.parametrize("everywhere, failures", [(False, {"case0/normalized_actions"}), (True, {"head/bias"})])
def test_the_gripper_may_be_off_by_one_small_constant_only(everywhere, failures, tmp_path, capsys):
    """0.01 in one step fails like any action; the same in all steps of all cases is more than a bf16 file can lose."""
    copy = shutil.copytree(GOLDEN / "openvla_oft_tiny", tmp_path / "golden")
    (copy / "libero_observation.npz").unlink()
    with np.load(copy / "cases.npz") as arrays:
        changed = dict(arrays)
    if everywhere:
        for key in [key for key in changed if key.endswith("actions")]:
            changed[key][:, 6] -= 0.01
    else:
        changed["case0_normalized_actions"][3, 6] += 0.01
    np.savez(copy / "cases.npz", **changed)
    assert main([str(copy)]) == 1
    failed = {
        line.split("_of_")[0].split(" ")[0] for line in capsys.readouterr().out.split("\n") if line.endswith(" FAIL")
    }
    assert failed == failures


def test_a_folder_that_is_not_there_is_told_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "policies.parity.check", None)  # whoever imports it fails
    assert main([str(tmp_path / "nothere")]) == 2
    assert "nothere' is no golden folder, as there is no folder of that name" in capsys.readouterr().err


def test_bad_folders_are_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no golden folder" in capsys.readouterr().err
    copy = shutil.copytree(GOLDEN / "wan_tiny", tmp_path / "wan")
    (copy / "cases.npz").write_bytes(b"nothing")
    assert main([str(copy)]) == 2
    assert "cases.npz" in capsys.readouterr().err
    with np.load(GOLDEN / "wan_tiny" / "cases.npz") as arrays:
        np.savez(copy / "cases.npz", **{key: arrays[key] for key in arrays.files if not key.endswith("noise")})
    assert main([str(copy)]) == 2
    assert "noise" in capsys.readouterr().err
    (copy / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    assert main([str(copy)]) == 2
    assert "num_layers" in capsys.readouterr().err


def _empty(path, **arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "file, write, sentence",
    [
        ("preprocess.npz", _empty, "preprocess.npz' holds no case"),
        ("fusion_variants.npz", _empty, "fusion_variants.npz' holds no case"),
        ("scene3d.npz", _empty, "lack 'depth_mm'"),
        ("qwen_vega_tiny", lambda path: path.mkdir() or np.savez(path / "cases.npz"), "cases.npz' holds no case"),
        ("qwen_vega_tiny", lambda path: path.write_text("a file"), "holds no case"),
        ("preprocess.npz", lambda path: path.write_bytes(b"PK\x03\x04aaaa"), "preprocess.npz' is no readable .npz"),
        ("preprocess.npz", lambda path: path.write_bytes(b""), "preprocess.npz' is no readable .npz"),
        ("scene3d.npz", lambda path: np.save(path.open("wb"), np.zeros(3)), "scene3d.npz' is no readable .npz"),
        ("vsi_scores.json", lambda path: path.write_text("[]"), "vsi_scores.json' holds no JSON object"),
        ("scene3d_metrics.json", lambda path: path.write_text("{"), "scene3d_metrics.json' is not readable JSON"),
        ("vsi_scores.json", lambda path: path.write_text('{"questions": []}'), "nothing under 'questions'"),
        ("vsi_scores.json", lambda path: path.write_text('{"questions": 3}'), "do not fit"),
        ("scene3d_metrics.json", lambda path: path.write_text('{"scanrefer": {"items": []}}'), "'scanrefer.items'"),
    ],
)
def test_a_file_without_a_case_or_damaged_is_one_sentence(file, write, sentence, tmp_path, capsys):
    write(tmp_path / file)
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.strip().count("\n") == 0


def test_fusions_and_prompts_without_a_case_are_no_agreement(tmp_path, capsys):
    copy = shutil.copytree(GOLDEN / "wan_tiny", tmp_path / "wan", ignore=shutil.ignore_patterns("world_cases.npz"))
    np.savez(copy / "fusions.npz")
    assert main([str(copy)]) == 2 and "fusions.npz' holds no case" in capsys.readouterr().err
    (copy / "fusions.npz").write_bytes((GOLDEN / "wan_tiny" / "fusions.npz").read_bytes()[:-100])
    assert main([str(copy)]) == 2 and "fusions.npz' is no readable .npz" in capsys.readouterr().err
    aside = shutil.ignore_patterns("cases.npz", "libero_observation.npz")
    copy = shutil.copytree(GOLDEN / "openvla_oft_tiny", tmp_path / "openvla", ignore=aside)
    (copy / "prompts.json").write_text("{}")
    assert main([str(copy)]) == 2 and "prompts.json' holds no case" in capsys.readouterr().err


def test_inputs_that_do_not_fit_are_named(tmp_path, capsys):
    copy = shutil.copytree(GOLDEN / "wan_tiny", tmp_path / "wan")
    with np.load(copy / "cases.npz") as arrays:
        changed = {key: value[:, :3] if key.endswith("noise") else value for key, value in arrays.items()}
    np.savez(copy / "cases.npz", **changed)
    assert main([str(copy)]) == 2
    assert "do not fit their model" in capsys.readouterr().err


@pytest.mark.parametrize("folder, limit", [("wan_tiny", 12), ("openvla_oft_tiny", 6)])
def test_one_wrong_tensor_shows(folder, limit, tmp_path, capsys):
    """`python -m policies.benchmark --rows mutations` tries every tensor."""
    assert undetected(GOLDEN / folder, tmp_path, limit) == (limit, [])
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
def test_latents_that_are_scaled_otherwise_show(name, tmp_path, capsys):
    """The numbers of two channels exchanged: they lie in the configuration, not among the weights."""
    aside = shutil.ignore_patterns("*_case.npz", "fusions.npz")
    folder = shutil.copytree(GOLDEN / "wan_tiny", tmp_path / "wan", ignore=aside)
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    numbers = config[name]
    path.write_text(json.dumps(config | {name: [numbers[1], numbers[0], *numbers[2:]]}))
    assert main([str(folder)]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert any(quantity.endswith("/latents") for quantity in failed)


def test_mutations_are_of_three_kinds():
    """Every kind, and none under which the network stays the same."""
    found = mutations(GOLDEN / "wan_tiny")
    assert {mutation.kind for mutation in found} == {"scaled", "transposed", "swapped"}
    swapped = {frozenset((mutation.tensor, mutation.partner)) for mutation in found if mutation.partner}
    norms = [frozenset(f"blocks.0.{attention}.norm_{x}.weight" for x in "qk") for attention in ("attn1", "attn2")]
    assert norms[0] in swapped and norms[1] not in swapped


def test_what_nobody_compares_goes_unnoticed(tmp_path, capsys):
    """The count of what was missed can be another than nought: here nothing looks at the VAE."""
    folder = shutil.copytree(GOLDEN / "wan_tiny", tmp_path / "wan")
    (folder / "world_cases.npz").unlink()
    tried, missed = undetected(folder, tmp_path / "room", limit=9)
    assert tried == 9 and missed and all(mutation.file.startswith("vae/") for mutation in missed)
    assert f"not noticed: {missed[0].tensor} of {missed[0].file}" in capsys.readouterr().out
    (folder / "prompt_case.npz").write_bytes(b"")
    with pytest.raises(VegaError, match="no readable"):
        undetected(folder, tmp_path / "other")


def test_a_wrong_token_id_shows(tmp_path, capsys):
    folder = shutil.copytree(
        GOLDEN / "openvla_oft_tiny", tmp_path / "golden", ignore=shutil.ignore_patterns("*.npz", "*.py")
    )
    assert main([str(folder)]) == 0
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["prepend_scheme"] = "never"  # without the space in front, as other tokenizers begin
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    capsys.readouterr()
    assert main([str(folder)]) == 1
    assert "prompt0/ids" in capsys.readouterr().out
