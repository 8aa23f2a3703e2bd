"""Keep the prompt's embedding, so that Wan's text encoder never runs again.

python -m policies.world_simulator export-prompt FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from policies.files.command_line import Help, command, command_parser


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m policies.world_simulator", __doc__, paragraphs=2)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export-prompt", help="run the text encoder once and keep the prompt's embedding", formatter_class=Help
    )
    export.add_argument("folder", help="Wan folder in diffusers layout with text_encoder/ and tokenizer/, or a hub id")
    export.add_argument("--prompt", default="", help="text (default: the empty one, as in VEGA-3D)")
    export.add_argument("--output", type=Path, help="file to write (default: in the folder, where it is looked for)")
    options = parser.parse_args(arguments)
    from policies.world_simulator.prompt import export_prompt  # torch, which --help does without

    path, rows = export_prompt(options.folder, options.prompt, options.output)
    print(f"{path}: {rows} row{'s' if rows != 1 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
