"""Ask about a simulated scene: `python -m sim.ask --question "how far is the milk from the basket?"`.

Builds a scene in which the things of the question stand, films it, lets the model answer, and writes a page with the
views, the model's gate, what it found, and what is true.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from policies.checkpoints import load_scene_model
from policies.files.command_line import add_seed, command, command_parser, results_folder
from policies.spatial.nano.questions import read
from policies.types import SceneView, VegaError
from sim.space.truth.facts import CLEAR_FRAMES

DEFAULT = "how far is the milk from the basket?"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m sim.ask", __doc__, paragraphs=2)
    parser.add_argument("--question", default=DEFAULT, help="about things on a table")
    parser.add_argument("--model", default="vega-nano-spatial", help="name or checkpoint folder")
    add_seed(parser, 0, "of the scene, its layout and the camera's path")
    parser.add_argument("--frames", type=int, default=8, help="of the film")
    parser.add_argument("--output", type=Path, default=Path("outputs/ask"), help="folder of the page")
    args = parser.parse_args(argv)
    if args.frames < CLEAR_FRAMES:
        raise VegaError(
            f"--frames counts from {CLEAR_FRAMES}, as so many must show a thing: give such a number."
        )
    begun = time.monotonic()
    asked = read(args.question)
    # Not at the top: who only asks for --help, or what is refused, needs neither torch nor a simulator.
    from policies.spatial.nano.model import NanoScene
    from sim.space.ask_page import PAGE, AskedScene, write_ask_page
    from sim.space.film import intrinsics
    from sim.space.showing import show
    from sim.space.truth.asked import truth

    model = load_scene_model(args.model)
    if not isinstance(model, NanoScene):
        raise VegaError(f"The model '{args.model}' draws no map: give a vega-nano-spatial checkpoint.")
    # Before a scene is built: what the model does not know is refused at once.
    names = [model.nouns.things[model.nouns.find(noun)] for noun in asked.nouns]
    folder = results_folder(args.output)
    shown = show(names, asked.kind == "count", args.seed, args.frames)
    pictures = [shot.picture for shot in shown.shots]
    camera = intrinsics(*pictures[0].shape[:2])
    seen = [model.see(SceneView("film", i, picture, intrinsics=camera)) for i, picture in enumerate(pictures)]
    answer = model.answer(seen, args.question)
    right = truth(asked, names, shown.facts, shown.shots[-1].pose) or "the scene does not tell"
    about = AskedScene(args.question, answer, right, tuple(names), shown.facts, shown.shots, camera)
    write_ask_page(folder / PAGE, about, model, seen)
    print(f"  question    {args.question}")
    print(f"  answer      {answer.text} (confidence {answer.confidence:.2f})")
    print(f"  truth       {right}")
    print(f"  page        {folder / PAGE}")
    print(f"  took        {time.monotonic() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
