"""Train a small Wan world simulator on videos from the simulator: `python -m policies.training.train_world_simulator`.

Two stages with diffusers' own classes in small sizes, both resumable: a causal video VAE (L1 reconstruction and a
little KL), then a diffusion transformer on its latents by flow matching (velocity = noise - data), with one learned
stand-in for the empty prompt.  Writes reconstructions.png and samples.png to look at, and a folder that
`LatentWorldSimulator.from_pretrained` loads.  Clips are consecutive frames of LeRobot v3 datasets.

With `--unet-beside FOLDER` the first stage is that world simulator's, and a UNet learns the second in the transformer's
place: `python -m policies.correspondence --wan OUTPUT/world_simulator` scores both.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.files.command_line import command, command_parser
from policies.nano.policy import prepare_image
from policies.training.dataset import CAMERAS, CANVAS
from policies.training.optimisation import begin, save_state, set_learning_rate
from policies.training.recordings import Recording
from policies.types import VegaError
from policies.world_simulator.simulator import WorldSimulatorConfig, save_world_simulator
from policies.world_simulator.unet import save_unet, small_unet
from policies.world_simulator.vae import WanEncoder, load_encoder

FOLDER = "world_simulator"  # below the output

LATENT_CHANNELS = 8
TEXT_DIM = 32
KL_WEIGHT = 1e-6
SHIFT = 5.0  # of Wan's schedule: most of the training sits at high noise
SAMPLE_STEPS = 30
CLIP_FRAMES = 5
MARGIN = 6  # px that clips are larger than the canvas, so that crops differ


def small_vae() -> AutoencoderKLWan:
    """Wan's VAE with 16 base channels: 8 x 8 pixels and 4 frames to a latent of 8 channels."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def small_transformer() -> WanTransformer3DModel:
    """Wan's transformer with 6 blocks of width 128."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
        rope_max_seq_len=128,
    )


class Clips:
    """Crops of consecutive frames of LeRobot datasets, in the size in which the policy will see them.

    batch(n, frames) -> (n, 3, frames, *CANVAS[camera]) in [-1, 1], of one camera drawn from `rng`.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.videos: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in CANVAS}
        for recording in map(Recording, folders):
            for camera, (rows, columns) in CANVAS.items():
                size = (columns + MARGIN, rows + MARGIN)
                frames = [
                    cv2.resize(prepare_image(picture, CAMERAS[camera], camera), size, interpolation=cv2.INTER_AREA)
                    for _, picture in recording.pictures(camera)
                ]
                cuts = [slice(episode.begin, episode.end) for episode in recording.episodes]
                self.videos[camera] += [np.stack(frames[c]) for c in cuts if c.stop - c.start >= CLIP_FRAMES]
        if not len(self):
            raise VegaError(f"No episode has {CLIP_FRAMES} frames: give longer recordings as --data.")

    def __len__(self) -> int:
        return sum(map(len, self.videos.values()))

    def batch(self, count: int, frames: int, rng: np.random.Generator, camera: str | None = None) -> Tensor:
        camera = camera or str(rng.choice(list(CANVAS)))
        videos, (rows, columns) = self.videos[camera], CANVAS[camera]
        clips = np.empty((count, frames, rows, columns, 3), np.uint8)
        for clip in clips:
            video = videos[rng.integers(len(videos))]
            at, y, x = (rng.integers(n - k + 1) for n, k in zip(video.shape, (frames, rows, columns), strict=False))
            clip[:] = video[at : at + frames, y : y + rows, x : x + columns]
        return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def vae_loss(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    posterior = vae.encode(video).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    return F.l1_loss(reconstruction, video) + KL_WEIGHT * posterior.kl().mean()


class Generator(nn.Module):
    """A transformer, or a UNet, and the stand-in for its prompt, (1, TEXT_DIM)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.prompt = nn.Parameter(torch.randn(1, TEXT_DIM) * 0.02)

    def velocity(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """latents (B, C, t, h, w) at noise sigma (B,) in [0, 1] -> noise - data."""
        text = self.prompt[None].expand(len(latents), -1, -1)
        found: Tensor = self.network(latents, sigma * 1000.0, text, return_dict=False)[0]
        return found

    def loss(self, latents: Tensor) -> Tensor:
        uniform = torch.rand(len(latents))
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noise = torch.randn_like(latents)
        at = sigma.view(-1, 1, 1, 1, 1)
        return F.mse_loss(self.velocity((1 - at) * latents + at * noise, sigma).float(), noise - latents)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Latents of new clips: Euler steps along the velocity, from noise."""
        x = torch.randn(shape, generator=generator)
        levels = torch.linspace(1, 0, SAMPLE_STEPS + 1)
        levels = SHIFT * levels / (1 + (SHIFT - 1) * levels)
        for here, there in itertools.pairwise(levels):
            x = x + (there - here) * self.velocity(x, here.expand(len(x)))
        return x


def optimise(
    name: str, module: nn.Module, loss: Callable[[np.random.Generator], Tensor], args: argparse.Namespace, steps: int,
    bf16: bool = True,
) -> None:  # fmt: skip
    """Adam with a warm-up and a cosine; goes on from <output>/<name>.pt, which it writes every --save-every steps."""
    path = args.output / f"{name}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if path.exists():
        state: dict[str, Any] = torch.load(path, weights_only=True)
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
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        mean = float(value.detach()) if step == first else 0.98 * mean + 0.02 * float(value.detach())
        done = step + 1
        if done % 50 == 0:
            left = (time.monotonic() - start) / (done - first) * (steps - done)
            print(f"{name} {done}/{steps} loss {mean:.4f}, {left / 60:.1f} min left", flush=True)
        if done % args.save_every == 0 or done == steps:
            save_state(path, {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": done})


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, clips: Clips) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents per channel, (C,) each."""
    rng = np.random.default_rng(0)
    parts = [vae.encode(clips.batch(8, CLIP_FRAMES, rng)).latent_dist.mode() for _ in range(8)]
    latents = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)
    return latents.mean(dim=1), latents.std(dim=1)


def picture(path: Path, *rows: Tensor) -> None:
    """Rows of clips (n, 3, t, H, W) in [-1, 1], every frame beside the other, three times as large."""
    strips = []
    for row in rows:
        frames = ((row.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 4, 1).numpy()
        strips.append(np.concatenate([np.concatenate(list(clip), axis=1) for clip in frames], axis=1))
    image = np.concatenate(strips, axis=0)
    larger = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), cv2.cvtColor(larger, cv2.COLOR_RGB2BGR))


def train(args: argparse.Namespace) -> None:
    begin(args.seed, args.threads, args.output)
    if args.unet_beside is None:
        train_wan(Clips(args.data), args)
    else:
        encoder = load_encoder(args.unet_beside / "vae", torch.device("cpu"), torch.float32)  # before reading videos
        train_unet(encoder, Clips(args.data), args)


def train_wan(clips: Clips, args: argparse.Namespace) -> None:
    """Both stages of a world simulator."""
    vae, generator = small_vae(), Generator(small_transformer())
    print(f"{len(clips)} videos, VAE {_millions(vae)}, transformer {_millions(generator)}", flush=True)
    train_vae(vae, clips, args)
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    train_generator(
        "transformer", generator, lambda video: (vae.encode(video).latent_dist.mode().float() - mean) / std, clips, args
    )
    rows, columns = CANVAS["agentview"]
    shape = (4, LATENT_CHANNELS, 2, rows // 8, columns // 8)
    sampled = generator.sample(shape, torch.Generator().manual_seed(0))
    with torch.no_grad():
        picture(args.output / "samples.png", vae.decode(sampled * std + mean).sample)
    config = WorldSimulatorConfig(tap=args.tap, canvas=(rows, columns), grid=(rows // 8, columns // 8))
    save_world_simulator(args.output / FOLDER, vae, generator.network, generator.prompt, config)
    print(f"{args.output / FOLDER}, reconstructions.png and samples.png beside it", flush=True)


def train_unet(encoder: WanEncoder, clips: Clips, args: argparse.Namespace) -> None:
    """The second stage with a UNet, on the latents of a world simulator that is there already."""
    generator = Generator(small_unet(encoder.channels, TEXT_DIM))
    print(f"{len(clips)} videos, UNet {_millions(generator)}", flush=True)
    train_generator("unet", generator, encoder.window, clips, args)
    shutil.copytree(args.unet_beside, args.output / FOLDER, dirs_exist_ok=True)
    save_unet(args.output / FOLDER, generator.network, generator.prompt.detach())
    print(f"{args.output / FOLDER}, with the UNet", flush=True)


def train_generator(
    name: str, generator: Generator, encode: Callable[[Tensor], Tensor], clips: Clips, args: argparse.Namespace
) -> None:
    """The second stage.  encode: videos (B, 3, T, H, W) in [-1, 1] -> normalised latents."""

    def loss(rng: np.random.Generator) -> Tensor:
        frames = 1 if rng.random() < 0.5 else CLIP_FRAMES
        with torch.no_grad():
            latents = encode(clips.batch(args.batch * 4, frames, rng))
        return generator.loss(latents)

    # torch 2.13's bfloat16 gradients of what a UNet does between two frames are garbage (findings/torch_bf16_*).
    optimise(name, generator, loss, args, args.transformer_steps, bf16=name != "unet")
    generator.eval().requires_grad_(False)


def train_vae(vae: AutoencoderKLWan, clips: Clips, args: argparse.Namespace) -> None:
    """The first stage; the latents' mean and deviation go into the VAE's configuration."""

    def reconstruct(rng: np.random.Generator) -> Tensor:
        # Most of the steps on single frames, which is what `per_frame` gives it.
        single = rng.random() < 0.65
        return vae_loss(vae, clips.batch(args.batch * (3 if single else 1), 1 if single else CLIP_FRAMES, rng))

    optimise("vae", vae, reconstruct, args, args.vae_steps)
    vae.eval().requires_grad_(False)
    mean, std = latent_statistics(vae, clips)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    shown = clips.batch(2, CLIP_FRAMES, np.random.default_rng(1), "agentview")
    with torch.no_grad():
        picture(args.output / "reconstructions.png", shown, vae.decode(vae.encode(shown).latent_dist.mode()).sample)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.train_world_simulator", __doc__, paragraphs=2)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LeRobot v3 datasets")
    parser.add_argument("--output", type=Path, default=Path("outputs/world_simulator"), help="folder to write")
    parser.add_argument("--vae-steps", type=int, default=3000, help="optimisation steps of the video VAE")
    parser.add_argument("--transformer-steps", type=int, default=4000, help="optimisation steps of the transformer")
    parser.add_argument(
        "--unet-beside", type=Path, metavar="FOLDER", help="world simulator on whose latents a UNet is trained instead"
    )
    parser.add_argument("--tap", type=int, default=3, help="block whose output the policy reads, 0-based")
    parser.add_argument("--batch", type=int, default=4, help="clips per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=7, help="of weights and batches")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    train(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
