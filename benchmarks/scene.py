"""What a question over ROS costs: `python -m benchmarks.scene`.

A scene_node process is shown a film of libero_space and asked about it; prints rows `name value threshold ok|FAIL`,
exit 1 on a FAIL.

- From a question's publication to its answer's arrival, all frames seen and read before, against one `Policy.act` of
  the shipped policy on one core, measured before and after in the same run.
- The same against encoding every frame at the question: the node's own time per frame, as often as there are frames.
- `make ask` against `make demo`, by the clock on the wall, in turn: once each to warm up, then twice.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import String

from benchmarks.closed_loop import act_median_ms
from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser
from policies.types import Image, VegaError
from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros import conversions

DEADLINE_S = 300.0
OVER_ACT, FASTER, OVER_DEMO = 4.0, 4.0, 1.0
ROOT = Path(__file__).parents[1]
THINGS = ("milk carton", "basket")  # that the film shows clearly


class Asker:
    """Shows frames to a node and asks it."""

    def __init__(self, domain: int, watch: Callable[[], None]) -> None:
        self.client = RosClient("asker", domain, watch)
        node = self.client.node
        self._camera = node.create_publisher(ImageMessage, "eye/image_raw", qos_profile_sensor_data)
        self._questions = node.create_publisher(String, "scene_node/question", 10)
        self._answers: list[dict[str, Any]] = []
        self._values: dict[str, str] = {}
        node.create_subscription(String, "scene_node/answer", self._on_answer, 10)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_answer(self, message: String) -> None:
        self._answers.append(json.loads(message.data))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._values.update({pair.key: pair.value for pair in status.values})

    def value(self, key: str) -> float:
        """Of /diagnostics; 0 before it is told."""
        return float(self._values.get(key, 0.0))

    def bring_up(self) -> None:
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            if not self.client.change_state("scene_node", transition, DEADLINE_S):
                raise VegaError("scene_node cannot be brought up: read its output above.")

    def show(self, film: Sequence[Image], seen: int) -> None:
        """Send the frames of a film, in turn, until so many were seen."""
        frames = itertools.cycle(film)
        deadline = time.monotonic() + DEADLINE_S
        while self.value("frames_seen") < seen:
            before = self.value("frames_seen")
            self._camera.publish(conversions.image_message(next(frames), time.time_ns(), "eye"))
            self.client.until(lambda seen=before: self.value("frames_seen") > seen, 3.0)  # type: ignore[misc]
            if time.monotonic() > deadline:
                raise VegaError(f"scene_node has not seen {seen} frames in {DEADLINE_S:g} s: read its output above.")

    def ask(self, text: str) -> tuple[float, dict[str, Any]]:
        """ms from the question to its answer, and the answer."""
        before, begin = len(self._answers), time.perf_counter()
        self._questions.publish(String(data=text))
        if not self.client.until(lambda: len(self._answers) > before, DEADLINE_S):
            raise VegaError(f"scene_node gave no answer in {DEADLINE_S:g} s: read its output above.")
        answer = self._answers[-1]
        if answer["error"]:
            raise VegaError(answer["error"])
        return 1e3 * (time.perf_counter() - begin), answer


def measure(rows: Rows, model: str, policy: str, frames: int, questions: int, text: str) -> None:
    """All rows.  Raises VegaError where the node cannot be asked."""
    domain = unused_domain()
    words = [sys.executable, "-m", "vega3d_ros.scene.scene_node", "--ros-args"]
    for key, value in {
        "scene.model": model,
        "scene.frames": frames,
        "scene.every_s": 0.0,
        "max_age_s": 10.0,
        "cameras.eye.topic": "eye/image_raw",
    }.items():
        words += ["-p", f"{key}:={json.dumps(value)}"]
    # Not at the top: who only asks for --help needs no simulator.
    from sim.space.showing import show

    acts = [act_median_ms(policy)]
    # After torch, whose import of triton ends in a segmentation fault where Mesa has loaded its own LLVM before.
    film = [shot.picture for shot in show(THINGS, several=False, seed=0, frames=frames).shots]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
    with ChildProcess("scene_node", words, environment=environment) as child:

        def watch() -> None:
            if child.returncode is not None:
                raise VegaError(f"scene_node ended with status {child.returncode}: read its output above.")

        asker = Asker(domain, watch)
        try:
            asker.bring_up()
            asker.show(film, frames)
            first_ms, answer = asker.ask(text)
            times = [asker.ask(text)[0] for _ in range(questions)]
            asker.show(film, frames + 1)  # the report after which nothing is missing
            see_ms = asker.value("see_ms_p50")
        finally:
            asker.client.close()
    acts.append(act_median_ms(policy))
    answer_ms, act_ms = median(times), sum(acts) / 2
    rows.information("frames_used", len(answer["frames"]))
    rows.information("policy_act_ms", act_ms)
    rows.information("frame_seen_ms", see_ms)
    rows.information("first_answer_over_ros_ms", first_ms)
    rows.information("answer_over_ros_ms", answer_ms)
    rows.at_most("answer_over_ros_over_policy_act", answer_ms / act_ms, OVER_ACT)
    faster = (frames * see_ms + answer_ms) / answer_ms
    rows.at_least("answer_times_faster_than_encoding_at_the_question", faster, FASTER)


def make_s(target: str) -> float:
    """Seconds that `make TARGET` takes.  Raises VegaError where it fails."""
    begun = time.monotonic()
    with ChildProcess(f"make {target}", ["make", target], folder=ROOT, on_line=None) as child:
        if child.wait(DEADLINE_S) != 0:
            raise VegaError(f"`make {target}` failed: run it by hand to see why.")
    return time.monotonic() - begun


def compare_first_steps(rows: Rows) -> None:
    """What somebody does first with an answer and with an episode."""
    taken: dict[str, list[float]] = {"ask": [], "demo": []}
    for _ in range(3):
        for target, times in taken.items():
            times.append(make_s(target))
    ask_s, demo_s = (sum(times[1:]) / 2 for times in taken.values())
    rows.information("make_ask_s", ask_s)
    rows.information("make_demo_s", demo_s)
    rows.at_most("make_ask_over_make_demo", ask_s / demo_s, OVER_DEMO)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m benchmarks.scene", __doc__, paragraphs=3)
    parser.add_argument("--model", default="vega-nano-spatial", help="scene model: a name, a folder, or module:Class")
    parser.add_argument("--policy", default="vega-nano", help="policy whose act is compared")
    parser.add_argument("--frames", type=int, default=8, help="frames that are seen before")
    parser.add_argument("--questions", type=int, default=30, help="the median of so many counts")
    parser.add_argument("--question", default="How far is the milk from the basket?", help="what is asked")
    options = parser.parse_args(arguments)
    if min(options.frames, options.questions) < 1:
        raise VegaError("Frames and questions count from 1: give positive numbers.")
    rows = Rows()
    measure(rows, options.model, options.policy, options.frames, options.questions, options.question)
    compare_first_steps(rows)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
