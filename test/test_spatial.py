"""Spatial reasoning computes what the reference computed, answers the same twice, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_reasoner import CHECKPOINT, frame, make_plain, write_tiny_reasoner
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from policies import check_parity
from policies.spatial import scene
from policies.spatial.frames import crop_frame
from policies.spatial.live.reasoner_scene import ReasonerScene
from policies.spatial.reasoner import ASSISTANT, SYSTEM, SpatialReasoner, load_reasoner
from policies.spatial.scores import boxes, vsi
from policies.spatial.watching import WatchingReasoner
from policies.types import VegaError

GOLDEN = Path(__file__).parent / "golden" / "spatial"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_reasoner(tmp_path / "checkpoint")


@pytest.fixture
def reasoner(folder: Path) -> SpatialReasoner:
    return load_reasoner(folder, dtype=torch.float32, pixels=None)


def test_every_golden_quantity_is_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_parity.main([str(GOLDEN)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 100 and all(line.endswith(" ok") for line in lines)


@pytest.mark.parametrize("name", ["generative_merger.mlp.2.bias", "generative_fusion.norm2.weight", "lm_head.weight"])
def test_a_changed_weight_is_noticed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "qwen_vega_tiny")
    path = tmp_path / "qwen_vega_tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] * 1.05
    save_file(tensors, path, metadata={"format": "pt"})
    assert check_parity.main([str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_answer_is_the_same_again_and_after_another_question(reasoner: SpatialReasoner) -> None:
    seen = [reasoner.see(frame(seed)) for seed in (1, 2, 3)]
    first = reasoner.ask(seen, "w5 w6 w7 ?")
    other = reasoner.ask(seen, "w9 ?")
    assert reasoner.ask(seen, "w5 w6 w7 ?") == first != other
    reasoner.forget()
    assert reasoner.ask([reasoner.see(frame(seed)) for seed in (1, 2, 3)], "w5 w6 w7 ?") == first
    assert reasoner.ask(seen[:1], "w5 w6 w7 ?") != first


@pytest.mark.parametrize("call", range(8))  # system, three frames, question, first tokens
def test_what_was_half_read_when_memory_ran_out_is_read_again(
    call: int, reasoner: SpatialReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [reasoner.see(frame(seed)) for seed in (1, 2, 3)]
    expected = reasoner.answer(seen, "w5 w6 w7 ?", 8)
    reasoner.forget()
    layer = reasoner.model.model.language_model.layers[1]  # the one before has read on already
    forward, calls = layer.forward, iter(range(10**6))

    def fail_once(*args: object, **options: object) -> object:
        if next(calls) == call:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **options)

    monkeypatch.setattr(layer, "forward", fail_once)
    with pytest.raises(torch.OutOfMemoryError):
        reasoner.answer(seen, "w5 w6 w7 ?", 8)
    assert reasoner.answer(seen, "w5 w6 w7 ?", 8) == expected


def test_frames_that_were_read_are_not_read_again(reasoner: SpatialReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    hidden = reasoner._hidden
    monkeypatch.setattr(reasoner, "_hidden", lambda *args: (lengths.append(args[0].shape[1]), hidden(*args))[1])
    seen = [reasoner.see(frame(seed)) for seed in (1, 2, 3)]
    places = len(seen[0].tokens) + 2
    reasoner.ask(seen[:2], "w5 ?", max_tokens=1)
    assert lengths.count(places) == 2
    for frames, read in ((seen[:2], 0), (seen, 1), (seen[:1], 0), ([seen[0], seen[2]], 1)):
        lengths.clear()
        reasoner.ask(frames, "w6 ?", max_tokens=1)
        assert lengths.count(places) == read and sum(lengths) < read * places + 10


def test_frames_read_one_after_another_are_read_as_in_one_piece(reasoner: SpatialReasoner) -> None:
    seen = [reasoner.see(frame(1)), reasoner.see(frame(2, 100, 70))]
    answer = reasoner.answer(seen, "w5 w6 ?", max_tokens=4)
    text = [SYSTEM, *("<|vision_start|>" + "<|image_pad|>" * len(one.tokens) + "<|vision_end|>" for one in seen)]
    ids = reasoner.tokenizer.encode("".join(text) + "w5 w6 ?" + ASSISTANT, add_special_tokens=False).ids
    found = reasoner.continue_ids(torch.tensor([ids]), seen, 4)
    assert answer.text == reasoner._decode(found)
    logits, _ = reasoner.logits(torch.tensor([[*ids, *found]]), seen)
    logs = [logits[0, len(ids) - 1 + i].log_softmax(0)[token] for i, token in enumerate(found)]
    assert answer.confidence == pytest.approx(float(torch.stack(logs).mean().exp()), rel=1e-4)


def test_the_score_reads_what_the_model_said_and_people_what_it_means(
    reasoner: SpatialReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference takes " B" for no answer, as nothing stands before its first space."""
    monkeypatch.setattr(reasoner, "_decode", lambda ids: " B\n")
    watching = WatchingReasoner(reasoner)
    watching.watch([frame(1)])
    said = watching.answer("w5 ?", 16)
    assert vsi.score(vsi.Question("route_planning", "?", "B", ("A. one", "B. two")), said) == 0.0
    seen = [reasoner.see(frame(1))]
    assert reasoner.ask(seen, "w5 ?") == ReasonerScene(reasoner, "tiny").answer(seen, "w5 ?").text == "B"


@pytest.mark.parametrize(("padding", "length"), [("max_length", 40), (False, 3)])
def test_padding_and_truncation_stored_with_the_tokenizer_are_not_obeyed(
    padding: str | bool, length: int, reasoner: SpatialReasoner
) -> None:
    seen, question = [reasoner.see(frame(1))], "w5 w6 w7 w8 w9 ?"
    before = reasoner.answer(seen, question)
    path = str(reasoner.folder / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=path, unk_token="w0", pad_token="<|pad|>")
    theirs("w5", padding=padding, truncation=True, max_length=length)
    theirs.save_pretrained(reasoner.folder)
    again = load_reasoner(reasoner.folder, dtype=torch.float32, pixels=None)
    expected = PreTrainedTokenizerFast(tokenizer_file=path)(question + ASSISTANT, add_special_tokens=False).input_ids
    assert again.tokenizer.encode(question + ASSISTANT, add_special_tokens=False).ids == expected
    assert again.answer(seen, question) == before


def test_a_damaged_tokenizer_is_one_sentence(reasoner: SpatialReasoner) -> None:
    (reasoner.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VegaError, match=r"tokenizer\.json.*is no tokenizer"):
        reasoner.ask([reasoner.see(frame(1))], "w5 ?")


def test_registered_framing_reads_the_rows_that_the_official_one_cuts_away(folder: Path) -> None:
    tall = frame(1, 400, 300)
    changed = tall.copy()
    changed[:30] = 255 - changed[:30]
    official, registered = (
        load_reasoner(folder, dtype=torch.float32, framing=framing, pixels=None).branch
        for framing in ("official", "registered")
    )
    assert official is not None and registered is not None

    def tokens(branch: object, picture: np.ndarray) -> torch.Tensor:
        cropped = crop_frame(picture)
        shown = torch.from_numpy(cropped.copy())[None]
        native = branch.native(branch.latents(shown))  # type: ignore[attr-defined]
        return branch.on_patches(native, cropped.shape[:2], (cropped.shape[0] // 14, cropped.shape[1] // 14))  # type: ignore[attr-defined]

    # 504 rows of 672 survive the model's own crop, 26 % of those the official framing's.
    middle = changed.copy()
    middle[:] = tall
    middle[55:70] = 255 - middle[55:70]
    assert torch.equal(tokens(official, tall), tokens(official, middle))
    assert not torch.equal(tokens(registered, tall), tokens(registered, middle))


def test_whose_video_transformer_it_is_is_said(folder: Path) -> None:
    def origin() -> str:
        branch = load_reasoner(folder, dtype=torch.float32, pixels=None).branch
        assert branch is not None
        return branch.origin

    assert "is that of" in origin()
    path = folder / "model.safetensors"
    stored = load_file(path)
    probe = "generative_encoder.tower.model.blocks.0.self_attn.q"
    save_file(stored | {f"{probe}.bias": stored[f"{probe}.bias"] + 1}, path, metadata={"format": "pt"})
    assert "neither that of" in origin()
    generator = torch.Generator().manual_seed(0)
    random = {
        name: torch.randn(tensor.shape, generator=generator).mul(0.02 * name.endswith("weight")).to(tensor.dtype)
        for name, tensor in stored.items()
        if name.startswith(probe)
    }
    save_file(stored | random, path, metadata={"format": "pt"})
    assert "initialised at random" in origin()
    save_file({k: v for k, v in stored.items() if "tower" not in k}, path, metadata={"format": "pt"})
    assert "stores none" in origin()


def test_a_plain_qwen_has_no_branch(folder: Path) -> None:
    make_plain(folder)
    reasoner = load_reasoner(folder, dtype=torch.float32, pixels=None)
    assert reasoner.branch is None and isinstance(reasoner.ask([reasoner.see(frame(1))], "w5 ?"), str)


def test_newer_tensor_names_load_too(folder: Path) -> None:
    before = load_reasoner(folder, dtype=torch.float32, pixels=None).see(frame(1)).tokens
    path = folder / "model.safetensors"

    def renamed(name: str) -> str:
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

    save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    assert torch.equal(load_reasoner(folder, dtype=torch.float32, pixels=None).see(frame(1)).tokens, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"generative_encoder_tower_type": "vggt_online"}, "vggt_online.*choose"),
        ({"generative_colour": 1}, "generative_colour.*unknown"),
        ({"generative_vision_tower_size": "big"}, r"WIDTH\*HEIGHT"),
        ({"generative_vision_tower_timestep": "300"}, "vision_tower_timestep.*give a int"),
        ({"generative_fusion_method": "mix"}, "fusion_method 'mix' is unknown"),
        ({"generative_vision_tower_feat_block_idx": 9}, "Block 9 is not among the 6"),
        ({"generative_encoder_path": "nowhere"}, "nowhere"),
        ({"generative_merger_hidden_dim": 81}, "incomplete or of another shape"),
        ({"model_type": "llama"}, "Qwen2.5-VL checkpoint"),
    ],
)
def test_bad_checkpoints_are_one_sentence(change: dict[str, object], sentence: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(VegaError, match=sentence) as caught:
        load_reasoner(folder, dtype=torch.float32)
    assert "\n" not in str(caught.value)


def respell(folder: Path, rotary: dict[str, object]) -> None:
    """The checkpoint with `rotary` in the place of what its config says of rotary positions."""
    config = json.loads((folder / "config.json").read_text())
    plain = {name: value for name, value in config.items() if not name.startswith("rope_")}
    (folder / "config.json").write_text(json.dumps(plain | rotary))


@pytest.mark.parametrize(
    "values", [{"rope_type": "default", "rope_theta": 500.0}, {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}]
)
def test_rotary_positions_are_read_under_both_of_their_names(values: dict[str, object], folder: Path) -> None:
    ids = torch.arange(5, 35)[None]
    before = load_reasoner(folder, dtype=torch.float32, pixels=None).logits(ids, [])[0]
    section = {"mrope_section": [2, 3, 3]}
    found = []
    for rotary in (
        {"rope_scaling": values | section, "rope_theta": values["rope_theta"]},
        {"rope_parameters": values | section},
        {"text_config": {"rope_parameters": values | section}},
    ):
        config = json.loads((folder / "config.json").read_text())
        if "text_config" in rotary:  # as transformers 5 writes it
            text = Qwen2_5_VLConfig(**{k: v for k, v in config.items() if "generative" not in k}).text_config
            rotary = {"text_config": text.to_dict() | rotary["text_config"]}
        respell(folder, rotary)
        found.append(load_reasoner(folder, dtype=torch.float32, pixels=None).logits(ids, [])[0])
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.allclose(ours, theirs(input_ids=ids).logits, atol=1e-5) for ours in found)
    assert not torch.allclose(found[0], before, atol=1e-3)


@pytest.mark.parametrize(
    ("rotary", "sentence"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 4]}}, "mrope_section"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": "233"}, "rope_theta": 1e6}, "mrope_section"),
        ({"rope_theta": 1e6}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "new", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}, "cannot be loaded"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}, "cannot be load"),
        ({"rope_parameters": 3}, "cannot be loaded"),
    ],
)
def test_rotary_positions_that_cannot_be_are_one_sentence(
    rotary: dict[str, object], sentence: str, folder: Path
) -> None:
    respell(folder, rotary)
    with pytest.raises(VegaError, match=sentence) as caught:
        load_reasoner(folder, dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_a_missing_or_surplus_tensor_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, path, metadata={"format": "pt"})
    with pytest.raises(VegaError, match=r"lacks tensor 'lm_head\.weight'"):
        load_reasoner(folder, dtype=torch.float32)
    save_file(tensors | {"extra.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(VegaError, match=r"extra\.weight"):
        load_reasoner(folder, dtype=torch.float32)


def test_bad_questions_and_frames_are_one_sentence(reasoner: SpatialReasoner) -> None:
    seen = [reasoner.see(frame(1))]
    for frames, question, sentence in (
        (seen, " ", "question is empty"),
        (seen, "w5 " * 5000, "characters"),
        ([], "w5 ?", "no frame"),
    ):
        with pytest.raises(VegaError, match=sentence):
            reasoner.ask(frames, question)
    with pytest.raises(VegaError, match="too flat"):
        reasoner.see(frame(1, 4, 800))
    with pytest.raises(VegaError, match="uint8 RGB"):
        reasoner.see(np.zeros((8, 8, 4), dtype=np.uint8))


def test_holes_in_depth_enter_no_mean() -> None:
    depth = torch.full((1, 54, 54), 1000)
    depth[0, ::2] = 0
    intrinsics = torch.tensor([[50.0, 0, 27, 0], [0, 50, 27, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    pose = torch.eye(4)[None]
    masked = scene.patch_means(scene.world_coordinates(depth, intrinsics, pose))
    assert torch.allclose(masked[..., 2], torch.ones(1, 2, 2))
    as_reference = scene.patch_means(scene.world_coordinates(depth, intrinsics, pose, mask_holes=False))
    assert (as_reference[..., 2] < 0.6).all()
    nothing = scene.patch_means(scene.world_coordinates(depth * 0, intrinsics, pose))
    assert nothing.isnan().all() and not scene.position_embedding(nothing.reshape(1, -1, 3), 12).any()


@given(st.floats(0.01, 1e3), st.floats(0.0, 2e3))
def test_relative_accuracy_is_a_share_of_ten_and_falls_with_the_error(truth: float, answer: float) -> None:
    value = vsi.mean_relative_accuracy(answer, truth)
    assert round(10 * value) == pytest.approx(10 * value) and 0 <= value <= 1
    farther = truth + 1.5 * (answer - truth)
    assert vsi.mean_relative_accuracy(farther, truth) <= value


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "reference", "corrected"),
    [
        ("object_abs_distance", "2.5", "About 2.5 meters.", 0.0, 1.0),
        ("object_counting", "0", "0", 1.0, 1.0),
        ("object_counting", "0", "1", 0.0, 0.0),
        ("object_rel_distance", "C", "(C)", 0.0, 1.0),
        ("object_rel_distance", "C", "A chair, so C", 0.0, 0.0),
        ("object_rel_distance", "B", "b.", 1.0, 1.0),
        ("route_planning", "B", "", 0.0, 0.0),
        ("object_abs_distance", "0.5", ".5", 1.0, 1.0),
        ("object_abs_distance", "0.5", "About .5 meters", 0.0, 1.0),
        ("object_abs_distance", "0.5", "5e-1", 1.0, 1.0),
        ("object_abs_distance", "2", "2. meters", 1.0, 1.0),
        ("object_abs_distance", "1200", "1,200", 0.0, 1.0),
        ("object_counting", "4", "4 e.g. these", 1.0, 1.0),
        ("object_rel_distance", "B", "b. right", 1.0, 1.0),
        ("object_rel_distance", "B", "b) A thing", 0.0, 1.0),
        ("object_rel_distance", "B", "b right", 1.0, 1.0),
        ("object_rel_distance", "B", "Answer: b", 0.0, 1.0),
        ("object_rel_distance", "A", "The answer is a.", 0.0, 1.0),
        ("object_rel_distance", "A", "It is a chair", 0.0, 0.0),
        ("object_rel_distance", "D", "That I'd", 0.0, 0.0),
        ("object_rel_distance", "B", " B", 0.0, 1.0),
    ],
)
def test_scores_as_the_reference_and_corrected(
    kind: str, truth: str, answer: str, reference: float, corrected: float
) -> None:
    options = () if kind in vsi.NUMBERS else ("A. one", "B. two", "C. three", "D. four")
    question = vsi.Question(kind, "?", truth, options)
    assert (vsi.score(question, answer), vsi.corrected_score(question, answer)) == (reference, corrected)


@example("0.5", ".5")
@example("B", ". right")
@given(st.sampled_from(["0.5", "12", "A", "B"]), st.text("0123456789.eE+-,ABab :)(\n", max_size=8))
def test_the_corrected_score_is_never_below_the_reference(truth: str, answer: str) -> None:
    kind, options = ("object_rel_distance", ("A. a", "B. b")) if truth in "AB" else ("object_abs_distance", ())
    question = vsi.Question(kind, "?", truth, options)
    for said in (answer, truth, truth.lower() + answer):
        assert vsi.corrected_score(question, said) >= vsi.score(question, said)


@given(st.lists(st.tuples(*[st.floats(-2, 2)] * 3, *[st.floats(0.1, 2)] * 3), min_size=1, max_size=4))
def test_boxes_match_themselves_in_any_order(found: list[tuple[float, ...]]) -> None:
    assert boxes.f1(found, found[::-1], 0.5) == 1.0
    assert all(boxes.overlap(box, box) == pytest.approx(1.0, abs=1e-4) for box in found)
