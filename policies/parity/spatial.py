"""What the reference computed for spatial reasoning and 3D scenes, against `policies.spatial`.

A folder of golden vectors may hold any of: a tiny checkpoint (`qwen_vega_tiny/`), `fusion_variants.npz`,
`preprocess.npz`, `scene3d.npz`, `vsi_scores.json`, `scene3d_metrics.json`.  Errors of networks are relative to the
largest golden value; the golden fusions have 4 heads and 2 blocks where they attend.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from policies.files.json_config import read_json
from policies.parity.golden import Line, read_arrays, some
from policies.spatial import frames, scene
from policies.spatial.fusing import GenerativeMerger, build_branch_fusion, fusion_state
from policies.spatial.grounding import GroundingHead, grounding_loss
from policies.spatial.reasoner import FrameTokens, SpatialReasoner, load_reasoner
from policies.spatial.scores import answers, boxes, vsi
from policies.types import VegaError

MODULE, TOKENS, LOGITS, SCORE, EXACT = 1e-5, 1e-4, 1e-4, 1e-6, 0.0
LEVEL, NORMALISED_LEVEL = 0.0042, 0.015
CHECKPOINT = "qwen_vega_tiny"
SAMPLE = 53


def relative(ours: torch.Tensor | NDArray, golden: NDArray) -> float:
    """Largest difference over the largest golden value; infinite where shapes differ or a number is not finite."""
    array = ours.detach().float().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours, dtype=np.float64)
    if array.shape != golden.shape or not np.isfinite(array).all():
        return float("inf")
    return float(np.abs(array - golden).max() / max(np.abs(golden).max(), 1e-12))


def absolute(ours: torch.Tensor | NDArray, golden: NDArray) -> float:
    """Largest difference; infinite where shapes differ."""
    array = ours.numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    return float(np.abs(array.astype(np.float64) - golden).max()) if array.shape == golden.shape else float("inf")


def _largest(errors: Sequence[float]) -> float:
    """NaN where one of them is, which Python's own `max` may pass over."""
    return float(np.max(errors))


def is_golden(folder: Path) -> bool:
    """Whether a folder holds vectors of spatial reasoning."""
    return any((folder / name).exists() for name in (CHECKPOINT, *FILES))


def check(folder: Path) -> Iterator[Line]:
    """(quantity, error, tolerance) of everything in the folder."""
    for name, rows in FILES.items():
        if (folder / name).is_file():
            yield from some(rows(folder / name), folder / name)
    if (folder / CHECKPOINT).is_dir():
        yield from some(check_checkpoint(folder / CHECKPOINT), folder / CHECKPOINT)


def _cases(golden: Any, *names: str) -> Any:
    """What lies under these names, a list or object that holds something; VegaError where it is empty."""
    for name in names:
        golden = golden[name]
    if not golden:
        raise VegaError(f"The golden scores have nothing under '{'.'.join(names)}': copy the golden folder again.")
    return golden


def _tensor(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype in (np.uint16, np.float16) else array)


@torch.no_grad()
def check_fusions(path: Path) -> Iterator[Line]:
    """Every fusion and both mergers."""
    arrays = read_arrays(path)
    for name in sorted({key.partition("/")[0] for key in arrays}):
        prefix = f"{name}/weights/"
        state = {key.removeprefix(prefix): _tensor(v) for key, v in arrays.items() if key.startswith(prefix)}
        if name.startswith("merger_"):
            hidden, width = state["mlp.2.weight"].shape[1], state["mlp.2.weight"].shape[0]
            merger = GenerativeMerger(name.removeprefix("merger_"), arrays[f"{name}/x"].shape[-1], hidden, width)
            merger.load_state_dict(state)
            yield f"fusion/{name}", relative(merger(_tensor(arrays[f"{name}/x"])), arrays[f"{name}/out"]), MODULE
            continue
        sem, gen = (_tensor(arrays[f"{name}/{stream}"]) for stream in ("f_sem", "f_gen"))
        grid = (sem.shape[1], sem.shape[2])
        layers = len({key.split(".")[1] for key in state if key.startswith("cross_attn_blocks.")}) or 1
        fusion = build_branch_fusion(name, sem.shape[-1], grid=grid, heads=4, layers=layers).eval()
        fusion.load_state_dict(fusion_state(fusion, state))
        fused, _ = fusion(sem.flatten(1, 2), gen.flatten(1, 2))
        yield f"fusion/{name}", relative(fused.unflatten(1, grid), arrays[f"{name}/out"]), MODULE


def check_preprocessing(path: Path) -> Iterator[Line]:
    """Frames of four shapes, drawn by formula."""
    arrays = read_arrays(path)
    for name in sorted({key.partition("_")[0] for key in arrays}):
        width, height = (int(side) for side in arrays[f"{name}_size_wh"])
        x, y, c = np.arange(width)[None, :, None], np.arange(height)[:, None, None], np.arange(3)[None, None, :]
        value = (int(arrays[f"{name}_k"]) * x + 5 * y + 53 * c + x * y // 211) % 512
        picture = frames.crop_frame(np.where(value < 256, value, 511 - value).astype(np.uint8))
        shown = (picture.transpose(2, 0, 1).astype(np.float32) / 255).flatten()[::211]
        yield f"frames/{name}/picture", absolute(shown, arrays[f"{name}_stack_frame_sample"]), LEVEL
        for use, pixels in (("eval", frames.EVALUATION_PIXELS), ("train", frames.TRAINING_PIXELS)):
            patches = frames.to_patches(picture, pixels)
            grid = np.asarray([1, *patches.grid])
            yield f"frames/{name}/{use}_grid", absolute(grid, arrays[f"{name}_{use}_grid_thw"].reshape(-1)), EXACT
            sample = patches.values.flatten()[::211]
            golden = arrays[f"{name}_{use}_pixel_values_sample"]
            yield f"frames/{name}/{use}_pixel_values", absolute(sample, golden), NORMALISED_LEVEL


@torch.no_grad()
def check_scene(path: Path) -> Iterator[Line]:
    """World coordinates, voxels, position embedding, pooling and the grounding head."""
    arrays = read_arrays(path)
    depth, intrinsics, poses = (_tensor(arrays[n]) for n in ("depth_mm", "depth_intrinsics", "poses_cam_to_world"))
    world = scene.world_coordinates(depth, intrinsics, poses, mask_holes=False)
    yield "scene/world_coordinates", relative(world, arrays["world_coords"]), MODULE
    full = _tensor(arrays["coords_lowres_repeat8"]).repeat_interleave(8, 1).repeat_interleave(8, 2)
    means = scene.patch_means(full)
    yield "scene/patch_means", relative(means, arrays["coords_avg"]), MODULE
    yield "scene/voxels", absolute(scene.voxels(means), arrays["coords_voxel"]), EXACT
    rounded = scene.voxels(scene.patch_means(full.bfloat16().float()), bf16=True)
    yield "scene/voxels_bf16", absolute(rounded, arrays["coords_voxel_bf16"]), EXACT
    indices = _tensor(arrays["coords_voxel"]).reshape(1, -1, 3)
    for name in sorted(key for key in arrays if key.startswith("sin3d_")):
        golden = arrays[name]
        ours = scene.position_embedding(indices[:, : golden.shape[1]], golden.shape[2])
        yield f"scene/{name}", relative(ours, golden), MODULE
    pooled = arrays["pool_out"]
    sides = [round(arrays[name].shape[1] ** 0.5) for name in ("pool_in", "pool_out")]
    yield "scene/pool", relative(scene.pool_tokens(_tensor(arrays["pool_in"]), *sides), pooled), MODULE
    head = GroundingHead(arrays["ground_zero_target"].shape[0])
    state = {"none": _tensor(arrays["ground_zero_target"])}
    for theirs, ours_name in (("ground_head_obj.", "objects."), ("ground_head_query.", "query.")):
        state |= {
            ours_name + key.removeprefix(theirs): _tensor(v) for key, v in arrays.items() if key.startswith(theirs)
        }
    head.load_state_dict(state)
    query = _tensor(arrays["ground_hidden"])[0, int(arrays["ground_position"])]
    scores = head(_tensor(arrays["ground_objects"]), query)
    yield "scene/ground_scores", relative(scores, arrays["ground_scores"]), MODULE
    for name, targets in (("single", [2]), ("multi", [1, 4]), ("zero", [])):
        loss = grounding_loss(scores, targets)
        yield f"scene/ground_loss_{name}", relative(loss, arrays[f"ground_loss_{name}"]), MODULE


def check_vsi(path: Path) -> Iterator[Line]:
    """VSI-Bench: prompts, scores of every answer, and the means."""
    golden = read_json(path)
    scored, prompts, off = [], 0, []
    for row in _cases(golden, "questions"):
        question = vsi.question_of(row)
        value = vsi.score(question, row["prediction"])
        scored.append((question.kind, value))
        prompts += question.prompt != row["prompt"] or vsi.parse(row["prediction"]) != row["parsed"]
        off.append(abs(value - row["score"]))
    yield "vsi/prompts_and_answers_read_otherwise", float(prompts), EXACT
    yield "vsi/score_of_an_answer", _largest(off), 1e-9
    means = vsi.aggregate(scored)
    for task, value in _cases(golden, "expected", "per_task").items():
        yield f"vsi/{task}", abs(means.get(task, float("inf")) - value), 1e-9


def check_metrics(path: Path) -> Iterator[Line]:
    """Boxes, short answers and captions."""
    golden = read_json(path)
    items = _cases(golden, "scanrefer", "items")
    yield "scanrefer/iou", _largest([abs(boxes.overlap(i["pred"], i["gt"]) - i["iou"]) for i in items]), SCORE
    pairs = [(i["pred"], i["gt"]) for i in items]
    for level in ("25", "50"):
        off = abs(boxes.accuracy(pairs, int(level) / 100) - golden["scanrefer"][f"acc{level}"])
        yield f"scanrefer/acc{level}", off, SCORE
    items = _cases(golden, "multi3drefer", "items")
    chosen = [[i["objects"][k] for k in boxes.choose(i["scores"])] for i in items]
    missed = sum(len(c) != i["n_selected"] for c, i in zip(chosen, items, strict=True))
    yield "multi3drefer/boxes_chosen_otherwise", float(missed), EXACT
    for level in ("25", "50"):
        ours = [boxes.f1(c, i["gt"], int(level) / 100) for c, i in zip(chosen, items, strict=True)]
        yield f"multi3drefer/f1_{level}", abs(100 * float(np.mean(ours)) - golden["multi3drefer"][f"f1_{level}"]), SCORE
    items = _cases(golden, "sqa3d", "items")
    cleaned = sum(answers.clean(i[k]) != i[f"clean_{k}"] for i in items for k in ("pred", "gt"))
    yield "sqa3d/answers_cleaned_otherwise", float(cleaned), EXACT
    em = 100 * float(np.mean([answers.sqa3d_match(i["pred"], i["gt"]) for i in items]))
    yield "sqa3d/em", abs(em - golden["sqa3d"]["em"]), SCORE
    by_key = _cases(golden, "scanqa", "items")
    em = float(np.mean([answers.scanqa_match(i["pred"], i["answers"]) for i in by_key.values()]))
    yield "scanqa/em", abs(em - golden["scanqa"]["em"]), SCORE
    yield from _captions("scanqa", golden["scanqa"], answers.scanqa_text, lambda text: text, "answers")
    yield from _captions("scan2cap", golden["scan2cap"], answers.scan2cap_text, answers.scan2cap_text, "refs")


def _captions(
    name: str,
    golden: Mapping[str, Any],
    predicted: Callable[[str], str],
    reference: Callable[[str], str],
    references: str,
) -> Iterator[Line]:
    items = _cases(golden, "items")
    scores = answers.caption_scores(
        {key: predicted(item["pred"]) for key, item in items.items()},
        {key: [reference(text) for text in item[references]] for key, item in items.items()},
    )
    for metric, values in scores.items():
        yield f"{name}/{metric}", float(np.abs(np.subtract(values, golden[metric])).max()), SCORE


@torch.no_grad()
def check_checkpoint(folder: Path) -> Iterator[Line]:
    """Every stage of spatial reasoning, for each fusion that the golden checkpoint comes with."""
    cases = read_arrays(folder / "cases.npz")
    names = sorted({key.removesuffix("_input_ids") for key in cases if key.endswith("_input_ids")})
    if not names:  # before anything is loaded
        raise VegaError(f"'{folder / 'cases.npz'}' holds no case: copy the golden folder again.")
    methods = {"token_gated_residual": folder} | {
        path.parent.name: path.parent for path in sorted(folder.glob("*/config.json")) if path.parent.name != "wan"
    }
    for number, (method, source) in enumerate(methods.items()):
        with tempfile.TemporaryDirectory(prefix="vega3d-") as room:
            reasoner = load_reasoner(
                _composed(folder, source, Path(room)), dtype=torch.float32, framing="official", pixels=None
            )
            for name in names:
                case = {k.removeprefix(f"{name}_"): v for k, v in cases.items() if k.startswith(f"{name}_")}
                if "pixel_values_videos" in case:
                    yield f"{method}/{name}/logits", relative(_video(reasoner, case), case[f"{method}_logits"]), LOGITS
                else:
                    yield from _case(reasoner, f"{method}/{name}", case, method, towers=number == 0)


def _composed(folder: Path, source: Path, room: Path) -> Path:
    """The checkpoint with the config of `source`, which names its files relative to `folder`."""
    if source == folder:
        return folder
    for path in folder.iterdir():
        if path.name != "config.json" and path != source:
            (room / path.name).symlink_to(path.resolve())
    shutil.copyfile(source / "config.json", room / "config.json")
    return room


def _pictures(case: Mapping[str, NDArray]) -> list[NDArray[np.uint8]]:
    stacked = case.get("frames_uint8")
    found = list(stacked) if stacked is not None else [case[k] for k in sorted(case) if k.startswith("frames")]
    return [np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in found]


def _case(
    reasoner: SpatialReasoner, label: str, case: Mapping[str, NDArray], method: str, towers: bool
) -> Iterator[Line]:
    """towers: with the rows that do not depend on the fusion."""
    branch = reasoner.branch
    assert branch is not None
    pictures = _pictures(case)
    patches = [frames.to_patches(picture) for picture in pictures]
    semantic = reasoner.semantic(patches)
    noise = _tensor(case["noise"])
    seen, canvas, latents, native, spread, merged, gates = [], [], [], [], [], [], []
    for i, (picture, patch, f_sem) in enumerate(zip(pictures, patches, semantic, strict=True)):
        frame = torch.from_numpy(picture)[None]
        canvas.append(branch.simulator.to_canvas(frame[:, None])[:, :, 0])
        latents.append(branch.latents(frame))
        native.append(branch.native(latents[-1], noise[i : i + 1]))
        spread.append(branch.on_patches(native[-1], (picture.shape[0], picture.shape[1]), patch.grid))
        merged.append(branch.merge(spread[-1]))
        fused, gate = branch.fuse(f_sem[None], merged[-1])
        gates.append(torch.ones(0) if gate is None else gate.flatten())
        seen.append(FrameTokens(fused[0], patch.grid))
    if towers:
        grid = np.asarray([[1, *p.grid] for p in patches])
        yield f"{label}/image_grid_thw", absolute(grid, case["image_grid_thw"]), EXACT
        values = torch.cat([p.values for p in patches]).flatten()[::SAMPLE]
        yield f"{label}/pixel_values", absolute(values, case["pixel_values_sample"]), NORMALISED_LEVEL
        yield f"{label}/f_sem", relative(torch.cat(semantic), case["f_sem"]), MODULE
        sampled = torch.cat(canvas).flatten()[::SAMPLE]
        yield f"{label}/wan_frames", absolute(sampled, case["wan_frames_sample"]), MODULE
        if "latents" in case:
            yield f"{label}/latents", relative(torch.cat(latents), case["latents"]), MODULE
        if "f_gen_native" in case:
            yield f"{label}/f_gen", relative(torch.cat(native).permute(0, 3, 1, 2), case["f_gen_native"]), TOKENS
        if "f_gen_interp" in case:
            yield f"{label}/f_gen_on_patches", relative(torch.cat(spread), case["f_gen_interp"]), TOKENS
        if "block2_f_gen_native" in case:
            early = branch.simulator.trunk(
                (1 - branch.simulator.sigma) * latents[0] + branch.simulator.sigma * noise[:1], [2]
            )[0]
            ours = early.unflatten(1, native[0].shape[1:3]).permute(0, 3, 1, 2)
            yield f"{label}/f_gen_of_block_2", relative(ours, case["block2_f_gen_native"]), TOKENS
        tokens = torch.cat([m.flatten(0, 1) for m in merged])
        yield f"{label}/f_gen_merged", relative(tokens, case["f_gen_merged"].reshape(tokens.shape)), MODULE
    gate_golden, ours_gate = case[f"{method}_gate"].reshape(-1), torch.cat(gates)
    yield f"{label}/gate", relative(ours_gate, gate_golden), MODULE
    yield f"{label}/fused", relative(torch.cat([s.tokens for s in seen]), case[f"{method}_fused"]), MODULE
    yield from _language(reasoner, label, case, method, seen)


def _language(
    reasoner: SpatialReasoner, label: str, case: Mapping[str, NDArray], method: str, seen: Sequence[FrameTokens]
) -> Iterator[Line]:
    ids = torch.from_numpy(case["input_ids"].astype(np.int64))
    positions = reasoner.positions(ids, seen).numpy()
    yield f"{label}/position_ids", absolute(positions, case["position_ids"]), EXACT
    if f"{method}_logits" in case:
        yield f"{label}/logits", relative(reasoner.logits(ids, seen)[0], case[f"{method}_logits"]), LOGITS
    golden = case.get(f"{method}_generated", np.zeros((1, 0)))
    if golden.size:
        ours = reasoner.continue_ids(ids, seen, golden.shape[1])
        yield f"{label}/generated", absolute(np.asarray([ours]), golden), EXACT


def _video(reasoner: SpatialReasoner, case: Mapping[str, NDArray]) -> torch.Tensor:
    """Logits for a native video, which the reference does not fuse: plain Qwen2.5-VL."""
    model = reasoner.model
    ids = torch.from_numpy(case["input_ids"].astype(np.int64))
    return model(
        input_ids=ids,
        pixel_values_videos=_tensor(case["pixel_values_videos"]),
        video_grid_thw=torch.from_numpy(case["video_grid_thw"].astype(np.int64)),
        second_per_grid_ts=torch.from_numpy(case["second_per_grid_ts"]),
        mm_token_type_ids=(ids == model.config.video_token_id).int() * 2,
    ).logits


FILES: dict[str, Callable[[Path], Iterator[Line]]] = {
    "fusion_variants.npz": check_fusions,
    "preprocess.npz": check_preprocessing,
    "scene3d.npz": check_scene,
    "vsi_scores.json": check_vsi,
    "scene3d_metrics.json": check_metrics,
}
