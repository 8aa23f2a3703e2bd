"""Parameters of policy_node: declared with descriptions and ranges, read into one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from policies.types import FloatArray, VegaError
from vega3d_ros.control.chunk_scheduler import MERGE_MODES, MergeMode

CLOCK_MODES = ("lockstep", "realtime")
AFTER_PROBLEM = ("wait", "deactivate")
COMMAND_INTERFACES = ("joint_trajectory", "forward_position", "follow_joint_trajectory")
_Type = Parameter.Type
# Arrays of one number stand for all joints; what is not given here must be in the URDF.
_SAFETY = {
    "lower": "Lower joint limits, rad.",
    "upper": "Upper joint limits, rad.",
    "velocity": "Joint velocity limits, rad/s.",
    "acceleration": "Joint acceleration limits, rad/s^2; required, as a URDF has none.",
    "position_margin": "Distance kept from the joint limits, rad (one number).",
    "velocity_scale": "Factor in (0, 1] on the velocity limits (one number).",
    "acceleration_scale": "Factor in (0, 1] on the acceleration limits (one number).",
    "workspace_lower": "Lower corner of the tool's box in the base frame, m.",
    "workspace_upper": "Upper corner of the tool's box in the base frame, m.",
    "min_interval_s": "Commands closer together than this are refused, s (one number).",
}


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
    clock_mode: str
    autostart: bool
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
    base_pose_topic: str
    base_position: FloatArray
    base_quaternion: FloatArray
    merge: MergeMode
    command_timeout_s: float
    policy_timeout_s: float
    control_priority: int
    after_problem: str
    dry_run: bool
    command_interface: str
    committed: bool
    forward_rate_hz: float
    forward_jerk: FloatArray
    safety_mode: str
    safety: dict[str, object]


def declare(node: Node) -> None:
    """Declare everything but the cameras, which only the policy knows.

    rclpy raises where a value given at start-up has the wrong type or is out of range.
    """
    fixed, free = True, False
    _declare(node, "policy", "vega-nano", fixed, "Name of a policy in policies/, checkpoint folder, or module:Class.")
    _declare(node, "device", "cpu", fixed, "Torch device of the policy, such as cpu or cuda:0.")
    _declare(node, "threads", 1, fixed, "Torch threads of the policy.", _integers(1, 256))
    _declare(
        node,
        "clock_mode",
        "realtime",
        fixed,
        "lockstep: one command for every joint state, the world waits; realtime: a timer at the policy's rate.",
        constraints=" or ".join(CLOCK_MODES),
    )
    _declare(node, "autostart", False, free, "Begin to command at activation, without ~/start.")
    _declare(node, "hardware_id", "arm", fixed, "Name of this robot in /diagnostics.")
    _declare(
        node,
        "robot_description",
        "",
        fixed,
        "URDF: a path or package://vega3d_ros/config/robots/...; empty: from the topic robot_description.",
    )
    _declare(node, "tip_frame", "panda_tcp", fixed, "Frame of the tool centre point in the URDF.")
    _declare(node, "joint_names", _Type.STRING_ARRAY, fixed, "Arm joints in the order of the kinematic chain.")
    _declare(node, "home", _Type.DOUBLE_ARRAY, fixed, "Joint angles of the null-space posture, rad.")
    _declare(node, "controller", "panda_arm_controller", fixed, "<controller>/joint_trajectory is commanded.")
    _declare(node, "gripper.joints", _Type.STRING_ARRAY, fixed, "Joints of joint_states that give finger openings.")
    _declare(node, "gripper.command_joint", "", fixed, "Joint commanded to open and close; empty: no gripper.")
    metres = _numbers(-10.0, 10.0)
    _declare(node, "gripper.open", 0.04, fixed, "Position of the commanded joint when open, m (or rad).", metres)
    _declare(node, "gripper.closed", 0.0, fixed, "Position of the commanded joint when closed, m (or rad).", metres)
    _declare(
        node, "gripper.controller", "", fixed, "Empty: the gripper joint is part of the arm's trajectory; else its own."
    )
    seconds = _numbers(0.001, 10.0)
    _declare(node, "max_skew_s", 0.06, fixed, "Cameras and joint states further apart than this are not used.", seconds)
    _declare(node, "max_age_s", 0.25, fixed, "Cameras and joint states older than this stop the robot.", seconds)
    _declare(node, "base_pose_topic", "", fixed, "Topic of the base frame in the world (PoseStamped); empty: fixed.")
    _declare(node, "base_position", [0.0, 0.0, 0.0], fixed, "Base frame in the world, m.")
    _declare(node, "base_quaternion", [0.0, 0.0, 0.0, 1.0], fixed, "Base frame in the world, unit quaternion xyzw.")
    _declare(
        node,
        "merge",
        "align",
        fixed,
        "realtime: how a new chunk takes over from the one under way.",
        constraints=" or ".join(MERGE_MODES),
    )
    _declare(
        node, "command_timeout_s", 5.0, fixed, "realtime: without an action for this long, stop.", _numbers(0.05, 60.0)
    )
    _declare(
        node,
        "control_priority",
        50,
        fixed,
        "realtime: SCHED_FIFO priority of this process, but not of the policy's, where the system allows it; 0: none.",
        _integers(0, 99),
    )
    _declare_real_arm(node)
    _declare(
        node,
        "safety.mode",
        "reject",
        fixed,
        "What becomes of a command outside a limit.",
        constraints="reject or clamp",
    )
    for name, description in _SAFETY.items():
        _declare(node, f"safety.{name}", _Type.DOUBLE_ARRAY, fixed, description)


def _declare_real_arm(node: Node) -> None:
    """What an arm that can hurt somebody needs; the robot's YAML decides."""
    _declare(
        node,
        "policy_timeout_s",
        0.0,
        True,
        "realtime: a policy that has answered before and now thinks for longer than this is a fault; 0: off.",
        _numbers(0.0, 60.0),
    )
    _declare(
        node,
        "after_problem",
        "wait",
        True,
        "realtime: what an input or a driver that fails while the arm moves leads to.",
        constraints=" or ".join(AFTER_PROBLEM),
    )
    _declare(node, "dry_run", True, True, "Publish commands below ~/dry_run/ only, where no driver listens.")
    _declare(
        node,
        "command_interface",
        "joint_trajectory",
        True,
        "What the arm's controller listens to.",
        constraints=" or ".join(COMMAND_INTERFACES),
    )
    _declare(
        node,
        "committed",
        True,
        True,
        "Trajectories start on arrival and end at rest, so that a driver stops by itself when this node dies.",
    )
    _declare(node, "gripper.action", "gripper_cmd", True, "Actions: <gripper.controller>/<this> is a GripperCommand.")
    newtons = _numbers(0.0, 1000.0)
    _declare(node, "gripper.max_effort", 0.0, True, "Actions: effort of the gripper, N; 0: its own.", newtons)
    rates = _numbers(20.0, 1000.0)
    _declare(node, "forward_position.rate_hz", 100.0, True, "forward_position: rate of the commands, Hz.", rates)
    _declare(node, "forward_position.jerk", _Type.DOUBLE_ARRAY, True, "forward_position: jerk limits, rad/s^3.")


def read(node: Node) -> NodeParameters:
    """The parameters, checked against each other.  Raises VegaError."""
    get = _getter(node)
    parameters = NodeParameters(
        policy=get("policy"),
        device=get("device"),
        threads=get("threads"),
        clock_mode=get("clock_mode"),
        autostart=get("autostart"),
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
        base_pose_topic=get("base_pose_topic"),
        base_position=_array(get("base_position")),
        base_quaternion=_array(get("base_quaternion")),
        merge=get("merge"),
        command_timeout_s=get("command_timeout_s"),
        policy_timeout_s=get("policy_timeout_s"),
        control_priority=get("control_priority"),
        after_problem=get("after_problem"),
        dry_run=get("dry_run"),
        command_interface=get("command_interface"),
        committed=get("committed"),
        forward_rate_hz=get("forward_position.rate_hz"),
        forward_jerk=_array(get("forward_position.jerk")),
        safety_mode=get("safety.mode"),
        safety={name: list(get(f"safety.{name}")) for name in _SAFETY if get(f"safety.{name}") is not None},
    )
    for name, choices in (
        ("clock_mode", CLOCK_MODES),
        ("after_problem", AFTER_PROBLEM),
        ("command_interface", COMMAND_INTERFACES),
    ):
        if get(name) not in choices:
            raise VegaError(f"Parameter {name} is '{get(name)}': choose one of {', '.join(choices)}.")
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
    if parameters.home.shape != (len(parameters.joint_names),):
        raise VegaError(
            f"Parameter home has {parameters.home.size} angles for {len(parameters.joint_names)} joints: give one each."
        )
    if parameters.gripper_command_joint and parameters.gripper_command_joint not in parameters.gripper_joints:
        raise VegaError(
            f"Parameter gripper.command_joint is '{parameters.gripper_command_joint}': list it in gripper.joints "
            "too, so that its position is known."
        )
    if not parameters.controller:
        raise VegaError("Parameter controller is empty: name the joint trajectory controller of the arm.")
    if parameters.base_position.shape != (3,) or parameters.base_quaternion.shape != (4,):
        raise VegaError("Parameters base_position and base_quaternion need 3 and 4 numbers: correct the robot's YAML.")
    if abs(np.linalg.norm(parameters.base_quaternion) - 1.0) > 1e-3:
        raise VegaError("Parameter base_quaternion is not a unit quaternion xyzw: correct the robot's YAML.")
    return parameters


def read_camera(node: Node, camera: str) -> CameraParameters:
    """Declare (once) and read the parameters of one camera of the policy."""
    prefix = f"cameras.{camera}."
    if not node.has_parameter(prefix + "topic"):
        _declare(node, prefix + "topic", f"{camera}/image_raw", True, f"Image topic of camera '{camera}'.")
        _declare(node, prefix + "compressed", False, True, "The topic carries CompressedImage (JPEG or PNG).")
        sizes = _integers(0, 16384)
        _declare(node, prefix + "width", 0, True, "Image width that is accepted, pixels; 0: any.", sizes)
        _declare(node, prefix + "height", 0, True, "Image height that is accepted, pixels; 0: any.", sizes)
        repeats = "Frames in a row that may show the same pixels; 0: any number (simulated cameras)."
        _declare(node, prefix + "max_identical", 0, True, repeats, _integers(0, 10_000))
    get = _getter(node)
    return CameraParameters(
        topic=get(prefix + "topic"),
        compressed=get(prefix + "compressed"),
        width=get(prefix + "width"),
        height=get(prefix + "height"),
        max_identical=get(prefix + "max_identical"),
    )


def _declare(
    node: Node,
    name: str,
    default: object,
    read_only: bool,
    description: str,
    limits: IntegerRange | FloatingPointRange | None = None,
    constraints: str = "",
) -> None:
    descriptor = ParameterDescriptor(description=description, read_only=read_only, additional_constraints=constraints)
    if isinstance(limits, IntegerRange):
        descriptor.integer_range = [limits]
    elif isinstance(limits, FloatingPointRange):
        descriptor.floating_point_range = [limits]
    node.declare_parameter(name, default, descriptor)


def _getter(node: Node):  # type: ignore[no-untyped-def]
    def get(name: str):  # type: ignore[no-untyped-def]
        # get_parameter raises for an array that was declared by type alone and never set.
        return node.get_parameter_or(name, Parameter(name)).value

    return get


def _integers(lowest: int, highest: int) -> IntegerRange:
    return IntegerRange(from_value=lowest, to_value=highest, step=1)


def _numbers(lowest: float, highest: float) -> FloatingPointRange:
    return FloatingPointRange(from_value=lowest, to_value=highest)


def _array(values: object) -> FloatArray:
    return np.array([] if values is None else values, dtype=np.float64)
