"""Distil the generative tokens of a policy: `python -m policies.training.distil --policy FOLDER --data DATASET ...`.

A small convolutional encoder learns what the policy's world simulator says of the current frames, channel by channel
normalised, by squared error and cosine.  What is written is the same policy with that encoder in the simulator's place,
a checkpoint folder that `load_policy` plays.  Goes on after any end, a kill included.
"""

from __future__ import annotations

import sys
from pathlib import Path

from policies.files.command_line import add_seed, add_threads, command, command_parser, positive
from policies.files.paths import refuse_twice
from policies.types import VegaError


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.distil", __doc__, paragraphs=2)
    parser.add_argument("--policy", required=True, help="shipped name or checkpoint folder of a small policy")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LeRobot v3 datasets")
    parser.add_argument("--output", type=Path, default=Path("outputs/distilled"), help="checkpoint folder")
    parser.add_argument("--steps", type=int, default=3000, help="optimisation steps in all")
    parser.add_argument("--lr", type=positive("--lr"), default=2e-3, help="peak learning rate")
    parser.add_argument("--width", type=int, default=96, help="of the encoder's layers, a multiple of 16")
    add_seed(parser, 0, "of weights and batches")
    add_threads(parser)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--hold-out", type=int, default=10, metavar="N", help="learn nothing from every N-th episode")
    parser.add_argument("--cache", type=Path, help="folder for pictures and tokens (default: --output)")
    args = parser.parse_args(argv)
    refuse_twice(args.data)
    if min(args.steps, args.save_every, args.width) < 1 or args.width % 16 or args.hold_out < 0:
        raise VegaError("--steps, --save-every and --width count something: give numbers from 1 on.")
    # Only now: whoever asks for help need not wait for torch.
    from policies.training.nano.distillation import Distillation
    from policies.training.optimisation import begin

    begin(args.seed, args.threads, args.output)
    Distillation(args).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
