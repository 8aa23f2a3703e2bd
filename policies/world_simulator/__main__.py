"""Keep the prompt's embedding, so that Wan's text encoder never runs again.

python -m policies.world_simulator export-prompt FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from policies.files.command_line import command
from policies.world_simulator.prompt import PROMPT_FILE, export_prompt


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m policies.world_simulator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export-prompt", help="run the text encoder once and keep the prompt's embedding")
    export.add_argument("folder", help="Wan folder in diffusers layout with text_encoder/ and tokenizer/, or a hub id")
    export.add_argument("--prompt", default="", help="text; VEGA-3D uses the empty one (default)")
    export.add_argument("--output", type=Path, help=f"file to write (default: {PROMPT_FILE} in the folder)")
    options = parser.parse_args(arguments)
    path, rows = export_prompt(options.folder, options.prompt, options.output)
    print(f"{path}: {rows} row{'s' if rows != 1 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
