"""vega3d-replay BAG: does what was recorded with record:=true come out again?

Runs every recorded decision again (`replay_run.py` says how), compares bit for bit, and prints what was compared.  The
exit status is 0 if every command came out again, and 1, with the first difference, if not.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vega3d_ros.ros.dds import apply_defaults, discovery_off

apply_defaults()

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.exceptions import ParameterException  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from policies.checkpoints import checkpoint_sha256, load_policy  # noqa: E402
from policies.files.command_line import command_parser, while_read  # noqa: E402
from policies.types import VegaError  # noqa: E402
from vega3d_ros.node.node_setup import Parts, build  # noqa: E402
from vega3d_ros.recording.recording_node import parameter_node  # noqa: E402
from vega3d_ros.recording.replay_bag import Bag, used_sample  # noqa: E402
from vega3d_ros.recording.replay_check import ORIGIN  # noqa: E402
from vega3d_ros.recording.replay_run import Decisions, Difference  # noqa: E402
from vega3d_ros.ros import node_parameters  # noqa: E402
from vega3d_ros.ros.joint_states import joint_reader  # noqa: E402
from vega3d_ros.topics.node_outputs import gripper_memory, gripper_position  # noqa: E402
from vega3d_ros.topics.trajectories import trajectories  # noqa: E402


def replay(folder: Path, policy: str = "", device: str = "") -> Iterator[str]:
    """Lines that say what is replayed and what came out again.  policy, device: in place of the recorded ones.

    Raises Difference at the first that did not, VegaError if the bag cannot be replayed.
    """
    with Bag(folder) as bag, tempfile.TemporaryDirectory(prefix="vega3d-replay-") as scratch:
        values = dict(bag.info["parameters"])
        values |= {key: value for key, value in (("policy", policy), ("device", device)) if value}
        urdf = Path(scratch) / "robot.urdf"
        urdf.write_text(bag.info["robot_description"], encoding="utf-8")
        values["robot_description"] = str(urdf)
        context = Context()
        # Nobody is to be found: nothing is heard or said.
        rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
        try:
            unmoved = _unmoved_gripper(values)
            node, parameters = _parameters(folder, values | unmoved, context)
            yield from _headline(bag, values)
            if unmoved:
                yield "The gripper had no controller: it was told nothing."
            loaded = load_policy(
                parameters.policy,
                parameters.device,
                parameters.threads,
                parameters.world_simulator,
                speed=parameters.speed,
            )
            yield from _run(bag, parameters, partial(build, node, parameters, loaded))
        finally:
            context.try_shutdown()


def _unmoved_gripper(values: dict[str, Any]) -> dict[str, Any]:
    """What lets a recording pass whose positions could not move its gripper; policy_node refuses that, but a replay
    moves nothing, and its arm's commands are the same whoever the gripper's controller is."""
    forward = values.get("command_interface") == "forward_position"
    missing = forward and values.get("gripper.command_joint") and not values.get("gripper.controller")
    return {"gripper.controller": "none"} if missing else {}


def _parameters(folder: Path, values: dict[str, Any], context: Context) -> tuple[Node, node_parameters.NodeParameters]:
    """A node with the recorded parameters.  Raises VegaError where this version does not take one of them."""
    try:
        node = parameter_node(values, "replay", context=context)
        return node, node_parameters.read(node)
    except (VegaError, ParameterException, TypeError, ValueError, AssertionError) as error:
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise VegaError(
            f"The bag {folder} was recorded with parameters that this version does not take ({why[:300]}): {ORIGIN}."
        ) from error


def _headline(bag: Bag, values: dict[str, Any]) -> list[str]:
    recorded = bag.info["checkpoint_sha256"]
    lines = [bag.recovered] if bag.recovered else []
    lines += [
        f"recorded: policy {bag.info['parameters']['policy']}, {values['clock_mode']}, checkpoint {recorded[:12]}"
    ]
    try:
        present = checkpoint_sha256(values["policy"])
    except VegaError:
        present = ""
    if present != recorded:
        lines.append(f"The checkpoint is another now ({present[:12] or 'none'}): differences are to be expected.")
    return lines


def _run(bag: Bag, parameters: node_parameters.NodeParameters, configure: Callable[[], Parts]) -> list[str]:
    def configured() -> Parts:
        made = configure()
        if bag.info["parameters"].get("use_sim_time"):
            made.guard.ahead_ns = 0
        return made

    parts = configured()
    decisions = Decisions(parts.runner, parameters)
    together = parameters.clock_mode == "lockstep"
    continuous = parts.runner.loop.kinematics.continuous
    samples = bag.samples(joint_reader(parameters, continuous, together))
    endless = np.array([name in continuous for name in parameters.joint_names])
    derived = parameters.velocity_filter_s > 0.0
    memory = gripper_memory(parameters)
    made: list[list[JointTrajectory]] = []
    for decided, frames in bag.queries():
        event = decided.event
        if event["n"] == 0:
            memory.forget()  # an activation begins, and says what its node remembers
        if event["event"] == "configure":
            memory = gripper_memory(parameters)
            if decisions.compared.episodes:
                decisions = Decisions(configured().runner, parameters, decisions.compared)
            continue
        if event["event"] == "gripper":
            memory.recall(event["position"], event["off"])
            continue
        if event["event"] == "forget":
            memory.forget()
            continue
        if event["event"] == "start":
            memory.reset()
        elif event["event"] == "release" and event["elsewhere"]:
            memory.forget()
        if event["event"] not in ("tick", "brake"):
            decisions.feed(event, frames=frames)
            continue
        command = decisions.feed(event, sample=used_sample(event, samples, endless, derived))
        if command is not None and parameters.command_interface == "joint_trajectory":
            sample = decisions.last_sample
            gripper = gripper_position(memory, parameters, command, sample)
            made.append(trajectories(command, gripper, parameters))
    compared = decisions.compared
    if not compared.commands:
        raise VegaError("No command was recorded: record while the robot is commanded.")
    lines = [
        f"chunks: {compared.chunks} equal in every bit; {compared.chunks_missed} not asked again, frames missing",
        f"commands: {compared.commands} equal in every bit, in {compared.episodes} episode(s); "
        f"{compared.still} periods without a command; {compared.states_missed} joint states missing",
    ]
    if derived:
        lines.append("joint states: velocities not compared, since velocity_filter_s makes them of what came before")
    for i, topic in enumerate(bag.info["commands"]):
        heard, expected = list(bag.trajectories(topic)), [messages[i] for messages in made if i < len(messages)]
        lines.append(_compare_wire(topic, heard, expected, bag.decisions[-1].time_ns))
    return lines


def _compare_wire(
    topic: str, heard: list[tuple[int, JointTrajectory]], made: list[JointTrajectory], end_ns: int
) -> str:
    """Every message that was heard must have been made, in this order; but for those after `end_ns`.

    A decision follows its command: where the recorder ended between the two, nobody knows what was decided.
    """
    if not heard:
        return f"on {topic}: no trajectories to compare"
    position, last = 0, None
    compared = len(heard)
    for number, (time_ns, message) in enumerate(heard):
        if message == last:
            continue  # an answer that was asked for again
        try:
            position = made.index(message, position) + 1
        except ValueError:
            if time_ns > end_ns:
                compared = number
                break
            raise Difference(f"message {number} on {topic} is not among the commands that come out now") from None
        last = message
    late = len(heard) - compared
    after = f"; {late} after the last recorded decision not compared" if late else ""
    return f"on {topic}: {compared} messages equal, of {len(made)} commands{after}"


@while_read
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of vega3d-replay; returns the exit status."""
    parser = command_parser("vega3d-replay", __doc__, paragraphs=2)
    parser.add_argument("bag", type=Path, help="folder of the bag, or its .mcap file")
    parser.add_argument("--policy", default="", help="checkpoint to use (default: the recorded one)")
    parser.add_argument("--device", default="", help="torch device, such as cpu or cuda:0 (default: the recorded one)")
    options = parser.parse_args(argv)
    try:
        with discovery_off():
            for line in replay(options.bag, options.policy, options.device):
                print(line, flush=True)
    except Difference as difference:
        print(f"vega3d-replay: {difference}.", file=sys.stderr)
        return 1
    except VegaError as error:
        print(f"vega3d-replay: {error}", file=sys.stderr)
        return 1
    print("The same commands came out.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
