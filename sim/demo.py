"""One LIBERO episode for the eye: `python -m sim.demo --suite libero_object --task 3`.

The simulated arm and the policy run as two processes that talk over DDS; this one starts them, watches the wire, and
writes a video and a page.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from policies.checkpoints import check_instructions, for_suite, shipped_policies
from policies.files.command_line import command_parser, results_folder, while_read
from policies.interrupts import stopped
from policies.types import DEFAULT_POLICY, VegaError
from sim.results.report import Recording, side_by_side, versions, write_page
from sim.results.video import write_video
from sim.robot.recorder import Recorder
from sim.robot.ros_episodes import RosEpisodes
from sim.worlds.suites import initial_states, list_tasks, load_task

RATE_HZ = 20.0
HOLD_LAST_S = 0.5
DIAGNOSTICS_S = 3.0
WAITING_S = 5.0


class Terminal:
    """Progress: one line that is rewritten on a terminal, a line now and then in a log."""

    def __init__(self, write: Callable[[str], Any] = sys.stdout.write, rewrites: bool | None = None) -> None:
        self._write = write
        self._rewrites = sys.stdout.isatty() if rewrites is None else rewrites
        self._open = False
        self._started = self._told = time.monotonic()
        self._phase = ""

    def phase(self, text: str) -> None:
        self._phase, self._told = text, time.monotonic()
        self._end_line()
        self._write(f"[{time.monotonic() - self._started:5.1f} s] {text}\n")
        sys.stdout.flush()

    def waiting(self) -> None:
        """Say every few seconds what takes so long; to be called again and again."""
        if time.monotonic() - self._told >= WAITING_S:
            self.phase(self._phase)

    def step(self, step: int, steps: int, latency_ms: float) -> None:
        self._told = time.monotonic()
        text = f"          step {step:3d}/{steps}  observation to command {latency_ms:6.1f} ms"
        if self._rewrites:
            self._write(f"\r{text}")
            self._open = True
        elif step % 40 == 0:
            self._write(f"{text}\n")
        sys.stdout.flush()

    def _end_line(self) -> None:
        if self._open:
            self._write("\n")
            self._open = False


def last_measured(policy: str, suite: str) -> str:
    """The success rate last measured for a shipped policy, or that there is none.

    Read from `results.json` beside the checkpoint: suite -> success_rate, wilson_95, episodes, command.
    """
    folder = shipped_policies().get(policy)
    path = folder / "results.json" if folder is not None else None
    if path is None or not path.is_file():
        return f"none was measured for {policy} yet"
    try:
        result = json.loads(path.read_text())[suite]
        low, high = result["wilson_95"]
        return (
            f"{100 * result['success_rate']:.1f} % of {result['episodes']} episodes of {suite} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
    except KeyError:
        return f"none was measured for {policy} on {suite} yet"
    except (ValueError, TypeError, OSError) as error:
        raise VegaError(f"{path} cannot be read ({error}): write it again with sim/run_libero.py.") from error


def run_episode(
    suite: str, task: int, trial: int, policy: str, terminal: Terminal, *, camera_every: int = 1, device: str = "cpu"
) -> Recording:
    """Run the episode over ROS and return what was seen of it; what went wrong is its `error`."""
    recorder = Recorder()
    log: list[str] = []
    started = time.monotonic()
    record = Recording(suite, task, trial, policy, last_measured=last_measured(policy, suite), versions=versions())

    def progress() -> None:
        if recorder.steps and recorder.steps != shown[0]:
            shown[0] = recorder.steps
            terminal.step(recorder.steps, int(episodes.report.get("max_steps", 0)), recorder.last_wire_ms)
        terminal.waiting()

    shown = [0]
    episodes = RosEpisodes(
        suite,
        for_suite(policy, suite),
        device=device,
        camera_every=camera_every,
        on_line=lambda name, line: log.append(f"[{name}] {line}"),
        observe=recorder.subscribe,
        on_phase=terminal.phase,
        on_wait=progress,
    )
    with episodes:
        result = episodes.run(task, trial)
        if not result.error:
            ended = time.monotonic()
            episodes.wait(lambda: recorder.diagnostics_at > ended, DIAGNOSTICS_S)
        recorder.fill(record)
        report = episodes.report
    record.instruction = str(report.get("instruction", ""))
    record.max_steps = int(report.get("max_steps", 0))
    record.success, record.steps, record.error = result.success, result.steps, result.error
    record.wall_s = time.monotonic() - started
    if record.error:
        terminal.phase("The last lines of the two processes:")
        for line in log[-15:]:
            print(f"          {line}")
    return record


def write_results(record: Recording, folder: Path, fps: float) -> tuple[Path | None, Path]:
    """Write the video and the page; a page without its video is written where the video fails.

    Returns their paths.  Raises VegaError if the page cannot be written.
    """
    stem = f"{record.suite}_task{record.task}_trial{record.trial}"
    video: Path | None = folder / f"{stem}.mp4"
    frames = side_by_side(record.frames)
    assert video is not None
    try:
        write_video(video, frames + frames[-1:] * round(HOLD_LAST_S * fps), fps)
    except VegaError as error:
        print(error, file=sys.stderr)
        video = None
    page = folder / f"{stem}.html"
    write_page(record, page, video)
    return video, page


@while_read
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 if the episode ran to its end, solved or not."""
    parser = command_parser("python -m sim.demo", __doc__, paragraphs=2)
    parser.add_argument("--suite", default="libero_object", help="LIBERO or LIBERO-PRO suite")
    parser.add_argument("--task", type=int, default=0, help="number of the task in the suite")
    parser.add_argument("--trial", type=int, default=0, help="official initial state")
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="name, checkpoint folder, or module:Class")
    parser.add_argument("--device", default="cpu", help="torch device of the policy, such as cpu or cuda:0")
    parser.add_argument("--camera-every", type=int, default=1, help="draw the cameras every n-th step")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for the video and the page")
    arguments = parser.parse_args(argv)
    terminal = Terminal()
    try:
        folder = results_folder(arguments.output)
        if arguments.camera_every < 1:
            raise VegaError(f"--camera-every {arguments.camera_every} is none: give a number from 1 on.")
        states = initial_states(arguments.suite, load_task(arguments.suite, arguments.task), arguments.task)
        if not 0 <= arguments.trial < len(states):
            raise VegaError(
                f"Task {arguments.task} of {arguments.suite} has initial states 0 to {len(states) - 1}: --trial "
                f"{arguments.trial} does not exist."
            )
        check_instructions(arguments.policy, [list_tasks(arguments.suite)[arguments.task]])
        record = run_episode(
            arguments.suite,
            arguments.task,
            arguments.trial,
            arguments.policy,
            terminal,
            camera_every=arguments.camera_every,
            device=arguments.device,
        )
        if any(record.frames.values()):
            terminal.phase("Writing the video and the page.")
            video, page = write_results(record, folder, RATE_HZ / arguments.camera_every)
            written = [f"  video         {video}"] if video is not None else []
            written += [f"  page          {page}"]
        else:
            written = []
    except VegaError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped.", file=sys.stderr)
        return stopped()
    print()
    print(f"  instruction   {record.instruction}")
    print(f"  outcome       {record.outcome}")
    print(f"  success rate  {record.last_measured}")
    print("\n".join(written))
    return 1 if record.error else 0


if __name__ == "__main__":
    sys.exit(main())
