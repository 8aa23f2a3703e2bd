"""What a training starts from: a new policy, one that goes on, or one with another source of generative tokens.

An arm of an experiment is what enters the fusion (`fusion.sources`), and everything else is equal: without any
generative stream the trunk is widened until the policy has as many parameters as with the world simulator's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from policies.fusion.sources import TokenSource, open_source
from policies.nano.config import VegaConfig, WorldViewConfig
from policies.nano.policy import VegaPolicy
from policies.training.dataset import CAMERAS, CANVAS, Demonstrations
from policies.training.nano.language_teacher import LanguageTeacher
from policies.training.wordings import vocabulary
from policies.types import VegaError

SOURCE = "world_simulator"  # folder of a checkpoint
NO_TOKENS = "none"
NOTHING = -5.0  # logit of a share of 0.7 %
KINDS = (NO_TOKENS, "wan", "vae", "noise", "imagenet")


def chosen_source(args: argparse.Namespace) -> TokenSource | None:
    """What --world-simulator and --tokens name; None where nothing new is fused in.  Raises VegaError."""
    if args.world_simulator is None:
        if args.tokens not in ("wan", "imagenet"):
            raise VegaError(f"--tokens {args.tokens} is about a world simulator: give its folder as --world-simulator.")
        return open_source("imagenet", SOURCE) if args.tokens == "imagenet" else None
    if args.tokens == NO_TOKENS and args.init is not None:
        raise VegaError("A policy that exists keeps its width: leave --init or --tokens none out.")
    return open_source("wan" if args.tokens == NO_TOKENS else args.tokens, args.world_simulator)


def build_policy(
    args: argparse.Namespace, demos: Demonstrations, known: VegaPolicy | None, source: TokenSource | None,
    rows: NDArray[np.int64], before: VegaConfig | None = None, warm: VegaPolicy | None = None,
) -> VegaPolicy:  # fmt: skip
    """A new policy; all weights that it shares with `known` are taken from there.

    Without a `source`, that of `known` stays, and its fusion with it.  rows: which are learned.  before: of the policy
    that a training goes on with.  warm: whose weights one without `known` takes where they fit.
    """
    world = None
    if source is not None:
        window = source.frames_needed > 1
        world = WorldViewConfig(
            SOURCE, CANVAS, args.fusion, encoder=args.tokens if args.tokens != NO_TOKENS else "wan",
            # A window is looked at as a whole, as its cached tokens are made, and of frames as far apart as rows.
            stride=max(demos.steps_per_row) if window else 1, stream="off" if window else "joint",
        )  # fmt: skip
    if known is not None and source is None:
        kept = None if known.world is None else known.world.source
        policy = VegaPolicy(dataclasses.replace(known.config, name=args.name), kept)
        policy.load_state_dict(known.state_dict())
        return policy
    if known is not None:
        policy = VegaPolicy(dataclasses.replace(known.config, name=args.name, world_simulator=world), source)
        shared = {key: value for key, value in known.state_dict().items() if not key.startswith("world.")}
        policy.load_state_dict(shared | {k: v for k, v in policy.state_dict().items() if k.startswith("world.")})
        return policy
    config = new_config(args, demos, world, normalisation(args, demos, rows, before))
    if args.tokens == NO_TOKENS:
        config, source = as_large_without(config, source), None
    policy = VegaPolicy(config, source)
    if warm is not None:
        take_what_fits(policy, warm)
    if policy.progress is not None and np.isnan(demos.data["progress"]).all():
        believe_nothing(policy.progress)
    return policy


def normalisation(
    args: argparse.Namespace, demos: Demonstrations, rows: NDArray[np.int64], before: VegaConfig | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of proprioception: over the rows that are learned, or over all with --normalise all.

    A training from before the first was done goes on as it began.
    """

    def over(proprio: NDArray[np.generic]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean, std = proprio.mean(axis=0), proprio.std(axis=0)
        return tuple(round(float(v), 6) for v in mean), tuple(round(float(max(v, 0.01)), 6) for v in std)

    whole = over(demos.data["proprio"])
    as_before = before is not None and (before.proprio_mean, before.proprio_std) == whole
    return whole if args.normalise == "all" or as_before else over(demos.data["proprio"][rows])


def new_config(
    args: argparse.Namespace, demos: Demonstrations, world: WorldViewConfig | None,
    proprio: tuple[tuple[float, ...], tuple[float, ...]],
) -> VegaConfig:  # fmt: skip
    """Of a policy that begins with these demonstrations.  proprio: its mean and deviation."""
    # Of what is held out too, on purpose: a policy that could not be told it could not be judged by it.
    words, things = vocabulary([*demos.wordings.of, *further_sentences(args.sentences)])
    return VegaConfig(
        name=args.name,
        cameras=CAMERAS,
        words=words,
        things=things,
        proprio_mean=proprio[0],
        proprio_std=proprio[1],
        text_encoder=args.text_encoder,
        remembers=args.remember,
        encoder_blocks=args.encoder_blocks,
        world_simulator=world,
    )


def check_sentences(policy: VegaPolicy, demos: Demonstrations) -> None:
    """Raise VegaError where the policy cannot be told what the demonstrations were, before it learns from others."""
    for sentence in demos.wordings.of:
        if not policy.config.things:
            raise VegaError(
                f"No sentence of --data names a thing as 'pick up the milk' does, the first is '{sentence}': put "
                "English ones into meta/tasks.parquet."
            )
        policy.vocabulary.encode(sentence)


def believe_nothing(progress: nn.Linear) -> None:
    """Where no dataset tells of progress none is learned, and all rows say that nothing was believed before."""
    nn.init.zeros_(progress.weight)
    nn.init.constant_(progress.bias, NOTHING)


def as_large_without(config: VegaConfig, source: TokenSource | None) -> VegaConfig:
    """Without a world simulator, and with the trunk's width at which the parameters are nearest to those with it."""
    assert source is not None, "what has the parameters to be like"
    wanted, width = parameters(config, source), config.trunk_width

    def without(width: int) -> VegaConfig:
        return dataclasses.replace(config, world_simulator=None, trunk_width=width)

    while parameters(without(width), None) < wanted:
        width += 1
    return min((without(width - 1), without(width)), key=lambda found: abs(parameters(found, None) - wanted))


def parameters(config: VegaConfig, source: TokenSource | None) -> int:
    """How many a policy has that is composed like that, its frozen source aside."""
    with torch.device("meta"):
        return sum(p.numel() for p in VegaPolicy(config, source).parameters())


def further_sentences(path: Path | None) -> list[str]:
    """Lines of a text file.  Raises VegaError where it cannot be read."""
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise VegaError(f"The sentences in {path} cannot be read ({error}): give a text file, one a line.") from error


def take_what_fits(policy: VegaPolicy, known: VegaPolicy) -> None:
    """Weights of the same name and shape, but for words, which mean something else there."""
    own = policy.state_dict()
    shared = {
        key: value
        for key, value in known.state_dict().items()
        if key in own and own[key].shape == value.shape and not key.startswith("text.embedding")
    }
    policy.load_state_dict(own | shared)


def learn_language(policy: VegaPolicy, demos: Demonstrations, fresh: bool) -> None:
    """Let a teacher say what every wording means, and where single words lie, for words that nobody demonstrates."""
    teacher = LanguageTeacher()
    demos.meanings = teacher(demos.wordings.texts)
    embedding = policy.text.embedding
    if fresh:
        with torch.no_grad():
            embedding.weight[1:] = torch.from_numpy(teacher.words(policy.vocabulary.known, policy.config.text_dim))
    # Fixed, so that a word without a demonstration stays where its relatives are.
    embedding.weight.requires_grad_(False)
