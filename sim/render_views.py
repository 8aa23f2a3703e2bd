"""Render LIBERO scenes from several cameras, with depth and poses, for `python -m policies.correspondence`.

    python -m sim.render_views --suites libero_object libero_goal --tasks 0-1 --trials 2 --views 12 --output data/views

The first view is the policy's own `agentview`; the others stand about the point it looks at.  Files are as
`policies/correspondence/scenes.py` describes them; scenes that exist are not rendered again.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from policies.correspondence.scenes import INTRINSICS_FILE, PosedViews, write_views
from policies.files.command_line import add_seed, command, command_parser, results_folder
from policies.files.made_once import made_with
from policies.types import FloatArray, VegaError
from sim.results.evaluation import add_tasks, parse_tasks
from sim.worlds.libero_env import CAMERAS, LiberoEnvironment
from sim.worlds.suites import load_suite

# About the point that agentview looks at: to either side of it, above the horizon, and as a multiple of its distance.
ASIDE_DEG, ELEVATION_DEG, DISTANCE = 75.0, (20.0, 65.0), (0.75, 1.15)
SETTINGS = "settings.json"  # what all scenes of a folder were rendered with
FARTHEST_M = 65.0  # what 16 bit of millimetres hold


class ViewRenderer:
    """Renders one environment's scene as it stands; a context manager.  Single-threaded (OpenGL)."""

    def __init__(self, environment: LiberoEnvironment, size: int) -> None:
        import mujoco  # not at the top, as in libero_env.py

        self._size, self._sim = size, environment.env.sim
        self.model, self.data = self._sim.model._model, self._sim.data._data
        self._index = self.model.camera(CAMERAS["agentview"]).id
        self.fovy_deg = float(self.model.cam_fovy[self._index])
        self.model.vis.global_.fovy = self.fovy_deg  # of the cameras that are not in the model
        self._renderer = mujoco.Renderer(self.model, size, size)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [0, 1, 1, 0, 0, 0]  # what LIBERO shows: no collision shapes
        self._option.sitegroup[:] = 0
        self._free = mujoco.MjvCamera()
        self._free.type = mujoco.mjtCamera.mjCAMERA_FREE

    def __enter__(self) -> ViewRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()
        # robosuite makes its own OpenGL context current once and for all, and would read garbage from now on.
        self._sim._render_context_offscreen.gl_ctx.make_current()

    @property
    def intrinsics(self) -> FloatArray:
        """(4, 4) of every view; the first pixel's centre is (0, 0)."""
        matrix = np.eye(4)
        matrix[0, 0] = matrix[1, 1] = 0.5 * self._size / np.tan(0.5 * np.deg2rad(self.fovy_deg))
        matrix[:2, 2] = 0.5 * (self._size - 1)
        return matrix

    def views(self, count: int, rng: np.random.Generator) -> tuple[Any, Any, FloatArray]:
        """agentview and `count` - 1 others: pictures (V, H, W, 3), depth (V, H, W) mm, poses (V, 4, 4)."""
        shots = [self._shot(self._index)]
        middle = (self._size - 1) // 2
        pose, away = shots[0][2], float(shots[0][1][middle, middle]) / 1000.0
        ahead = pose[:3, 2]
        self._free.lookat[:] = pose[:3, 3] + away * ahead
        towards = float(np.rad2deg(np.arctan2(ahead[1], ahead[0])))
        for _ in range(count - 1):
            self._free.azimuth = towards + rng.uniform(-ASIDE_DEG, ASIDE_DEG)
            self._free.elevation = -rng.uniform(*ELEVATION_DEG)
            self._free.distance = away * rng.uniform(*DISTANCE)
            shots.append(self._shot(self._free))
        pictures, depths, poses = (np.stack(part) for part in zip(*shots, strict=True))
        return pictures, depths, poses

    def _shot(self, camera: Any) -> tuple[Any, Any, FloatArray]:
        """camera: index in the model, or a free one."""
        renderer = self._renderer
        renderer.update_scene(self.data, camera, self._option)
        picture = renderer.render().copy()
        renderer.enable_depth_rendering()
        metres = renderer.render().copy()
        renderer.disable_depth_rendering()
        depth = np.where(metres < FARTHEST_M, metres * 1000.0, 0.0).round().astype(np.uint16)
        seen = renderer.scene.camera[0]  # as it was drawn, wherever it came from
        pose, ahead, up = np.eye(4), np.array(seen.forward, dtype=np.float64), np.array(seen.up, dtype=np.float64)
        pose[:3, :3] = np.stack([np.cross(ahead, up), -up, ahead], axis=1)
        pose[:3, 3] = seen.pos
        return picture, depth, pose


def render(args: Any, suite: str, task: int) -> list[str]:
    """Render what is missing of a task; the names of its scenes."""
    names = [f"{suite}_{task:02d}_{trial:02d}" for trial in range(args.trials)]
    missing = [trial for trial, name in enumerate(names) if not (args.output / name / INTRINSICS_FILE).is_file()]
    if not missing:
        return names
    with (
        contextlib.closing(LiberoEnvironment(suite, task)) as environment,
        ViewRenderer(environment, args.size) as renderer,
    ):
        for trial in missing:
            environment.reset(trial)
            rng = np.random.default_rng([args.seed, task, trial])
            pictures, depths, poses = renderer.views(args.views, rng)
            write_views(args.output, PosedViews(names[trial], pictures, depths, renderer.intrinsics, poses))
            print(f"{args.output / names[trial]}: {args.views} views", flush=True)
    return names


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.render_views", __doc__, paragraphs=3)
    parser.add_argument("--suites", nargs="+", default=["libero_object"], help="of LIBERO, LIBERO-PRO or LIBERO-plus")
    add_tasks(parser, "of each suite, such as 0-9, 0,3 or 0 3", "0-1")
    parser.add_argument("--trials", type=int, default=2, help="initial states of each task: a scene each")
    parser.add_argument("--views", type=int, default=12, help="of each scene")
    parser.add_argument("--size", type=int, default=256, help="sides of the pictures, px")
    add_seed(parser, 0, "of where the cameras stand")
    parser.add_argument("--output", type=Path, default=Path("data/views"), help="folder of the scenes")
    args = parser.parse_args(argv)
    if args.trials < 1 or args.views < 2 or not 32 <= args.size <= 480:
        raise VegaError("--trials counts from 1, --views from 2, --size from 32 to 480 px: give such numbers.")
    tasks = {suite: parse_tasks(args.tasks, load_suite(suite).n_tasks) for suite in args.suites}
    results_folder(args.output)
    made_with(args.output / SETTINGS, {"views": args.views, "size": args.size, "seed": args.seed})
    for suite, numbers in tasks.items():
        for task in numbers:
            render(args, suite, task)
    return 0


if __name__ == "__main__":
    sys.exit(main())
