"""What policy_node is made of, put together from its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rclpy.node import Node

from policies.types import Policy, PolicySpec, VegaError
from vega3d_ros.control.control_loop import guarded_loop
from vega3d_ros.control.frame_buffer import FrameBuffer
from vega3d_ros.control.guard.belief import Belief
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.inference.separate_policy import SeparatePolicy
from vega3d_ros.parameters.arm_check import check_arm
from vega3d_ros.ros import node_parameters
from vega3d_ros.ros.joint_states import finger_map, joint_reader
from vega3d_ros.ros.node_process import read_robot_description
from vega3d_ros.topics.camera_inputs import kinds_known_to
from vega3d_ros.topics.inputs import Inputs


@dataclass(frozen=True)
class Parts:
    """A configured node without its topics."""

    cameras: dict[str, node_parameters.CameraParameters]
    inputs: Inputs
    guard: SafetyGuard
    runner: Lockstep | Realtime


def check_autostart(node: Node, parameters: node_parameters.NodeParameters) -> None:
    """Raises VegaError where the node would begin by itself and an enabling switch is to be held."""
    if parameters.enable_topic and node.get_parameter("autostart").value:
        raise VegaError(
            "Where an enabling switch is to be held, somebody has to call ~/start meanwhile: set autostart to "
            "false, or enable.topic to nothing."
        )


def open_policy(parameters: node_parameters.NodeParameters) -> Policy:
    """The policy: here where the world waits for it, a `SeparatePolicy` where it does not.  Raises VegaError."""
    arguments = (parameters.policy, parameters.device, parameters.threads, parameters.world_simulator)
    if parameters.clock_mode == "realtime":
        return SeparatePolicy(*arguments, parameters.speed)
    from policies.checkpoints import load_policy  # torch is imported here and not before

    return load_policy(*arguments, speed=parameters.speed)


def ahead_ns(node: Node, parameters: node_parameters.NodeParameters) -> int:
    """How long before its departure a command leaves.  Simulated clocks go in steps, and positions carry no stamp."""
    simulated = bool(node.get_parameter("use_sim_time").value)
    stamped = parameters.committed and parameters.command_interface != "forward_position"
    return round(1e9 * parameters.command_ahead_s) if stamped and not simulated else 0


def check_sizes(spec: PolicySpec, cameras: Mapping[str, node_parameters.CameraParameters]) -> None:
    """Raises VegaError where only pictures are accepted that the policy would refuse once the arm is to move."""
    for name, (height, width) in spec.image_sizes.items():
        camera = cameras[name]
        if camera.width not in (0, width) or camera.height not in (0, height):
            raise VegaError(
                f"Policy {spec.name} was trained on {width}x{height} pixels of camera '{name}', and cameras.{name} has "
                f"width {camera.width} and height {camera.height}: set the camera and these to what it was trained on."
            )


def build(node: Node, parameters: node_parameters.NodeParameters, policy: Policy) -> Parts:
    """Put everything around the policy.  Raises VegaError."""
    spec = policy.spec
    cameras = node_parameters.read_cameras(node, spec.cameras)
    check_sizes(spec, cameras)
    period_ns = round(1e9 / spec.action_space.rate_hz)
    lockstep = parameters.clock_mode == "lockstep"
    urdf_xml = read_robot_description(node, parameters.robot_description)
    kinematics = Kinematics(urdf_xml, parameters.joint_names, parameters.tip_frame)
    if parameters.command_interface == "forward_position" and parameters.forward_jerk.size not in (1, kinematics.n):
        raise VegaError(
            f"Parameter forward_position.jerk has {parameters.forward_jerk.size} numbers: give one, or {kinematics.n}."
        )
    # What is not one point in answer to one joint state carries its path to rest with it.
    committed = parameters.committed or parameters.command_interface != "joint_trajectory"
    body = parameters.body.body(urdf_xml, parameters.joint_names, parameters.home)
    zones = [] if body is None else [body]
    loop, guard = guarded_loop(
        policy, kinematics, parameters.home, parameters.safety, parameters.safety_mode, committed, zones
    )
    guard.pace = parameters.body.pace(kinematics, guard.limits, body)
    guard.ahead_ns = ahead_ns(node, parameters)
    guard.at_once = parameters.command_interface == "forward_position" and not parameters.dry_run
    if body is not None:
        left_out = f"; not {', '.join(body.unwatched)}, which touch anyway" if body.unwatched else ""
        node.get_logger().info(f"The arm's body is watched: {body.pairs} pairs{left_out}.")
    check_arm(
        kinematics,
        guard.limits,
        urdf_xml,
        parameters.tip_frame,
        parameters.home,
        parameters.gripper_command_joint,
        (parameters.gripper_open, parameters.gripper_closed),
    )
    belief = Belief(parameters.joint_names, guard.limits)
    max_age_ns = None if lockstep else round(parameters.max_age_s * 1e9)
    buffer = FrameBuffer(
        spec.cameras, spec.window, spec.stride * period_ns, round(parameters.max_skew_s * 1e9), max_age_ns
    )
    runner: Lockstep | Realtime
    if lockstep:
        runner = Lockstep(loop, buffer, period_ns)
    else:
        runner = Realtime(
            loop,
            buffer,
            parameters.home,
            parameters.merge,
            parameters.command_timeout_s,
            parameters.policy_timeout_s,
        )
    fingers = loop.openings = finger_map(parameters, spec)
    reader = joint_reader(parameters, kinematics.continuous, together=lockstep)
    tell, kinds = node.get_logger().info, kinds_known_to(node)
    inputs = Inputs(parameters, cameras, buffer, reader, fingers, belief, not lockstep, tell, kinds)
    return Parts(cameras, inputs, guard, runner)
