"""How long the parts of the full-size policy take, and what else is asked of it: `python -m policies.benchmark`.

Builds OpenVLA-OFT and the world simulator with random weights on the device at hand (full size on a GPU, a reduced one
on a CPU) and prints a table of latencies, then rows `name value threshold ok|FAIL`; exits 1 on a FAIL.

Memory in the table: on a GPU the peak while the line ran, on a CPU the weights.  `--full-size` runs one query
of the full-size policy in bf16 on a CPU, with weights that take no memory, and gives what it adds to them at most.
`--rows spatial` counts what spatial reasoning of the full size computes and holds, without computing it.
`--rows mutations` changes every tensor of the golden checkpoints, one at a time, and counts what check_parity misses;
`counted` gives operations and bytes of the full size; `speed` what each option for speed changes, and against the build
in --base what it brings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from policies.checkpoints import check_device
from policies.files.command_line import add_threads, command, command_parser
from policies.measuring.benchmark_meter import Meter
from policies.measuring.benchmark_models import FULL, PROPORTIONED, REDUCED, full_size_weights_gb
from policies.measuring.counted import measure_counted
from policies.measuring.latencies import EFFECTS, MEMORY_GB, measure_all, measure_full_size
from policies.measuring.mutations import undetected
from policies.measuring.spatial_size import measure_spatial
from policies.measuring.speed import measure_errors, measure_speed
from policies.types import VegaError

GOLDEN = Path(__file__).resolve().parent.parent / "test" / "golden"
MUTATED = ("wan_tiny", "openvla_oft_tiny")
LEAST_MUTATIONS = 120


def latencies(meter: Meter, options: argparse.Namespace) -> None:
    """Everything about time and memory, with random weights."""
    meter.at_most("full_size_weights_gb", full_size_weights_gb(), MEMORY_GB)
    if options.full_size:
        measure_full_size(meter, options.cameras, FULL)
        return
    gpu = meter.device.type == "cuda"
    full = (options.size if options.size != "auto" else "full" if gpu else "reduced") == "full"
    sizes, dtype = FULL if full else REDUCED, torch.bfloat16 if gpu else torch.float32
    kind = f"{'full' if full else 'reduced'} size, {options.cameras} cameras, {sizes.canvas} x {sizes.canvas} canvas"
    print(f"{kind}, {str(dtype).removeprefix('torch.')}, {device_name(meter.device)}")
    measure_all(meter, sizes, dtype, options.cameras, options.refresh, options.effects, full)


def mutations(meter: Meter, options: argparse.Namespace) -> None:
    """One wrong tensor in a golden checkpoint, and another, and so on."""
    if not options.golden.is_dir():
        raise VegaError(f"There are no golden vectors in '{options.golden}': name a checkout's test/golden.")
    tried, missed = 0, 0
    with tempfile.TemporaryDirectory(prefix="vega3d-") as room:
        for name in MUTATED:
            number, unnoticed = undetected(options.golden / name, Path(room), options.mutations)
            tried, missed = tried + number, missed + len(unnoticed)
    meter.at_least("mutations_tried", tried, LEAST_MUTATIONS)
    meter.at_most("mutations_that_check_parity_misses", missed, 0)


def spatial(meter: Meter, options: argparse.Namespace) -> None:
    """Questions about scenes at full size, counted on the meta device."""
    measure_spatial(meter)


def counted(meter: Meter, options: argparse.Namespace) -> None:
    """Operations and weights of the full size."""
    measure_counted(meter, PROPORTIONED)


def speed(meter: Meter, options: argparse.Namespace) -> None:
    """Every option for speed: what it changes, and with --base what it brings."""
    measure_errors(meter, Path(__file__).parent / "vega_nano" / "world_simulator")
    if options.base is not None:
        measure_speed(meter, options.base, PROPORTIONED, options.rounds, options.windows_only)


ROWS = {"latencies": latencies, "mutations": mutations, "counted": counted, "speed": speed, "spatial": spatial}


def device_name(device: torch.device) -> str:
    """What the table was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m policies.benchmark", __doc__, paragraphs=3)
    parser.add_argument("--rows", nargs="+", choices=sorted(ROWS), default=["latencies"], help="what is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--size", choices=("auto", "full", "reduced"), default="auto", help="auto: full on a GPU")
    parser.add_argument("--cameras", type=int, default=2, help="images per query")
    parser.add_argument("--refresh", type=int, default=4, help="queries per refresh in the refreshed row")
    parser.add_argument("--seconds", type=float, default=5.0, help="for so long each line of the table is repeated, s")
    add_threads(parser, "torch threads on a CPU")
    parser.add_argument("--effects", nargs="+", choices=list(EFFECTS), default=[], help="add lines that run so")
    parser.add_argument("--full-size", action="store_true", help="only: memory of one query of the full size")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="speed: an older checkout, with its .venv")
    parser.add_argument("--windows-only", action="store_true", help="speed: only queries on windows")
    parser.add_argument("--rounds", type=int, default=2, help="speed: cycles of four queries on windows")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of golden vectors")
    parser.add_argument("--mutations", type=int, help="of each golden checkpoint try so many (default: all)")
    parser.add_argument("--json", type=Path, help="also write latencies and rows to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    check_device(options.device)
    if min(options.cameras, options.refresh, options.rounds) < 1 or not 0 < options.seconds < 3600:
        raise VegaError("Cameras, refresh, rounds and seconds count from 1: give positive numbers.")
    for name in options.effects:
        if EFFECTS[name].gpu_only and not options.device.startswith("cuda"):
            raise VegaError(f"Effect '{name}' needs a GPU: leave it out of --effects or use --device cuda.")
    meter = Meter(torch.device(options.device), options.seconds)
    try:
        for row in options.rows:
            ROWS[row](meter, options)
    except torch.cuda.OutOfMemoryError as error:
        raise VegaError(f"The GPU has too little memory ({str(error).split('.')[0]}): use --size reduced.") from error
    if options.json:
        rows = [dict(zip(("name", "value", "threshold", "good"), row, strict=True)) for row in meter.rows]
        result = {"latencies": [asdict(row) for row in meter.latencies], "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return meter.status


if __name__ == "__main__":
    sys.exit(main())
