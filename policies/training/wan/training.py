"""Both stages of a small world simulator's training, resumable, and a UNet's in the place of the second."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from policies.checkpoints import checkpoint_sha256
from policies.training.dataset import CANVAS
from policies.training.optimisation import (
    begin,
    check_finite,
    decisive,
    fingerprint_of,
    going_on,
    save_state,
    set_learning_rate,
)
from policies.training.wan.clips import CLIP_FRAMES, Clips, picture
from policies.training.wan.networks import (
    LATENT_CHANNELS,
    TEXT_DIM,
    Generator,
    small_transformer,
    small_vae,
    vae_loss,
)
from policies.training.wan.quality import measure
from policies.types import VegaError
from policies.world_simulator.simulator import WorldSimulatorConfig, save_world_simulator
from policies.world_simulator.unet import save_unet, small_unet
from policies.world_simulator.vae import WanEncoder, load_encoder

FOLDER = "world_simulator"  # below the output
VAE_STATE, TRANSFORMER_STATE = "vae", "transformer"  # files' stems
VAE = "--vae-steps (the VAE itself)"  # among what decides a transformer: its weights are about that one's latents
LATENTS = "latents"  # in its state: by what they are normalised, as the VAE's config has it
# Convolutions know no place: squares teach the VAE as much as whole pictures, and more of them fit into a step.
VAE_SIDE, SINGLE = 64, 0.75  # px; share of steps


def optimise(
    name: str, module: nn.Module, loss: Callable[[np.random.Generator], Tensor], args: argparse.Namespace, steps: int,
    data: Mapping[str, str], bf16: bool = True, kept: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Adam with a warm-up and a cosine; goes on from <output>/<name>.pt, which it writes every --save-every steps.

    data: option -> fingerprint of what is learned from.  kept: what else its state holds.
    """
    path, decides = args.output / f"{name}.pt", decisive(args, "seed", "batch", "lr") | dict(data)
    optimizer = torch.optim.AdamW(module.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if path.exists():
        with going_on(path, "module", "optimizer", decides=decides) as state:
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            first = int(state["step"])
    start, mean = time.monotonic(), 0.0
    for step in range(first, steps):
        set_learning_rate(optimizer, step, steps, args.lr, warm_up=100, floor=0.03)
        torch.manual_seed(args.seed + step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            value = loss(np.random.default_rng([args.seed, step]))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        check_finite(step + 1, float(value.detach()), float(norm))
        optimizer.step()
        mean = float(value.detach()) if step == first else 0.98 * mean + 0.02 * float(value.detach())
        done = step + 1
        if done % 50 == 0:
            left = (time.monotonic() - start) / (done - first) * (steps - done)
            print(f"{name} {done}/{steps} loss {mean:.4f}, {left / 60:.1f} min left", flush=True)
        if done % args.save_every == 0 or done == steps:
            parts = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            save_state(path, {**parts, **kept}, decides)


@torch.no_grad()
def latent_statistics(encode: Callable[[Tensor], Tensor], clips: Clips) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (C,) each, of what `encode` makes of clips (B, 3, T, H, W)."""
    rng = np.random.default_rng(0)
    parts = [encode(clips.batch(8, CLIP_FRAMES, rng)) for _ in range(8)]
    latents = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)
    return latents.mean(dim=1), latents.std(dim=1)


def note_latents(vae: AutoencoderKLWan, clips: Clips) -> None:
    """Put the statistics of its latents into the VAE's config, by which they are normalised from then on."""
    mean, std = latent_statistics(lambda video: vae.encode(video).latent_dist.mode(), clips)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def train(args: argparse.Namespace) -> None:
    begin(args.seed, args.threads, args.output)
    if args.unet_beside is None:
        latents = latents_of_before(args)
        train_wan(Clips(args.data), args, latents)
    else:
        encoder = load_encoder(args.unet_beside / "vae", torch.device("cpu"), torch.float32)  # before reading videos
        train_unet(encoder, Clips(args.data), args)


def latents_of_before(args: argparse.Namespace) -> dict[str, list[float]] | None:
    """By what a transformer that goes on had its latents normalised; None for a new one, and where it does not say.

    They are not found anew: another machine's sums end in other bits.  Raises VegaError, before the VAE learns on and
    replaces what is there, where it would be another than the transformer's.
    """
    path, vae = (args.output / f"{name}.pt" for name in (TRANSFORMER_STATE, VAE_STATE))
    if not path.exists():
        return None
    now = f"one of {args.vae_steps} steps"
    if vae.exists():
        with going_on(vae, "module") as state:
            if state["step"] >= args.vae_steps:
                now = fingerprint_of(state["module"])
    with going_on(path, decides={VAE: now}) as state:
        return state.get(LATENTS)


def train_wan(clips: Clips, args: argparse.Namespace, latents: Mapping[str, list[float]] | None) -> None:
    """Both stages of a world simulator.  latents: as `latents_of_before` gives them."""
    vae, transformer = small_vae(), small_transformer()
    generator, blocks = Generator(transformer), len(transformer.blocks)
    if not 0 <= args.tap < blocks:
        raise VegaError(f"--tap {args.tap} is no block of the transformer: give one from 0 to {blocks - 1}.")
    held_out = Clips(args.held_out) if args.held_out else None  # before hours of training
    print(f"{len(clips)} videos, VAE {_millions(vae)}, transformer {_millions(generator)}", flush=True)
    train_vae(vae, clips, args)
    if latents is None:
        note_latents(vae, clips)
    else:
        vae.register_to_config(**latents)
    shown = clips.batch(2, CLIP_FRAMES, np.random.default_rng(1), "agentview")
    with torch.no_grad():
        picture(args.output / "reconstructions.png", shown, vae.decode(vae.encode(shown).latent_dist.mode()).sample)
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))

    def encode(video: Tensor) -> Tensor:
        latents: Tensor = vae.encode(video).latent_dist.mode().float()
        return (latents - mean) / std

    def decode(latents: Tensor) -> Tensor:
        video: Tensor = vae.decode(latents * std + mean).sample
        return video

    data = {"--data": clips.fingerprint, VAE: fingerprint_of(vae.state_dict())}
    kept = {LATENTS: {name: list(vae.config[name]) for name in ("latents_mean", "latents_std")}}
    train_generator(TRANSFORMER_STATE, generator, encode, clips, args, data, kept=kept)
    rows, columns = CANVAS["agentview"]
    shape = (4, LATENT_CHANNELS, 2, rows // 8, columns // 8)
    with torch.no_grad():
        picture(args.output / "samples.png", decode(generator.sample(shape, torch.Generator().manual_seed(0))))
    if held_out is not None:
        for camera, ratios in measure(generator, encode, decode, held_out, args.output).items():
            print(f"held out, {camera}: " + ", ".join(f"{way} {db:.1f} dB" for way, db in ratios.items()), flush=True)
    config = WorldSimulatorConfig(tap=args.tap, canvas=(rows, columns), grid=(rows // 8, columns // 8))
    save_world_simulator(args.output / FOLDER, vae, generator.network, generator.prompt, config)
    print(f"{args.output / FOLDER}, reconstructions.png and samples.png beside it", flush=True)


def train_unet(encoder: WanEncoder, clips: Clips, args: argparse.Namespace) -> None:
    """The second stage with a UNet, on the latents of a world simulator that is there already."""
    generator = Generator(small_unet(encoder.channels, TEXT_DIM))
    print(f"{len(clips)} videos, UNet {_millions(generator)}", flush=True)
    # torch 2.13's bfloat16 gradients of what a UNet does between two frames are garbage (findings/torch_bf16_*).
    data = {"--data": clips.fingerprint, "--unet-beside": checkpoint_sha256(str(args.unet_beside))[:12]}
    train_generator("unet", generator, encoder.window, clips, args, data, bf16=False)
    shutil.copytree(args.unet_beside, args.output / FOLDER, dirs_exist_ok=True)
    save_unet(args.output / FOLDER, generator.network, generator.prompt)
    print(f"{args.output / FOLDER}, with the UNet", flush=True)


def train_generator(
    name: str, generator: Generator, encode: Callable[[Tensor], Tensor], clips: Clips, args: argparse.Namespace,
    data: Mapping[str, str], bf16: bool = True, kept: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """The second stage.  encode: videos (B, 3, T, H, W) in [-1, 1] -> normalised latents.  Else as `optimise`."""

    def loss(rng: np.random.Generator) -> Tensor:
        frames = 1 if rng.random() < 0.5 else CLIP_FRAMES
        with torch.no_grad():
            latents = encode(clips.batch(args.batch * 4, frames, rng))
        return generator.loss(latents)

    optimise(name, generator, loss, args, args.transformer_steps, data, bf16, kept)
    generator.eval().requires_grad_(False)


def train_vae(vae: AutoencoderKLWan, clips: Clips, args: argparse.Namespace) -> None:
    """The first stage."""

    def reconstruct(rng: np.random.Generator) -> Tensor:
        # Most of the steps on single frames, which is what `per_frame` gives it.
        single = rng.random() < SINGLE
        count, frames = (6 * args.batch, 1) if single else (2 * args.batch, CLIP_FRAMES)
        return vae_loss(vae, clips.batch(count, frames, rng, side=VAE_SIDE))

    optimise(VAE_STATE, vae, reconstruct, args, args.vae_steps, {"--data": clips.fingerprint})
    vae.eval().requires_grad_(False)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
