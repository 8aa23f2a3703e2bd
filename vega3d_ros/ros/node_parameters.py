"""Parameters of policy_node: declared from their table with descriptions and ranges, read into one frozen value."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from policies.types import FloatArray, SpeedOptions, VegaError
from vega3d_ros.control.chunk_scheduler import MergeMode
from vega3d_ros.parameters.body_settings import BodySettings
from vega3d_ros.parameters.table import CAMERA_ROWS, ROWS, SAFETY, Row
from vega3d_ros.parameters.values import check_known, check_together, clean_value

_TYPES = {"texts": Parameter.Type.STRING_ARRAY, "numbers": Parameter.Type.DOUBLE_ARRAY}


@dataclass(frozen=True)
class CameraParameters:
    """Where a camera of the policy is found; 0 accepts any width or height, and any number of identical frames."""

    topic: str
    compressed: bool
    width: int
    height: int
    max_identical: int


@dataclass(frozen=True)
class NodeParameters:
    """docs/interfaces.md says what each is; units SI."""

    policy: str
    device: str
    threads: int
    world_simulator: str
    speed: SpeedOptions
    clock_mode: str
    hardware_id: str
    robot_description: str
    tip_frame: str
    joint_names: tuple[str, ...]
    home: FloatArray
    controller: str
    gripper_joints: tuple[str, ...]
    gripper_command_joint: str
    gripper_open: float
    gripper_closed: float
    gripper_controller: str
    gripper_action: str
    gripper_max_effort: float
    max_skew_s: float
    max_age_s: float
    velocity_filter_s: float
    base_pose_topic: str
    base_position: FloatArray
    base_quaternion: FloatArray
    merge: MergeMode
    command_timeout_s: float
    policy_timeout_s: float
    control_priority: int
    after_problem: str
    max_gap_periods: int
    e_stop_heartbeat_s: float
    enable_topic: str
    enable_timeout_s: float
    dry_run: bool
    command_interface: str
    committed: bool
    command_ahead_s: float
    forward_rate_hz: float
    forward_jerk: FloatArray
    body: BodySettings
    safety_mode: str
    safety: dict[str, object]


def declare(node: Node) -> None:
    """Declare everything but the cameras, which only the policy knows.

    rclpy raises where a value given at start-up has the wrong type or is out of range.
    """
    declare_rows(node, ROWS)


def declare_rows(node: Node, rows: Sequence[Row]) -> None:
    """Declare parameters with these rows."""
    for row in rows:
        declare_row(node, row, row.name)


def refuse_unknown(node: Node) -> None:
    """Raises VegaError if the node was given a parameter that nothing reads, with the nearest known name."""
    try:
        check_known(name for name in node._parameter_overrides if not node.has_parameter(name))
    except VegaError as error:
        raise VegaError(f"Of the parameters given to {node.get_name()}, {error}.") from error


def read(node: Node) -> NodeParameters:
    """The parameters, checked against each other.  Raises VegaError."""
    get = getter(node)
    _check(get)
    parameters = NodeParameters(
        policy=get("policy"),
        device=get("device"),
        threads=get("threads"),
        world_simulator=get("world_simulator"),
        speed=_speed(get),
        clock_mode=get("clock_mode"),
        hardware_id=get("hardware_id"),
        robot_description=get("robot_description"),
        tip_frame=get("tip_frame"),
        joint_names=tuple(get("joint_names") or ()),
        home=_array(get("home")),
        controller=get("controller").strip("/"),
        gripper_joints=tuple(get("gripper.joints") or ()),
        gripper_command_joint=get("gripper.command_joint"),
        gripper_open=get("gripper.open"),
        gripper_closed=get("gripper.closed"),
        gripper_controller=get("gripper.controller").strip("/"),
        gripper_action=get("gripper.action").strip("/"),
        gripper_max_effort=get("gripper.max_effort"),
        max_skew_s=get("max_skew_s"),
        max_age_s=get("max_age_s"),
        velocity_filter_s=get("velocity_filter_s"),
        base_pose_topic=get("base_pose_topic"),
        base_position=_array(get("base_position")),
        base_quaternion=_array(get("base_quaternion")),
        merge=get("merge"),
        command_timeout_s=get("command_timeout_s"),
        policy_timeout_s=get("policy_timeout_s"),
        control_priority=get("control_priority"),
        after_problem=get("after_problem"),
        max_gap_periods=get("max_gap_periods"),
        e_stop_heartbeat_s=get("e_stop.heartbeat_s"),
        enable_topic=get("enable.topic"),
        enable_timeout_s=get("enable.timeout_s"),
        dry_run=get("dry_run"),
        command_interface=get("command_interface"),
        committed=get("committed"),
        command_ahead_s=get("command_ahead_s"),
        forward_rate_hz=get("forward_position.rate_hz"),
        forward_jerk=_array(get("forward_position.jerk")),
        body=BodySettings.read(get),
        safety_mode=get("safety.mode"),
        safety={name: list(get(f"safety.{name}")) for name in _safety_names() if get(f"safety.{name}") is not None},
    )
    plain = parameters.command_interface == "joint_trajectory" and not parameters.committed
    if parameters.clock_mode == "lockstep" and not plain:
        raise VegaError(
            "In lockstep one trajectory point answers one joint state: set committed to false and command_interface to "
            "joint_trajectory, or clock_mode to realtime."
        )
    if parameters.command_interface == "follow_joint_trajectory" and not parameters.committed:
        raise VegaError("A goal of follow_joint_trajectory must end at rest: set committed to true.")
    if not parameters.joint_names:
        raise VegaError("Parameter joint_names is empty: pass a robot's file, such as config/robots/libero.yaml.")
    if parameters.home.size == 0:
        raise VegaError("Parameter home is missing: give the angles of a posture, rad, one for each joint.")
    if not parameters.controller:
        raise VegaError("Parameter controller is empty: name the joint trajectory controller of the arm.")
    return parameters


def _speed(get: Any) -> SpeedOptions:
    """What is not to be as the policy's configuration says."""
    change = get("speed.refresh_change")
    texts = {name: None if get(f"speed.{name}") == "auto" else get(f"speed.{name}") for name in ("stream", "weights")}
    return SpeedOptions(
        refresh_every=get("speed.refresh_every") or None,
        refresh_change=None if change < 0 else change,
        compiled={"auto": None, "on": True, "off": False}[get("speed.compiled")],
        **texts,
    )


def _check(get: Any) -> None:
    """Also what came from elsewhere than a file.  Raises VegaError."""
    given = {row.name: get(row.name) for row in ROWS if get(row.name) is not None}
    try:
        check_together({row.name: clean_value(row, row.name, given[row.name]) for row in ROWS if row.name in given})
    except VegaError as error:
        raise VegaError(f"Parameter {error}.") from error


def _safety_names() -> list[str]:
    return [row.name.partition(".")[2] for row in SAFETY if row.kind == "numbers"]


def read_camera(node: Node, camera: str) -> CameraParameters:
    """Declare (once) and read the parameters of one camera of the policy.  Raises VegaError."""
    prefix = f"cameras.{camera}."
    if not node.has_parameter(prefix + "topic"):
        declare_camera(node, camera)
    return CameraParameters(**read_rows(node, CAMERA_ROWS, prefix))


def read_rows(node: Node, rows: Sequence[Row], prefix: str) -> dict[str, Any]:
    """The declared parameters of these rows, by the rows' names.  Raises VegaError."""
    get = getter(node)
    try:
        return {row.name: clean_value(row, prefix + row.name, get(prefix + row.name)) for row in rows}
    except VegaError as error:
        raise VegaError(f"Parameter {error}.") from error


def declare_camera(node: Node, camera: str, rows: Sequence[Row] = CAMERA_ROWS) -> None:
    """Declare the parameters of one camera."""
    for row in rows:
        declare_row(node, row, f"cameras.{camera}.{row.name}", camera)


def declare_all(node: Node) -> None:
    """What there is to tell of: the node's parameters, and those of any camera."""
    declare(node)
    declare_camera(node, "<camera>")


def given_cameras(node: Node) -> set[str]:
    """Names of the cameras of which the node was given parameters."""
    return {name.split(".")[1] for name in node._parameter_overrides if name.startswith("cameras.")}


def read_cameras(node: Node, cameras: Sequence[str]) -> dict[str, CameraParameters]:
    """The parameters of all cameras of a policy.  Raises VegaError if the node was given cameras, but not this one, and
    where two are to be the same."""
    given = given_cameras(node)
    for camera in cameras:
        if given and camera not in given and given - set(cameras):
            near = difflib.get_close_matches(camera, sorted(given - set(cameras)), 1, 0.0)
            raise VegaError(
                f"The policy's camera '{camera}' is not among the robot's cameras {', '.join(sorted(given))}: name it "
                f"in the robot's YAML (did you write '{near[0]}'?)."
            )
    found = {camera: read_camera(node, camera) for camera in cameras}
    whose: dict[str, str] = {}
    for camera, parameters in found.items():
        topic = node.resolve_topic_name(parameters.topic)
        if whose.setdefault(topic, camera) != camera:
            raise VegaError(
                f"The policy's cameras '{whose[topic]}' and '{camera}' are both to come from '{topic}': give each its "
                "own topic."
            )
    return found


def declare_row(node: Node, row: Row, name: str, camera: str = "") -> None:
    """Declare one parameter; camera: whose it is, to be named in what is said of it."""
    descriptor = ParameterDescriptor(
        description=row.description.format(camera=camera) if camera else row.description,
        read_only=row.fixed,
        additional_constraints=" or ".join(row.choices),
    )
    # Ranges of arrays ROS does not know.
    if row.low is not None and row.high is not None:
        if row.kind == "whole":
            descriptor.integer_range = [IntegerRange(from_value=int(row.low), to_value=int(row.high), step=1)]
        elif row.kind == "number":
            descriptor.floating_point_range = [FloatingPointRange(from_value=row.low, to_value=row.high)]
    default = row.default
    if camera and isinstance(default, str):
        default = default.format(camera=camera)
    if row.kind in _TYPES:
        default = _TYPES[row.kind] if default is None else list(default)
    node.declare_parameter(name, default, descriptor)


def getter(node: Node):  # type: ignore[no-untyped-def]
    """Name -> value of a declared parameter, None where it has none."""

    def get(name: str):  # type: ignore[no-untyped-def]
        # get_parameter raises for an array that was declared by type alone and never set.
        return node.get_parameter_or(name, Parameter(name)).value

    return get


def _array(values: object) -> FloatArray:
    return np.array([] if values is None else values, dtype=np.float64)
