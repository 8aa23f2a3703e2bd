"""Train a small Wan world simulator on videos from the simulator: `python -m policies.training.train_world_simulator`.

Two stages with diffusers' own classes in small sizes, both resumable: a causal video VAE (L1 reconstruction and a
little KL), then a diffusion transformer on its latents by flow matching (velocity = noise - data), with one learned
stand-in for the empty prompt.  Writes reconstructions.png and samples.png to look at, and a folder that
`LatentWorldSimulator.from_pretrained` loads.  Clips are consecutive frames of LeRobot v3 datasets.  With `--held-out`
also held_out.json and held_out.png: how well it shows clips again that it has not seen, and what comes next in them.

With `--unet-beside FOLDER` the first stage is that world simulator's, and a UNet learns the second in the transformer's
place: `python -m policies.correspondence --wan OUTPUT/world_simulator` scores both.
"""

from __future__ import annotations

import sys
from pathlib import Path

from policies.files.command_line import add_seed, add_threads, command, command_parser, given, positive, refuse_idle
from policies.files.paths import refuse_twice
from policies.types import VegaError


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.train_world_simulator", __doc__, paragraphs=2)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LeRobot v3 datasets")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", default=[], help="datasets not to learn from, but to be judged by"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/world_simulator"), help="folder to write")
    parser.add_argument("--vae-steps", type=int, default=3000, help="optimisation steps of the video VAE")
    parser.add_argument("--transformer-steps", type=int, default=4000, help="optimisation steps of the transformer")
    parser.add_argument(
        "--unet-beside", type=Path, metavar="FOLDER", help="world simulator on whose latents a UNet is trained instead"
    )
    parser.add_argument("--tap", type=int, default=3, help="block whose output the policy reads, 0-based")
    parser.add_argument("--batch", type=int, default=4, help="clips per step")
    parser.add_argument("--lr", type=positive("--lr"), default=1e-3, help="peak learning rate")
    add_seed(parser, 7, "of weights and batches")
    add_threads(parser, default=2)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    args = parser.parse_args(argv)
    refuse_twice(args.data, args.held_out)
    if args.unet_beside is not None:
        why = "changes nothing beside --unet-beside: leave it out."
        refuse_idle(given(parser, argv, args), ("vae_steps", "tap", "held_out"), why)
    counts = [args.transformer_steps, args.batch, args.save_every]
    if args.unet_beside is None:
        counts.append(args.vae_steps)
    if min(counts) < 1:
        raise VegaError("Steps, --batch and --save-every count from above 0: give such numbers.")
    from policies.training.wan.training import train  # torch, which --help does without

    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
