"""Is this robot wired as its file says?  `vega3d-check-robot robot:=<name or file> [seconds:=3]`

Listens to the live graph, commands nothing, and prints `pass` or `FIX`, with what to do, for each point; the exit
status is 1 if one must be mended.  Run it before dry_run is set to false.  With `axes:=true` it also asks you to push
each joint by hand in its positive direction, and compares the signs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vega3d_ros.ros.dds import DISCOVERY_S, apply_defaults

apply_defaults()

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from rcl_interfaces.msg import ParameterType  # noqa: E402
from rcl_interfaces.srv import GetParameters  # noqa: E402
from rclpy._rclpy_pybind11 import RCLError  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.exceptions import (  # noqa: E402
    InvalidParameterTypeException,
    InvalidParameterValueException,
    NameValidationException,
)
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import parameter_value_to_python  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage, JointState  # noqa: E402
from sensor_msgs.msg import Image as ImageMessage  # noqa: E402

from policies.files.command_line import while_read  # noqa: E402
from policies.types import ActionSpace, FloatArray, PolicySpec, VegaError  # noqa: E402
from vega3d_ros.bringup.controller_check import ASKED, judge  # noqa: E402
from vega3d_ros.bringup.entries import Argument, command_words, parse_arguments, robot_file  # noqa: E402
from vega3d_ros.control.body.body import Body  # noqa: E402
from vega3d_ros.control.guard.limits import combine_limits  # noqa: E402
from vega3d_ros.control.kinematics import Kinematics  # noqa: E402
from vega3d_ros.control.stamps import StampWatch  # noqa: E402
from vega3d_ros.parameters.arm_check import check_arm  # noqa: E402
from vega3d_ros.parameters.robot_file import read_robot_file, write_parameters  # noqa: E402
from vega3d_ros.ros import conversions, node_parameters  # noqa: E402
from vega3d_ros.ros.joint_states import JointsMissing, finger_map, joint_reader  # noqa: E402
from vega3d_ros.ros.node_process import read_robot_description  # noqa: E402

REFUSALS = (InvalidParameterTypeException, InvalidParameterValueException, NameValidationException, RCLError)
ARGUMENTS = (
    Argument("robot", "", "Robot: a name in config/robots, or the path of a parameter file of your own; required."),
    Argument("seconds", "3", "How long to listen, s."),
    Argument("axes", "false", "true: ask for a push of each joint by hand, and compare the signs."),
)
ANSWER_S = 2.0
PUSH_RAD = 0.05
PUSH_S = 30.0


@dataclass
class Heard:
    """What came on one topic: stamps and arrival times (ns), their course, the first complaint, the newest value.

    awaited: what was still missing in the newest message, while not everybody was known.
    """

    stamps: list[int] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)
    watch: StampWatch = field(default_factory=StampWatch)
    complaint: str = ""
    awaited: str = ""
    value: Any = None

    def arrived(self, message: Any, now_ns: int) -> None:
        self.arrivals.append(now_ns)
        self.stamps.append(conversions.stamp_ns(message.header.stamp))
        self.watch.seen(self.stamps[-1], now_ns, time.monotonic())


class RobotCheck:
    """One look at a live robot.  `say(good, name, sentence)` is called for each point.

    Raises VegaError if the robot's file itself cannot be used.
    """

    def __init__(self, node: Node, say: Callable[[bool, str, str], None]) -> None:
        node_parameters.declare(node)
        self._node, self._say = node, say
        self._parameters = node_parameters.read(node)
        node_parameters.refuse_unknown(node)
        names = sorted({key.split(".")[1] for key in node._parameter_overrides if key.startswith("cameras.")})
        self._cameras = {name: node_parameters.read_camera(node, name) for name in names}
        self._all_known = False
        self._reader = joint_reader(self._parameters, (), together=False)
        self._heard = {name: Heard() for name in (*names, "joint_states")}
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        for name, camera in self._cameras.items():
            kind = CompressedImage if camera.compressed else ImageMessage
            node.create_subscription(kind, camera.topic, self._image_of(name), qos_profile_sensor_data)
        node.create_subscription(JointState, "joint_states", self._on_joints, qos_profile_sensor_data)

    def run(self, seconds: float, axes: bool) -> None:
        """All points in order; takes `seconds` after everybody is known and, with axes, as long as it is pushed."""
        self._listen(DISCOVERY_S)
        self._all_known = True
        self._listen(seconds)
        for name, camera in self._cameras.items():
            self._stream(f"camera {name}", name, camera.topic, seconds)
        self._stream("joint_states", "joint_states", "joint_states", seconds)
        self._skew()
        self._gripper()
        self._model()
        self._controller()
        if axes:
            for index, joint in enumerate(self._parameters.joint_names):
                self._axis(index, joint)

    def _listen(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until():
            self._executor.spin_once(timeout_sec=0.1)

    def _image_of(self, name: str) -> Callable[[Any], None]:
        camera, heard = self._cameras[name], self._heard[name]

        def take(message: Any) -> None:
            heard.arrived(message, self._now_ns())
            read = conversions.compressed_image_array if camera.compressed else conversions.image_array
            try:
                image = read(message, name)
            except VegaError as error:
                heard.complaint = heard.complaint or str(error)
                return
            if camera.height not in (0, image.shape[0]) or camera.width not in (0, image.shape[1]):
                size = f"{image.shape[1]}x{image.shape[0]} instead of {camera.width}x{camera.height}"
                heard.complaint = f"It sends {size}: set its driver, or the size in the robot's file."

        return take

    def _on_joints(self, message: JointState) -> None:
        heard = self._heard["joint_states"]
        if not self._reader.concerns(message) and heard.arrivals:
            return
        heard.arrived(message, self._now_ns())
        try:
            heard.value = self._reader.read(message, time.monotonic()) or heard.value
            heard.awaited = ""
        except JointsMissing as error:  # of several drivers one is heard first
            heard.awaited = str(error)
            if self._all_known:
                heard.complaint = heard.complaint or heard.awaited
        except VegaError as error:
            heard.complaint = heard.complaint or str(error)

    def _stream(self, title: str, name: str, topic: str, seconds: float) -> None:
        heard, limit_s = self._heard[name], self._parameters.max_age_s
        complaint = heard.complaint or heard.awaited
        if not heard.arrivals:
            infos = self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(topic))
            who = [f"{info.node_name} ({info.topic_type}, {info.qos_profile.durability.name})" for info in infos]
            why = f"{who} publish there: compare type and QoS" if who else "nobody publishes there: start its driver"
            self._say(False, title, f"Nothing came on {topic} in {seconds:g} s, and {why}.")
            return
        self._say(not complaint, title, complaint or f"{len(heard.arrivals)} messages can be used.")
        gap_s = float(np.max(np.diff(heard.arrivals))) / 1e9 if len(heard.arrivals) > 1 else seconds
        good = 2 * gap_s <= limit_s
        remedy = "" if good else f": raise its rate, or max_age_s ({limit_s:g} s), to twice the longest gap"
        self._say(good, f"{title}, rate", f"The longest gap is {1e3 * gap_s:.0f} ms{remedy}.")
        age_s = float(np.median(np.subtract(heard.arrivals, heard.stamps))) / 1e9
        good = -limit_s / 2 <= age_s <= limit_s / 2
        told = f"They are {1e3 * age_s:.0f} ms old on arrival."
        good = good and (not heard.watch.growth or abs(heard.watch.offset_s) < limit_s / 10)
        self._say(good, f"{title}, stamps", told if good else heard.watch.sentence("It", name != "joint_states"))

    def _skew(self) -> None:
        streams = [np.array(self._heard[name].stamps) for name in self._cameras]
        if len(streams) < 2 or any(len(stamps) == 0 for stamps in streams):
            return
        first, limit_s = streams[0], self._parameters.max_skew_s
        worst = max(float(np.median([np.abs(other - stamp).min() for stamp in first])) for other in streams[1:]) / 1e9
        good = worst <= limit_s
        remedy = "" if good else f", more than max_skew_s ({limit_s:g} s): trigger them together, or raise it"
        self._say(good, "skew between cameras", f"Frames lie {1e3 * worst:.0f} ms apart{remedy}.")

    def _gripper(self) -> None:
        parameters, sample = self._parameters, self._heard["joint_states"].value
        if not parameters.gripper_joints or sample is None:
            return
        spec = PolicySpec("of a robot", (), ActionSpace("eef_delta"), finger_open=1.0)
        try:
            fingers = finger_map(parameters, spec)
            fingers.check(sample.gripper_positions)
        except VegaError as error:
            self._say(False, "gripper", str(error))
            return
        share = fingers(sample.gripper_positions)[fingers.main]
        self._say(True, "gripper", f"It is {100 * share:.0f} % open; if not, exchange gripper.open and gripper.closed.")

    def _model(self) -> None:
        parameters, sample = self._parameters, self._heard["joint_states"].value
        try:
            text = read_robot_description(self._node, parameters.robot_description)
            kinematics = Kinematics(text, parameters.joint_names, parameters.tip_frame)
            limits = combine_limits(kinematics, parameters.safety)
            check_arm(
                kinematics,
                limits,
                text,
                parameters.tip_frame,
                parameters.home,
                parameters.gripper_command_joint,
                (parameters.gripper_open, parameters.gripper_closed),
            )
            body = parameters.body.body(text, parameters.joint_names, parameters.home)
        except VegaError as error:
            self._say(False, "robot description and limits", str(error))
            return
        self._say(True, "robot description and limits", f"{kinematics.n} joints up to {parameters.tip_frame}.")
        self._body(body, None if sample is None else sample.positions)
        if sample is None:
            return
        outside = [
            joint
            for joint, q, low, high in zip(
                kinematics.joint_names, sample.positions, limits.lower, limits.upper, strict=True
            )
            if not low <= q <= high
        ]
        remedy = f"{outside} lie outside: move the arm by hand, or correct safety.lower and upper."
        self._say(not outside, "joints within limits", remedy if outside else "All lie inside.")
        tool, _ = kinematics.tip_pose(sample.positions)
        low, high = limits.workspace_lower, limits.workspace_upper
        inside = low is None or high is None or bool(np.all(tool >= low) and np.all(tool <= high))
        where = f"The tool is at {np.round(tool, 3).tolist()} m in the base frame"
        self._say(inside, "tool in its box", f"{where}{'.' if inside else ': move it, or correct safety.workspace_*.'}")

    def _body(self, body: Body | None, positions: FloatArray | None) -> None:
        if body is None:
            return
        left_out = f"; not watched, as they touch anyway: {', '.join(body.unwatched)}" if body.unwatched else ""
        nearest = None if positions is None else body.nearest(positions)
        good = positions is None or body.allows(positions[None])
        where = "" if nearest is None else f" {' and '.join(nearest.names)} are {nearest.distance_m:.3f} m apart"
        remedy = "." if good else ": move the arm, or correct body in the robot's file."
        self._say(good, "body", f"{body.pairs} pairs are watched{left_out}.{where}{remedy if where else ''}")

    def _controller(self) -> None:
        parameters = self._parameters
        arm = "commands" if parameters.command_interface == "forward_position" else "joint_trajectory"
        for controller, end in ((parameters.controller, arm), (parameters.gripper_controller, "joint_trajectory")):
            if not controller:
                continue
            topic = self._node.resolve_topic_name(f"{controller}/{end}")
            listeners, rivals = self._node.count_subscribers(topic), self._node.count_publishers(topic)
            if parameters.command_interface == "follow_joint_trajectory":
                action = "follow_joint_trajectory" if controller == parameters.controller else parameters.gripper_action
                service = self._node.resolve_topic_name(f"{controller}/{action}/_action/send_goal")
                offered = dict(self._node.get_service_names_and_types())
                listeners = int(service in offered)
            sentence = f"{listeners} listener(s) and {rivals} other commander(s) of {topic}"
            remedy = "."
            if not listeners:
                remedy = ": start the controller, or correct its name."
            elif rivals:
                remedy = ": stop the others."
            self._say(bool(listeners) and not rivals, f"controller {controller}", sentence + remedy)
        if parameters.command_interface != "forward_position":
            self._controller_parameters(parameters.controller, parameters.committed)

    def _controller_parameters(self, controller: str, committed: bool) -> None:
        """Those of the arm's controller, where it is a node that tells them."""
        client = self._node.create_client(GetParameters, self._node.resolve_topic_name(f"{controller}/get_parameters"))
        if not client.service_is_ready():
            return
        values: dict[str, Any] = {}
        for name in ASKED:  # one by one: where one is not declared, all answers are missing
            answer = client.call_async(GetParameters.Request(names=[name]))
            self._listen(ANSWER_S, answer.done)
            told = answer.result().values if answer.done() else []
            if told and told[0].type != ParameterType.PARAMETER_NOT_SET:
                values[name] = parameter_value_to_python(told[0])
        for good, name, sentence in judge(values, committed):
            self._say(good, f"controller {controller}, {name}", sentence)

    def _axis(self, index: int, joint: str) -> None:
        heard = self._heard["joint_states"]
        if heard.value is None:
            return
        before = float(heard.value.positions[index])
        print(f"Free the arm and push {joint} in its positive direction, as RViz shows it.", flush=True)

        def moved() -> float:
            return float(heard.value.positions[index]) - before

        self._listen(PUSH_S, lambda: abs(moved()) > PUSH_RAD)
        remedy = "" if moved() > PUSH_RAD else ": push it again, or correct the driver's or the URDF's axis"
        self._say(moved() > PUSH_RAD, f"sign of {joint}", f"It moved by {moved():+.3f} rad{remedy}.")

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)


def _arguments(words: Sequence[str]) -> tuple[str, float, bool]:
    """Robot, seconds and whether to ask for pushes.  Raises VegaError."""
    values = parse_arguments(words, ARGUMENTS)
    if not values["robot"]:
        raise VegaError("Give robot:=<name or file>, and seconds:=3 or axes:=true if you like.")
    try:
        seconds = float(values["seconds"])
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 3600.0:
        raise VegaError(f"seconds:={values['seconds']} is not possible: give a number from 1 to 3600.")
    if values["axes"] not in ("true", "false"):
        raise VegaError(f"axes:={values['axes']} is not possible: give true or false.")
    return values["robot"], seconds, values["axes"] == "true"


@while_read
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of vega3d-check-robot; returns the exit status."""
    words = command_words("vega3d-check-robot", __doc__, argv, ARGUMENTS)
    failed: list[str] = []

    def say(good: bool, name: str, sentence: str) -> None:
        failed.extend([] if good else [name])
        print(f"{'pass' if good else 'FIX '}  {name}: {sentence}", flush=True)

    context = Context()
    try:
        robot, seconds, axes = _arguments(words)
        values = read_robot_file(robot_file(robot)) | {"clock_mode": "realtime"}
        rclpy.init(context=context, args=[])  # ROS would take the words of ours for remappings
        with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
            path = Path(folder) / "robot.yaml"
            write_parameters(values, path)
            options = ["--ros-args", "--params-file", str(path)]
            node = Node("check_robot", context=context, cli_args=options, use_global_arguments=False)
        RobotCheck(node, say).run(seconds, axes)
        node.destroy_node()
    except REFUSALS as error:
        why = str(error).splitlines()[0].partition(", at /")[0].rstrip(".:")
        print(f"vega3d-check-robot: ROS refuses the robot's file ({why}): correct it.", file=sys.stderr)
        return 1
    except VegaError as error:
        print(f"vega3d-check-robot: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    finally:
        context.try_shutdown()
    print(f"{len(failed)} point(s) to mend before anything may move." if failed else "All points pass.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
