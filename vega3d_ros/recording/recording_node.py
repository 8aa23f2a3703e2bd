"""recorder: writes what policy_node hears, decides and commands into a rosbag2 bag (MCAP).  Started by record:=true.

A process of its own, so that a slow disk cannot hold up a command; it only listens.  `~/start` (std_srvs/Trigger) asks
policy_node for its parameters, opens the bag and subscribes; call it after policy_node is configured and before it is
activated, so that nothing is missed (the startup manager does).  Beside the topics the bag holds one message on
`<policy_node>/recording` (std_msgs/String, JSON): the parameters, the robot description, the hash of the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from vega3d_ros.ros.dds import apply_defaults

apply_defaults()

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from rcl_interfaces.msg import Log, ParameterDescriptor  # noqa: E402
from rcl_interfaces.srv import GetParameters, ListParameters  # noqa: E402
from rclpy.clock import Clock, ClockType  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter, parameter_value_to_python  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, JointState  # noqa: E402
from std_msgs.msg import Bool, Float64MultiArray, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from policies.checkpoints import checkpoint_sha256  # noqa: E402
from policies.types import VegaError  # noqa: E402
from vega3d_ros.recording.recording import CLOSE_S, BagWriter, Topic  # noqa: E402
from vega3d_ros.ros import node_parameters  # noqa: E402
from vega3d_ros.ros.node_help import answer_help  # noqa: E402
from vega3d_ros.ros.node_process import (  # noqa: E402
    asked_to_end,
    read_robot_description,
    run_node,
    seconds_to_end,
)
from vega3d_ros.ros.service_calls import ask  # noqa: E402
from vega3d_ros.topics.command_writers import command_topics  # noqa: E402

ANSWER_S = 10.0
AGAIN_S = 2.0
CHECK_S = 0.5
ENDING_S = 0.5  # for what comes after the bag's end
LINGER_S = 0.5  # what was sent before the signal may still be on its way
DEPTH = 1000


def declare(node: Node) -> None:
    """Declare the recorder's own parameters."""
    fixed = ParameterDescriptor(description="Folder of the new bag; empty: named by the time.", read_only=True)
    node.declare_parameter("bag", "", fixed)
    node.declare_parameter("node", "policy_node", ParameterDescriptor(description="Who is recorded."))


class Recorder(Node):  # type: ignore[misc]
    """Single-threaded.  bag: folder of the bag; empty: named by the time, in the working directory.

    failure: why nothing can be written any more, '' while it can.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("recorder", **options)
        declare(self)
        self._writer: BagWriter | None = None
        self._dropped = 0
        self.failure = ""
        self.create_service(Trigger, "~/start", self._on_start)
        self.create_timer(CHECK_S, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def destroy_node(self) -> None:
        """Ends the bag, before the process is ended."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                left_s = seconds_to_end() - ENDING_S
                written = writer.close(max(ENDING_S, left_s) if math.isfinite(left_s) else CLOSE_S)
                _tell(f"{written.sentence()} The bag is {writer.folder}.", sys.stdout)
        except VegaError as error:
            if str(error) != self.failure:  # which is said already
                _tell(str(error), sys.stderr)
        finally:
            super().destroy_node()

    def _on_start(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            if self._writer is None:
                self._start()
            assert self._writer is not None
            response.success, response.message = True, f"Recording to {self._writer.folder}."
        except VegaError as error:
            response.message = str(error)
        return response

    def _start(self) -> None:
        target = str(self.get_parameter("node").value)
        values = fetch_parameters(self, target)
        node = parameter_node(values, context=self.context, name=f"{self.get_name()}_parameters")
        try:
            parameters = node_parameters.read(node)
            description = read_robot_description(self, parameters.robot_description)
        finally:
            node.destroy_node()
        own = self.resolve_topic_name(target)
        recorded: dict[str, tuple[Topic, type[Any]]] = {}

        def record(name: str, kind: type[Any], reliable: bool = False, latched: bool = False) -> None:
            full = f"{own}/{name[2:]}" if name.startswith("~/") else self.resolve_topic_name(name)
            recorded[full] = (Topic(full, _kind(kind), reliable, latched), kind)

        for camera in sorted({name.split(".")[1] for name in values if name.startswith("cameras.")}):
            compressed = bool(values[f"cameras.{camera}.compressed"])
            record(str(values[f"cameras.{camera}.topic"]), CompressedImage if compressed else Image)
        record("joint_states", JointState)
        record("instruction", String, reliable=True, latched=True)
        if parameters.base_pose_topic:
            record(parameters.base_pose_topic, PoseStamped, reliable=True, latched=True)
        record("e_stop", Bool)
        commands = command_topics(parameters)
        forward = parameters.command_interface == "forward_position"
        kinds = (Float64MultiArray if forward else JointTrajectory, JointTrajectory)
        for topic, kind in zip(commands, kinds, strict=False):
            record(topic, kind, reliable=True)
        record("~/decisions", String, reliable=True, latched=True)
        record("/diagnostics", DiagnosticArray, reliable=True)
        record("/rosout", Log, reliable=True, latched=True)
        info = Topic(f"{own}/recording", _kind(String), reliable=True, latched=True)

        folder = Path(str(self.get_parameter("bag").value) or f"vega3d-bag-{datetime.now():%Y%m%d-%H%M%S}")
        topics = {name: topic for name, (topic, _) in recorded.items()}
        writer = BagWriter(folder.expanduser().absolute(), {**topics, info.name: info})
        text = json.dumps(
            {
                "node": own,
                "parameters": values,
                "robot_description": description,
                "checkpoint_sha256": _checkpoint_hash(str(values["policy"])),
                "commands": [self.resolve_topic_name(topic) for topic in commands if not topic.startswith("~/")]
                + [f"{own}/{topic[2:]}" for topic in commands if topic.startswith("~/")],
            }
        )
        writer.offer(info.name, time.time_ns(), serialize_message(String(data=text)))
        self._writer = writer
        for recorded_topic, kind in recorded.values():
            self._listen(recorded_topic, kind)

    def _listen(self, topic: Topic, kind: type[Any]) -> None:
        writer = self._writer
        assert writer is not None
        qos = QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if topic.reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if topic.latched else DurabilityPolicy.VOLATILE,
        )

        def take(data: bytes) -> None:
            writer.offer(topic.name, time.time_ns(), data)

        self.create_subscription(kind, topic.name, take, qos, raw=True)

    def _check(self) -> None:
        """Says when messages are dropped, and notes when nothing can be written any more, which ends the process."""
        if self._writer is None:
            return
        self.failure = self._writer.error
        if self.failure:
            return
        dropped = sum(self._writer.written.dropped.values())
        if dropped > self._dropped:
            self.get_logger().warning(f"{dropped} messages were dropped so far: record to a faster disk.")
        self._dropped = dropped


def fetch_parameters(node: Node, target: str) -> dict[str, Any]:
    """Name -> value of every parameter that is set in node `target`; waits up to `ANSWER_S`.  Raises VegaError."""
    # A node of its own, because this is called from a callback of `node`.
    asker = Node(
        f"{node.get_name()}_asks",
        namespace=node.get_namespace(),
        context=node.context,
        use_global_arguments=False,
        start_parameter_services=False,
        enable_rosout=False,
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(asker)
    deadline = time.monotonic() + ANSWER_S
    silent = VegaError(f"{target} does not tell its parameters: configure it before recording starts.")

    def until(condition: Callable[[], bool], timeout_s: float) -> bool:
        end = min(deadline, time.monotonic() + timeout_s)
        while not condition():
            if asked_to_end() or not node.context.ok():
                raise silent
            if time.monotonic() > end:
                return False
            executor.spin_once(timeout_sec=0.05)
        return True

    def call(client: Any, request: Any) -> Any:
        ready = until(client.service_is_ready, ANSWER_S)
        answer = ask(client, request, until, deadline - time.monotonic(), AGAIN_S) if ready else None
        if answer is None:
            raise silent
        return answer

    try:
        listing = asker.create_client(ListParameters, f"{target}/list_parameters")
        names = list(call(listing, ListParameters.Request()).result.names)
        # One by one, as one that was never set would leave the whole answer empty.
        getting = asker.create_client(GetParameters, f"{target}/get_parameters")
        answers = [call(getting, GetParameters.Request(names=[name])) for name in names]
    finally:
        executor.remove_node(asker)
        executor.shutdown()
        asker.destroy_node()
    values = {
        name: parameter_value_to_python(answer.values[0])
        for name, answer in zip(names, answers, strict=True)
        if answer.values
    }
    return {name: _plain(value) for name, value in values.items() if value is not None}


def parameter_node(values: dict[str, Any], name: str, **options: Any) -> Node:
    """A node that has the parameters of a policy_node, which `node_parameters.read` then reads."""
    # An empty list has no type by itself; leaving it out gives the default, which means the same.
    given = [Parameter(key, value=value) for key, value in values.items() if value != [] and key != "use_sim_time"]
    node = Node(
        name,
        parameter_overrides=given,
        use_global_arguments=False,
        start_parameter_services=False,
        enable_rosout=False,
        **options,
    )
    node_parameters.declare(node)
    return node


def _tell(sentence: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # whoever read our output may be gone
        print(sentence, file=stream, flush=True)


def _kind(kind: type[Any]) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def _plain(value: Any) -> Any:
    return list(value) if not isinstance(value, (str, bool, int, float)) else value


def _checkpoint_hash(policy: str) -> str:
    try:
        return checkpoint_sha256(policy)
    except VegaError:
        return ""  # a policy that lives elsewhere (a hub, a server) has no files here


def run(make: Callable[[], Recorder], args: list[str] | None) -> int:
    """Run a recorder until it is ended or cannot write any more; returns the exit status."""
    return run_node(make, args, LINGER_S, lambda recorder: str(recorder.failure))


def main(args: list[str] | None = None) -> int:
    """Entry point of lib/vega3d_ros/recorder; returns the exit status."""
    return 0 if answer_help("recorder", __doc__, declare, args) else run(Recorder, args)


if __name__ == "__main__":
    raise SystemExit(main())
