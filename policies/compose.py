"""Write the folder of a full-size policy from published parts: `python -m policies.compose`.

    python -m policies.compose --openvla OFT --world-simulator WAN --output FOLDER

OFT is an OpenVLA-OFT checkpoint, WAN a Wan2.1 text-to-video model in diffusers layout, each a folder or a hub id.  The
folder gets one readable `config.json`, where everything else can be changed, and the weights of a fusion that is not
trained yet: the policy acts as OpenVLA-OFT alone, bit for bit, until they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from policies.files.command_line import add_seed, command, command_parser, given, refuse_idle, results_folder
from policies.files.json_config import read_counts
from policies.files.weight_files import CHECKPOINT_FILES, resolve_folder
from policies.fusion.fused_policy import write_policy
from policies.fusion.gated_fusion import build_fusion, fusion_names
from policies.openvla.config import DTYPES, VegaOpenVLAConfig, WorldPart, published_config
from policies.openvla.policy import grid_and_width
from policies.openvla.robots import PLATFORMS
from policies.openvla.statistics import choose, read_statistics
from policies.types import VegaError
from policies.world_simulator.experts import transformer_folder
from policies.world_simulator.simulator import HUB_PATTERNS as WAN_PATTERNS
from policies.world_simulator.simulator import noise_level


def compose(folder: Path, config: VegaOpenVLAConfig, seed: int = 0) -> None:
    """Write a policy's folder with a fusion drawn from `seed`; only headers of the parts are read.

    Raises VegaError for a part that is missing, and for statistics that the checkpoint does not have.
    """
    checkpoint = resolve_folder(config.openvla, CHECKPOINT_FILES)
    if config.statistics_key is not None:
        choose(read_statistics(checkpoint), config.robot, config.openvla, config.statistics_key)
    part, fusion = config.world_simulator, None
    if part is not None:
        grid, width = grid_and_width(checkpoint)
        wan = resolve_folder(part.source, WAN_PATTERNS)
        transformer = transformer_folder(wan, noise_level(part.noise_index, part.shift)[0])
        heads, head_dim = read_counts(transformer / "config.json", "num_attention_heads", "attention_head_dim")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fusion = build_fusion(part.fusion, width, heads * head_dim, grid=grid, unchanged=part.unchanged_start)
    write_policy(folder, config, None if fusion is None else fusion.state_dict())


def _local(path_or_id: str) -> str:
    """Folders as absolute paths, so that the policy's folder can lie anywhere; hub ids as they are."""
    return str(Path(path_or_id).expanduser().resolve()) if Path(path_or_id).expanduser().is_dir() else path_or_id


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m policies.compose", __doc__, paragraphs=3)
    parser.add_argument("--openvla", required=True, help="OpenVLA-OFT checkpoint: folder or hub id")
    parser.add_argument("--world-simulator", help="Wan in diffusers layout: folder or hub id (default: none)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--name", help="of the policy (default: that of the folder)")
    parser.add_argument("--robot", choices=sorted(PLATFORMS), help="default: by the width of the actions")
    parser.add_argument("--cameras", help="names in the checkpoint's order, comma between (default: the robot's)")
    parser.add_argument("--statistics", help="key in the checkpoint's statistics (default: the robot's or suite's)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights")
    parser.add_argument(
        "--fusion", choices=fusion_names(), default="token_gate", help="how tokens meet; token_gate is the paper's"
    )
    parser.add_argument("--refresh-every", type=int, default=1, help="run the world simulator on every n-th query")
    add_seed(parser, 0, "of the fusion's first weights")
    options = parser.parse_args(arguments)
    if options.refresh_every < 1:
        raise VegaError(f"--refresh-every {options.refresh_every} is none: give a number from 1 on.")
    if options.world_simulator is None:
        why = "is about a world simulator: give one as --world-simulator, or leave it out."
        refuse_idle(given(parser, arguments, options), ("fusion", "refresh_every", "seed"), why)
    cameras = None if options.cameras is None else tuple(name.strip() for name in options.cameras.split(","))
    if cameras is not None and "" in cameras:
        raise VegaError(f"--cameras '{options.cameras}' has a camera without a name: give names with a comma between.")
    new = not options.output.exists()
    if any(results_folder(options.output).iterdir()):
        raise VegaError(f"Folder '{options.output}' is not empty: name a new one with --output.")
    if new:
        options.output.rmdir()  # where a part is refused, nothing is left
    known = published_config(resolve_folder(options.openvla, CHECKPOINT_FILES), options.robot)
    part = None
    if options.world_simulator is not None:
        part = WorldPart(_local(options.world_simulator), fusion=options.fusion, refresh_every=options.refresh_every)
    config = VegaOpenVLAConfig(
        name=options.name or options.output.resolve().name,
        openvla=_local(options.openvla),
        robot=known.robot,
        cameras=known.cameras if cameras is None else cameras,
        statistics_key=options.statistics,
        dtype=options.dtype,
        world_simulator=part,
    )
    compose(options.output, config, options.seed)
    print(options.output / "config.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
