"""Train vega-nano-spatial on films of libero_space: `python -m policies.training.train_spatial --data FOLDER ...`.

The average of the weights (EMA) is what is saved.  Goes on from its last checkpoint after any end, a kill included,
with the losses that an undisturbed run has.  --without-prior trains the same model, with as many parameters, whose gate
is closed to the world simulator's tokens; --from-scratch lets such arms begin alike.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from policies.checkpoints import HERE
from policies.files.command_line import add_seed, add_threads, command, command_parser, given, positive, refuse_idle
from policies.files.paths import refuse_twice
from policies.types import VegaError


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.train_spatial", __doc__, paragraphs=2)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders of libero_space with a train split"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/vega_nano_spatial"), help="checkpoint folder")
    parser.add_argument("--name", default="vega-nano-spatial", help="of the model")
    shipped = HERE / "vega_nano" / "world_simulator"
    parser.add_argument("--world-simulator", type=Path, default=shipped, help="folder of a world simulator")
    parser.add_argument(
        "--warm-start", default="vega-nano", help="shipped name or checkpoint whose encoder and gate are taken first"
    )
    parser.add_argument(
        "--init", help="shipped name or checkpoint of this command whose weights are taken, words by word"
    )
    parser.add_argument(
        "--from-scratch", action="store_true", help="nothing is taken from a policy: encoder and gate begin at random"
    )
    parser.add_argument("--without-prior", action="store_true", help="close the gate to the simulator's tokens")
    parser.add_argument("--held-out", default="layouts", help="split whose losses are logged; '' for none")
    parser.add_argument("--steps", type=int, default=3000, help="optimisation steps in all")
    parser.add_argument("--batch", type=int, default=32, help="frames per step")
    parser.add_argument("--lr", type=positive("--lr"), default=1.5e-3, help="peak learning rate")
    add_seed(parser, 7, "of weights and batches")
    add_threads(parser)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    args = parser.parse_args(argv)
    refuse_twice(args.data)
    for option, others in (("from_scratch", ("warm_start",)), ("init", ("warm_start", "from_scratch"))):
        if getattr(args, option):
            why = f"changes nothing beside --{option.replace('_', '-')}: leave one of them out."
            refuse_idle(given(parser, argv, args), others, why)
    if min(args.steps, args.batch, args.save_every) < 1:
        raise VegaError("--steps, --batch and --save-every count something: give numbers from 1 on.")
    from policies.training.optimisation import begin  # torch, which --help does without
    from policies.training.spatial.training import Training

    begin(args.seed, args.threads, args.output)
    Training(args).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
