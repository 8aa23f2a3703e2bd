"""Finding and loading policies, and models that answer questions about scenes, by name, folder or class."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.files.classes import call_class
from policies.files.command_line import possible
from policies.files.json_config import read_json
from policies.files.paths import exists, files_below, is_folder, leads_out, refuse_file
from policies.nano.vocabulary import Vocabulary
from policies.spatial.models import nano_folder, shipped_scene_models
from policies.spatial.nano.config import is_spatial_nano
from policies.types import AS_CONFIGURED, Policy, PolicySpec, SceneModel, SpeedOptions, VegaError
from policies.world_simulator.experts import INDEX_FILE, LOW

HERE = Path(__file__).parent
HASHED_NAMES = (
    "Wan2.1_VAE.pth",
    "adapter_config.json",
    "config.json",
    "dataset_statistics.json",
    INDEX_FILE,
    "preprocessor_config.json",
    "tokenizer.json",
    "world_simulator.json",
)
HASHED_SUFFIXES = (".safetensors", ".pt", ".bin")
_ADDRESS = re.compile(r"\w+://|[\w.-]+:\d+$")


def shipped_policies() -> dict[str, Path]:
    """Name -> folder of the policies in this package: `vega_nano/` is `vega-nano`."""
    folders = [config.parent for config in sorted(HERE.glob("*/config.json"))]
    scenes = shipped_scene_models().values()
    return {folder.name.replace("_", "-"): folder for folder in folders if folder not in scenes}


def find_checkpoint(name_or_path: str) -> Path:
    """Folder of a shipped policy, of a path, or of a hub id `owner/name`, downloaded once.

    Raises VegaError that lists what exists.
    """
    name_or_path, _ = split_name(name_or_path)
    shipped = shipped_policies()
    if name_or_path in shipped:
        return shipped[name_or_path]
    if is_folder(name_or_path):
        return Path(name_or_path).expanduser()
    refuse_file(name_or_path)
    if _is_class(name_or_path):
        _refuse_server(name_or_path, "policy")
        raise VegaError(
            f"The policy '{name_or_path}' is a class and has no folder of weights: give one of {', '.join(shipped)}, "
            "a checkpoint folder, or a hub id owner/name."
        )
    if _on_hub(name_or_path):
        from policies.files.weight_files import CHECKPOINT_FILES, resolve_folder

        return resolve_folder(name_or_path, CHECKPOINT_FILES)
    raise VegaError(
        f"There is no policy '{name_or_path}': give one of {', '.join(shipped) or '(none shipped)'}, "
        "a checkpoint folder, a hub id owner/name, or module:Class."
    )


def find_small(name_or_path: str) -> Path:
    """`find_checkpoint` of a policy as train_nano makes them; VegaError for one of another kind, too."""
    check_exists(name_or_path)
    folder = find_checkpoint(name_or_path)
    if is_openvla(folder):
        raise VegaError(f"The policy '{name_or_path}' has the full size: give one trained by train_nano.")
    if is_spatial_nano(folder):
        raise VegaError(f"'{name_or_path}' answers questions and is no policy: give one trained by train_nano.")
    return folder


def _on_hub(name: str) -> bool:
    """Whether it can only be a hub id, `owner/name`."""
    if "/" not in name or is_folder(name):
        return False
    from policies.files.weight_files import is_hub_id

    return is_hub_id(name)


def split_name(name: str) -> tuple[str, str | None]:
    """`NAME#SUITE` -> the policy and the suite (or data set) whose statistics it is to use; None without one."""
    if "#" not in name or exists(name):
        return name, None
    policy, _, suite = name.rpartition("#")
    return policy, suite


def for_suite(name: str, suite: str) -> str:
    """The policy's name with `#suite` behind it, where its actions depend on the suite that is evaluated."""
    policy, chosen = split_name(name)
    if chosen is not None or not suite.startswith("libero") or _is_class(name):
        return name
    return f"{policy}#{suite}" if is_openvla(find_checkpoint(policy)) else name


def load_policy(
    name_or_path: str,
    device: str = "cpu",
    threads: int = 1,
    world_simulator: str = "on",
    suite: str | None = None,
    speed: SpeedOptions = AS_CONFIGURED,
) -> Policy:
    """A policy ready to act.

    name_or_path: shipped name, checkpoint folder (of this package or as OpenVLA-OFT's authors publish them), hub id
    `owner/name`, or `module:Class` (called with no arguments).  threads: of torch; 1 makes actions independent of the
    number of cores.  world_simulator: what stands in for its tokens, one of WORLD_CONTROLS; where the policy has none,
    only "on".  suite: what is evaluated, for checkpoints with the statistics of several data sets; the same as `#suite`
    behind the name.  speed: in place of what its configuration says.  Raises VegaError.
    """
    policy = _load(name_or_path, device, threads, suite, speed)
    if world_simulator != "on":
        _control(policy, name_or_path, world_simulator)
    return policy


def _control(policy: Policy, name: str, world_simulator: str) -> None:
    """Let something stand in for the world simulator's tokens."""
    world = getattr(policy, "world", None)
    if world is None:
        raise VegaError(f"The policy '{name}' has no world simulator: leave world_simulator at on.")
    world.control = world_simulator


def _load(name_or_path: str, device: str, threads: int, suite: str | None, speed: SpeedOptions) -> Policy:
    name_or_path, named = split_name(name_or_path)
    suite = suite if named is None else named
    if named is not None:
        _check_chosen(name_or_path, named)
    if _is_class(name_or_path):
        if speed != AS_CONFIGURED:
            raise VegaError(f"The class '{name_or_path}' has no options for speed: leave them as configured.")
        return _from_class(name_or_path)
    import torch

    folder = find_checkpoint(name_or_path)
    torch.set_num_threads(possible(threads))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Every tensor here is written before it is read; filling them first is a tenth of a small policy's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    check_device(device)
    if is_openvla(folder):
        from policies.openvla.policy import load_vega_openvla  # transformers is imported for those who need it

        # A hub id is what the policy is called, not the folder it was downloaded to.
        name = Path(name_or_path).name if _on_hub(name_or_path) else None
        return load_vega_openvla(folder, device, name, suite, speed)
    from policies.nano.policy import load_vega_policy

    return load_vega_policy(folder, device, speed)


def check_exists(name_or_path: str) -> None:
    """Raise VegaError where there is no such policy; a hub id and a class are looked for by whoever loads them."""
    name, chosen = split_name(name_or_path)
    _refuse_server(name, "policy")
    if not _is_class(name) and not _on_hub(name):
        find_checkpoint(name)
    if chosen is not None and not _on_hub(name):
        _check_chosen(name, chosen)


def _check_chosen(name: str, suite: str) -> None:
    """Raise VegaError where `#suite` stands behind a policy that has no statistics to choose from."""
    if _is_class(name) or not is_openvla(find_checkpoint(name)):
        raise VegaError(f"Policy '{name}' has no statistics to choose from: leave '#{suite}' out.")


def check_instructions(name_or_path: str, instructions: Sequence[str]) -> None:
    """Raise VegaError if a checkpoint of this machine cannot be told one of these; nothing is loaded.

    For whoever is going to build a scene or to start processes first.  Policies that live elsewhere, and those that
    understand any sentence, are not asked.
    """
    if refused := _refused(name_or_path, instructions):
        several = len(instructions) > 1
        others = f" ({len(refused)} of {len(instructions)} instructions are refused)" if several else ""
        able = [name for name in shipped_policies() if not _refused(name, instructions)]
        if able:
            others += f", or the policy {' or '.join(able)}, which can be told {'all of them' if several else 'it'}"
        raise VegaError(f"{str(refused[0]).rstrip('.')}{others}.")


def _refused(name_or_path: str, instructions: Sequence[str]) -> list[VegaError]:
    """Why a checkpoint of this machine cannot be told some of these."""
    config, refused = _config_here(name_or_path), list[VegaError]()
    try:
        vocabulary = Vocabulary(config["words"], config["things"])
    except (ValueError, KeyError, TypeError):
        return []  # of another kind; loading it says what is wrong with it
    for instruction in instructions:
        try:
            vocabulary.encode(instruction)
        except VegaError as error:
            refused.append(error)
    return refused


def serves_one(name_or_path: str) -> bool:
    """Whether a checkpoint of this machine remembers an episode, so that it cannot decide for several in turns."""
    return _config_here(name_or_path).get("remembers") is True


def _config_here(name_or_path: str) -> dict[str, Any]:
    """The configuration of a checkpoint of this machine as it is written; empty where there is none to be read."""
    name, _ = split_name(name_or_path)
    if name not in shipped_policies() and not is_folder(name):
        return {}
    return _as_written(find_checkpoint(name))


def _as_written(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except VegaError:
        return {}  # loading it says what is wrong with it


def is_openvla(folder: Path) -> bool:
    """Whether the policy in `folder` has the full size: OpenVLA-OFT as published, or composed with it."""
    config = read_json(folder / "config.json")
    return "openvla" in (config.get("model_type"), config.get("policy_type"))


def statistics_key(name_or_path: str) -> str | None:
    """The data set whose statistics a policy's actions are in, None where there is no choice; VegaError without one."""
    name, suite = split_name(name_or_path)
    if _is_class(name):
        return None
    folder = find_checkpoint(name)
    if not is_openvla(folder):
        return None
    from policies.openvla.config import chosen_statistics, read_policy_config

    return chosen_statistics(folder, read_policy_config(folder), suite).key


def check_device(device: str) -> None:
    """Raise VegaError unless torch can use `device`."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()  # "meta" takes numbers and gives none back
    except (RuntimeError, AssertionError) as error:
        raise VegaError(
            f"The device '{device}' cannot be used ({str(error).splitlines()[0]}): "
            "set device to cpu or to a GPU of this machine."
        ) from error


def checkpoint_sha256(name_or_path: str) -> str:
    """Hash of all that decides what a checkpoint does: configs, statistics, tokenizer, weights; "" without a folder.

    Parts that a policy names count too, wherever they lie, and links as what they lead to.  Raises VegaError for a part
    that is missing or cannot be read.
    """
    name_or_path, _ = split_name(name_or_path)
    if _is_class(name_or_path):
        return ""
    folder = find_checkpoint(name_or_path)
    digest = hashlib.sha256()
    for part in (folder, *_parts_elsewhere(folder)):
        named = part.is_file()
        for path in [part] if named else files_below(part):
            if not (named or _decides(path)):
                continue
            if path.name == INDEX_FILE and not (path.parent / LOW).is_dir():
                continue  # it chooses between two transformers, where there are two
            digest.update(str(path.relative_to(part)).encode())
            try:
                with path.open("rb") as file:
                    while piece := file.read(2**24):
                        digest.update(piece)
            except OSError as error:
                raise VegaError(
                    f"File '{path}' cannot be read ({error.strerror}): copy or download it again."
                ) from error
    return digest.hexdigest()


def _decides(path: Path) -> bool:
    """Whether a file of this name decides what a checkpoint does."""
    return path.name in HASHED_NAMES or path.suffix in HASHED_SUFFIXES


def _parts_elsewhere(folder: Path) -> list[Path]:
    """Folders and files that a policy names instead of holding them."""
    config = _as_written(folder)
    if config.get("policy_type") == "openvla":
        from policies.openvla.config import part_files

        return part_files(folder)
    if config.get("use_generative_encoder"):
        from policies.spatial.branch import part_files as files_of_branch

        own = {path.resolve() for path in files_below(folder) if _decides(path)}
        return [path for path in files_of_branch(folder) if path.resolve() not in own]
    world = config.get("world_simulator")
    source = world.get("source") if isinstance(world, dict) and world.get("encoder") != "imagenet" else None
    if not isinstance(source, str):
        return []
    local = folder / source
    if is_folder(str(local)):
        outside = leads_out(source) and not local.resolve().is_relative_to(folder.resolve())
        return [local] if outside else []
    if "/" not in source:
        return []  # loading it says what is wrong with it
    from policies.files.weight_files import resolve_folder
    from policies.world_simulator.simulator import HUB_PATTERNS

    return [resolve_folder(source, HUB_PATTERNS)]


def load_scene_model(
    name_or_path: str, device: str = "cpu", threads: int = 1, framing: str = "auto", max_tokens: int = 16
) -> SceneModel:
    """A model that answers questions about frames.

    name_or_path: a shipped model, a folder or a hub id `owner/name` of one trained here, of a spatial-reasoning
    checkpoint or a plain Qwen2.5-VL, or `module:Class` (called with no arguments).  framing: of a published
    checkpoint's world simulator, "official" (what "auto" is for them) or "registered".  max_tokens: of an answer.
    Raises VegaError.
    """
    if _is_class(name_or_path):
        model = _call_class(name_or_path, "scene model")
        if not isinstance(model, SceneModel):
            raise VegaError(
                f"The class '{name_or_path}' is no scene model: it needs name, grounds, timings_ms, see, answer, "
                "ground and forget."
            )
        return model
    check_scene_model(name_or_path)
    import torch

    torch.set_num_threads(possible(threads))
    torch.use_deterministic_algorithms(True, warn_only=True)
    check_device(device)
    folder = nano_folder(name_or_path)
    if folder is not None:
        from policies.spatial.nano.model import load_scene

        if framing == "official":
            raise VegaError("vega-nano-spatial sees its frames registered: leave framing at auto.")
        return load_scene(folder, device)
    from policies.spatial.live.reasoner_scene import ReasonerScene
    from policies.spatial.reasoner import load_reasoner  # transformers is imported for those who need it

    reasoner = load_reasoner(name_or_path, device, framing="official" if framing == "auto" else framing)
    return ReasonerScene(reasoner, Path(name_or_path).name, max_tokens)


def check_scene_model(name_or_path: str) -> None:
    """Raise VegaError where there is no such model; a hub id and a class are looked for by whoever loads them."""
    if _is_class(name_or_path) or is_folder(name_or_path) or _on_hub(name_or_path):
        return
    shipped = shipped_scene_models()
    if name_or_path not in shipped:
        refuse_file(name_or_path)
        raise VegaError(
            f"There is no scene model '{name_or_path}': give one of {', '.join(shipped) or '(none shipped)'}, the "
            "folder of a spatial-reasoning checkpoint or of a Qwen2.5-VL, a hub id owner/name, or module:Class."
        )


def _is_class(name: str) -> bool:
    return ":" in name and not exists(name)


def _from_class(name: str) -> Policy:
    policy = _call_class(name, "policy")
    if not isinstance(policy, Policy) or not isinstance(policy.spec, PolicySpec):
        raise VegaError(f"The class '{name}' is no policy: it needs spec (a PolicySpec), act(observation) and reset().")
    return policy


def _refuse_server(name: str, what: str) -> None:
    """Raise VegaError for an address where a name should stand."""
    if _ADDRESS.match(name) and not exists(name):
        raise VegaError(
            f"There is no {what} '{name}' on this machine: a policy server is asked by evaluations alone, as "
            "--policy ws://HOST:PORT."
        )


def _call_class(name: str, what: str) -> Any:
    _refuse_server(name, what)
    return call_class(name, what)
