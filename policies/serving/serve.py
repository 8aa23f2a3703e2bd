"""vega3d-serve: a LIBERO policy of this package for others.

    vega3d-serve --policy vega-nano --port 8000

Speaks openpi's protocol (any `openpi_client.websocket_client_policy.WebsocketClientPolicy`, `sim/run_libero.py --policy
ws://...`), or with `--protocol vla-eval` that of vla-eval.  On localhost unless --host says otherwise; nobody is asked
for a password.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import sys
from collections.abc import Sequence

import numpy as np

from policies.checkpoints import load_policy, serves_one
from policies.files.command_line import add_threads, command, command_parser
from policies.serving import openpi, vla_eval
from policies.serving.libero import FLOOR_BASE
from policies.serving.server import Decider, serve
from policies.types import VegaError

PROTOCOLS = {"openpi": openpi, "vla-eval": vla_eval}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("vega3d-serve", __doc__, paragraphs=3)
    # A request says nothing of an episode, and the default of everything else remembers what it has done in one.
    parser.add_argument("--policy", default="vega-nano", help="name, checkpoint folder, hub id, or module:Class")
    parser.add_argument("--device", default="cpu", help="torch device")
    add_threads(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="to listen on; 0 takes a free one")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="openpi", help="what is spoken")
    parser.add_argument(
        "--base-position", type=float, nargs=3, default=FLOOR_BASE, metavar=("X", "Y", "Z"),
        help="the arm's base in the world, m, for policies that look from there: LIBERO's is -0.6 0 0 on the floor "
        "(libero_object), -0.66 0 0.912 on the table and in the kitchen, -0.51 0 0.42 in the living room",
    )  # fmt: skip
    return parser.parse_args(argv)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of vega3d-serve; returns the exit status."""
    args = arguments(argv)
    if not 0 <= args.port < 65536:
        raise VegaError(f"--port {args.port} is none: give a number from 0 to 65535.")
    if not np.isfinite(args.base_position).all():
        raise VegaError("--base-position needs three finite numbers, in metres.")
    protocol = PROTOCOLS[args.protocol]
    decider = Decider(load_policy(args.policy, args.device, args.threads), np.array(args.base_position))

    def ready(host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        print(f"{decider.spec.name} answers at ws://{shown}:{port} ({args.protocol}); Ctrl-C ends it.", flush=True)
        if serves_one(args.policy):
            print(
                f"{decider.spec.name} remembers how far it is in an episode, of which a request says nothing: here it "
                "decides without that, otherwise than measured.",
                file=sys.stderr,
            )
        if not is_loopback(host):
            print("Everybody who reaches this machine can ask it: nobody is asked for a password.", file=sys.stderr)

    asyncio.run(serve(decider, protocol.talk, protocol.HEALTH, args.host, args.port, ready))
    return 0


if __name__ == "__main__":
    sys.exit(main())
