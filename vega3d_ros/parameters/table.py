"""Every parameter of policy_node and scene_node: kind, default, range, description; docs/interfaces.md has the prose.

Ranges are what an arm on a table can be, so that degrees, millimetres and slips of a digit are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from policies.types import DEFAULT_POLICY, WORLD_CONTROLS
from vega3d_ros.control.chunk_scheduler import MERGE_MODES
from vega3d_ros.control.guard.limits import MAX_REJECTIONS, TOLERANCE_RAD

# topic: a topic's name; part: what comes before or after the slash of one.
Kind = Literal["text", "topic", "part", "flag", "whole", "number", "texts", "numbers"]
CLOCK_MODES = ("lockstep", "realtime")
AFTER_PROBLEM = ("wait", "deactivate")
COMMAND_INTERFACES = ("joint_trajectory", "forward_position", "follow_joint_trajectory")
FRAMINGS = ("auto", "registered", "official")
TWO_TURNS = 12.6  # rad, the range of the widest joints of arms


@dataclass(frozen=True)
class Row:
    """One parameter.

    default: None for what has none.  low, high: range of each number.  above: the number must be greater than `low`.
    unit: rad, rad/s, rad/s^2 or m, from which a wrong unit is guessed.  fixed: cannot be changed once the node runs.
    """

    name: str
    kind: Kind
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    unit: str = ""
    above: bool = False
    choices: tuple[str, ...] = ()
    fixed: bool = True


# Arrays of one number stand for all joints; what is not given here must be in the URDF, or is as the description says:
# so control/guard/limits.py has it.
SAFETY = (
    Row("safety.mode", "text", "reject", "What becomes of a command outside a limit.", choices=("reject", "clamp")),
    Row("safety.lower", "numbers", None, "Lower joint limits, rad.", -TWO_TURNS, TWO_TURNS, "rad"),
    Row("safety.upper", "numbers", None, "Upper joint limits, rad.", -TWO_TURNS, TWO_TURNS, "rad"),
    Row("safety.velocity", "numbers", None, "Joint velocity limits, rad/s.", 0.0, 30.0, "rad/s", above=True),
    Row(
        "safety.acceleration",
        "numbers",
        None,
        "Joint acceleration limits, rad/s^2; required, as a URDF has none.",
        0.0,
        100.0,
        "rad/s^2",
        above=True,
    ),
    Row("safety.position_margin", "numbers", None, "Distance from joint limits, rad (default: 0).", 0.0, 1.0, "rad"),
    Row("safety.velocity_scale", "numbers", None, "Factor in (0, 1] on velocities (default: 1).", 0.0, 1.0, above=True),
    Row(
        "safety.acceleration_scale",
        "numbers",
        None,
        "Factor in (0, 1] on the accelerations (default: 1).",
        0.0,
        1.0,
        above=True,
    ),
    Row("safety.workspace_lower", "numbers", None, "Lower corner of the tool's box, base frame, m.", -10, 10, "m"),
    Row("safety.workspace_upper", "numbers", None, "Upper corner of the tool's box, base frame, m.", -10, 10, "m"),
    Row("safety.min_interval_s", "numbers", None, "Commands closer than this, s, are refused (default: 0).", 0.0, 1.0),
    Row(
        "safety.tracking_tolerance",
        "numbers",
        None,
        f"Farthest that an arm may be from its path, rad (default: {TOLERANCE_RAD:g}).",
        0.0,
        1.0,
        "rad",
    ),
    Row(
        "safety.max_rejections",
        "numbers",
        None,
        f"So many commands refused in a row are a fault (default: {MAX_REJECTIONS}).",
        1.0,
        10000.0,
    ),
)
_POLICY = (
    Row("policy", "text", DEFAULT_POLICY, "Name of a policy in policies/, checkpoint folder, or module:Class."),
    Row("device", "text", "cpu", "Torch device of the policy, such as cpu or cuda:0."),
    Row("threads", "whole", 1, "Torch threads of the policy.", 1, 256),
    Row(
        "world_simulator",
        "text",
        "on",
        "What stands in for the tokens of the policy's world simulator, to see whether it uses them.",
        choices=WORLD_CONTROLS,
    ),
    Row(
        "clock_mode",
        "text",
        "realtime",
        "lockstep: one command for every joint state, the world waits; realtime: a timer at the policy's rate.",
        choices=CLOCK_MODES,
    ),
    Row("autostart", "flag", False, "Begin to command at activation, without ~/start.", fixed=False),
    Row("merge", "text", "align", "realtime: how a new chunk takes over.", choices=MERGE_MODES),
    Row("command_timeout_s", "number", 5.0, "realtime: without an action for this long, stop.", 0.05, 60.0),
    Row(
        "policy_timeout_s",
        "number",
        0.0,
        "realtime: a policy that has answered before and now thinks for longer than this is a fault; 0: off.",
        0.0,
        60.0,
    ),
    Row(
        "control_priority",
        "whole",
        50,
        "realtime: SCHED_FIFO priority of this process, but not of the policy's, where the system allows it; 0: none.",
        0,
        99,
    ),
)
# What the policy gives for speed or memory, in place of what its configuration says.
SPEED = (
    Row("speed.refresh_every", "whole", 0, "The world simulator runs on every n-th query; 0: as configured.", 0, 1000),
    Row(
        "speed.refresh_change",
        "number",
        -1.0,
        "Change of a picture, in levels of 255, at which it runs earlier; 0: none, negative: as configured.",
        -1.0,
        255.0,
    ),
    Row(
        "speed.stream",
        "text",
        "auto",
        "How the world simulator looks at windows; auto: as configured.",
        choices=("auto", "off", "joint", "causal"),
    ),
    Row("speed.compiled", "text", "auto", "Compile the policy's networks.", choices=("auto", "on", "off")),
    Row("speed.weights", "text", "auto", "Precision of the policy's weights.", choices=("auto", "plain", "int8")),
)
_ARM = (
    Row("hardware_id", "text", "arm", "Name of this robot in /diagnostics."),
    Row(
        "robot_description",
        "text",
        "",
        "URDF: a path or package://vega3d_ros/config/robots/...; empty: from the topic robot_description.",
    ),
    Row("tip_frame", "text", "panda_tcp", "Frame of the tool centre point in the URDF."),
    Row("joint_names", "texts", None, "Arm joints in the order of the kinematic chain."),
    Row("home", "numbers", None, "Joint angles of the null-space posture, rad.", -TWO_TURNS, TWO_TURNS, "rad"),
    Row("controller", "part", "panda_arm_controller", "<controller>/joint_trajectory is commanded."),
    Row("gripper.joints", "texts", None, "Joints of joint_states that give finger openings."),
    Row("gripper.command_joint", "text", "", "Joint commanded to open and close; empty: no gripper."),
    # In the joint's own unit; values.py says which pairs of numbers are plausible.
    Row("gripper.open", "number", 0.04, "Position of the commanded joint when open, m, rad, ...", -1e5, 1e5),
    Row("gripper.closed", "number", 0.0, "Position of the commanded joint when closed, m, rad, ...", -1e5, 1e5),
    Row(
        "gripper.controller",
        "part",
        "",
        "Empty: the gripper joint is part of the arm's trajectory; else its own.",
    ),
    Row("gripper.action", "part", "gripper_cmd", "Actions: <gripper.controller>/<this> is a GripperCommand."),
    Row("gripper.max_effort", "number", 0.0, "Actions: effort of the gripper, N; 0: its own.", 0.0, 1000.0),
    Row("max_skew_s", "number", 0.06, "Frames of cameras further apart than this are not used together.", 0.001, 10.0),
    Row("max_age_s", "number", 0.25, "Cameras and joint states older than this stop the robot.", 0.001, 10.0),
    Row(
        "velocity_filter_s",
        "number",
        0.0,
        "A driver without velocities: time constant of the filter over differences of positions; 0: it is refused.",
        0.0,
        1.0,
    ),
    Row("base_pose_topic", "topic", "", "Topic of the base frame in the world (PoseStamped); empty: fixed."),
    Row("base_position", "numbers", (0.0, 0.0, 0.0), "Base frame in the world, m.", -100.0, 100.0, "m"),
    Row(
        "base_quaternion",
        "numbers",
        (0.0, 0.0, 0.0, 1.0),
        "Base frame in the world, unit quaternion xyzw.",
        -1.001,
        1.001,
    ),
)
# What an arm that can hurt somebody needs; the robot's YAML decides.
_REAL_ARM = (
    Row(
        "after_problem",
        "text",
        "wait",
        "realtime: what an input or a driver that fails while the arm moves leads to.",
        choices=AFTER_PROBLEM,
    ),
    Row(
        "max_gap_periods",
        "whole",
        10,
        "realtime: so many control periods may pass without a decision while the arm moves; 0: any number.",
        0,
        1000,
    ),
    Row(
        "e_stop.heartbeat_s",
        "number",
        0.0,
        "A topic e_stop that says nothing for this long sets the stop; 0: it may be silent while it has a publisher.",
        0.0,
        10.0,
    ),
    Row("enable.topic", "topic", "", "Bool that must be held true while the arm is commanded; empty: none."),
    Row("enable.timeout_s", "number", 0.5, "An enabling switch silent for this long is not held.", 0.05, 10.0),
    Row("dry_run", "flag", True, "Publish commands below ~/dry_run/ only, where no driver listens."),
    Row(
        "command_interface",
        "text",
        "joint_trajectory",
        "What the arm's controller listens to.",
        choices=COMMAND_INTERFACES,
    ),
    Row(
        "committed",
        "flag",
        True,
        "Trajectories end at rest, so that a driver stops by itself when this node dies.",
    ),
    Row(
        "command_ahead_s",
        "number",
        0.0,
        "committed: a trajectory carries a stamp, and leaves so long before it departs from the one under way, so that "
        "it does not matter when it comes until then; 0: no stamp, it starts on arrival.",
        0.0,
        0.05,
    ),
    Row("forward_position.rate_hz", "number", 100.0, "forward_position: rate of the commands, Hz.", 20.0, 1000.0),
    Row("forward_position.jerk", "numbers", None, "forward_position: jerk limits, rad/s^3.", 0.0, 1e5, above=True),
)
# The arm's whole body, and where it slows down (control/body/).
BODY = (
    Row("body.check", "flag", False, "Watch the distances of the arm's links, by the URDF's collision geometry."),
    Row("body.floor", "numbers", None, "Height below which no link may be, root link's frame, m.", -10.0, 10.0, "m"),
    Row("body.cell_lower", "numbers", None, "Lower corner of a room that no link may leave, m.", -10.0, 10.0, "m"),
    Row("body.cell_upper", "numbers", None, "Upper corner of a room that no link may leave, m.", -10.0, 10.0, "m"),
    Row("body.boxes", "numbers", None, "Obstacles: for each its lower and its upper corner, m.", -10.0, 10.0, "m"),
    Row("body.ignore", "texts", None, "Pairs of links that may touch, link:link."),
    Row("body.clearance", "number", 0.02, "No link may come nearer to what stands around, m.", 0.001, 1.0, "m"),
    Row("body.slow_distance", "number", 0.1, "Nearer than this, the arm slows down, m.", 0.002, 2.0, "m"),
    Row("approach.condition_slow", "number", 0.0, "Condition number from which the arm slows down.", 0.0, 1e4),
    Row("approach.condition_stop", "number", 0.0, "Condition number at which it stops; 0: never.", 0.0, 1e4),
    Row("approach.joint_margin", "number", 0.0, "Nearer to a joint's limit it slows down, rad.", 0.0, 1.0, "rad"),
)
ROWS = (*_POLICY, *SPEED, *_ARM, *_REAL_ARM, *SAFETY, *BODY)
_ALIKE = ("device", "threads", "hardware_id", "max_skew_s", "max_age_s")
# Of scene_node, beside those that both nodes have.
SCENE_ROWS = (
    *(row for row in ROWS if row.name in _ALIKE),
    Row(
        "scene.model",
        "text",
        "vega-nano-spatial",
        "Name of a scene model, folder or hub id of a checkpoint, or module:Class.",
    ),
    Row("scene.framing", "text", "auto", "How its world simulator sees a frame.", choices=FRAMINGS),
    Row("scene.max_tokens", "whole", 16, "Tokens of an answer at most.", 1, 512),
    Row("scene.cameras", "texts", None, "Cameras of the robot that are looked through; empty: all."),
    Row("scene.frames", "whole", 8, "So many frames, the newest, are kept and answered from.", 1, 256),
    Row("scene.every_s", "number", 1.0, "Distance of two kept frames of a camera, s.", 0.0, 3600.0),
    Row("scene.world_frame", "text", "world", "Frame in which objects are placed."),
    Row("scene.tf", "flag", False, "Take from tf where the cameras stand; needs the package tf2_msgs."),
    Row("scene.answer_timeout_s", "number", 120.0, "A model that answers nothing for longer has failed.", 0.1, 3600.0),
)
# Of franka_driver (driver/), which reads them from the same file.
FRANKA = (
    Row("franka.address", "text", "", "Host name or IP address of the robot's control box."),
    Row(
        "franka.realtime",
        "text",
        "enforce",
        "enforce: a real-time kernel and the right to its priorities are required; ignore: for a simulator.",
        choices=("enforce", "ignore"),
    ),
    Row(
        "franka.fraction",
        "number",
        0.5,
        "Of the robot's limits of velocity, acceleration and jerk, within which the arm follows its path.",
        0.05,
        0.9,
    ),
    Row("franka.rate_hz", "number", 200.0, "Rate of joint_states, Hz.", 100.0, 1000.0),
    Row("franka.collision_torque", "number", 20.0, "External torque at which the robot stops, Nm.", 1.0, 100.0),
    Row("franka.collision_force", "number", 20.0, "External force at which the robot stops, N.", 1.0, 100.0),
    Row("franka.hand", "flag", True, "There is a Franka Hand, moved by the gripper's topic."),
)
# cameras.<camera>.<name>
CAMERA_ROWS = (
    Row("topic", "topic", "{camera}/image_raw", "Image topic of camera '{camera}'."),
    Row("compressed", "flag", False, "The topic carries CompressedImage (JPEG or PNG)."),
    Row("width", "whole", 0, "Image width that is accepted, pixels; 0: any.", 0, 16384),
    Row("height", "whole", 0, "Image height that is accepted, pixels; 0: any.", 0, 16384),
    Row(
        "max_identical",
        "whole",
        0,
        "Frames in a row that may show the same pixels; 0: any number (simulated cameras).",
        0,
        10_000,
    ),
)
# The same, of scene_node only.
SCENE_CAMERA_ROWS = (
    Row("depth_topic", "topic", "", "Depth of camera '{camera}', registered to its picture; empty: none."),
    Row("camera_info_topic", "topic", "", "CameraInfo of camera '{camera}'; empty: none."),
    Row("pose_topic", "topic", "", "PoseStamped of camera '{camera}' in the world frame, optical axes; empty: none."),
)
# Declared by rclpy itself; it would read qos_overrides too, if a subscription of ours let it.
SIM_TIME = Row("use_sim_time", "flag", False, "Take the time from /clock.", fixed=False)


def row_of(name: str) -> Row | None:
    """The row of a parameter's full name, None if there is none."""
    return _BY_NAME.get(name) or _camera_row(name)


def known_names(cameras: tuple[str, ...] = ()) -> list[str]:
    """Full names of all parameters; those of the cameras for each of `cameras`."""
    return [*_BY_NAME, *(f"cameras.{camera}.{row.name}" for camera in cameras for row in _OF_A_CAMERA)]


def _camera_row(name: str) -> Row | None:
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "cameras" or not parts[1]:
        return None
    return next((row for row in _OF_A_CAMERA if row.name == parts[2]), None)


_OF_A_CAMERA = (*CAMERA_ROWS, *SCENE_CAMERA_ROWS)
_BY_NAME = {row.name: row for row in (*ROWS, *SCENE_ROWS, *FRANKA, SIM_TIME)}
