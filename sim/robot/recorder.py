"""Listens to a robot's topics during an episode and makes the record that the report page shows."""

from __future__ import annotations

import re
import time
from functools import partial

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image as ImageMessage
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from policies.types import Image
from sim.results.report import Recording, Stage
from sim.robot.sim_node import COMMAND_TOPIC
from sim.worlds.libero_env import CAMERAS, FINGER_NAMES, JOINT_NAMES
from vega3d_ros.ros.conversions import image_array, stamp_ns

# Deep queues: a recorder that is late for a moment must not lose frames.
RECORD_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
STAGE_NAMES = {
    "policy": "policy, one query",
    "control": "kinematics and safety guard, one step",
    "image_to_command": "image stamped to command published",
}
WIRE = "observation to command, on the wire"


class Recorder:
    """What passed over the wire since `clear`.  Single-threaded: callbacks run in the node's executor."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._frames: dict[str, dict[int, Image]] = {name: {} for name in CAMERAS}
        self._gates: dict[str, dict[int, NDArray[np.uint8]]] = {name: {} for name in CAMERAS}
        self._joints: dict[int, JointState] = {}
        self._commands: dict[int, JointTrajectory] = {}
        self._seen_at: dict[int, float] = {}
        self._wire_ms: list[float] = []
        self._stages: list[Stage] = []
        self.diagnostics_at = 0.0

    def subscribe(self, node: Node) -> None:
        for camera in CAMERAS:
            node.create_subscription(ImageMessage, f"{camera}/image_raw", partial(self._on_image, camera), RECORD_QOS)
            gate = f"policy_node/gate/{camera}"
            node.create_subscription(ImageMessage, gate, partial(self._on_gate, camera), RECORD_QOS)
        node.create_subscription(JointState, "joint_states", self._on_joints, RECORD_QOS)
        node.create_subscription(JointTrajectory, COMMAND_TOPIC, self._on_command, 100)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    @property
    def steps(self) -> int:
        """Commands seen."""
        return len(self._commands)

    @property
    def last_wire_ms(self) -> float:
        """From seeing the newest observation to seeing its command, ms."""
        return self._wire_ms[-1] if self._wire_ms else 0.0

    def fill(self, record: Recording) -> None:
        """Put what was seen into the record; times count from the first joint state."""
        if not self._joints:
            return
        start = min(self._joints)

        def seconds(stamps: list[int]) -> NDArray[np.float64]:
            return (np.array(stamps, dtype=np.int64) - start) / 1e9

        measured = sorted(self._joints)
        record.measured_times = seconds(measured)
        record.measured = np.array([_select(self._joints[stamp], JOINT_NAMES) for stamp in measured])
        record.finger_opening = np.array([_select(self._joints[stamp], FINGER_NAMES).mean() for stamp in measured])
        commanded = [stamp for stamp in sorted(self._commands) if stamp >= start]
        points = [(self._commands[stamp].joint_names, self._commands[stamp].points[0].positions) for stamp in commanded]
        record.commanded_times = seconds(commanded) + record.control_period_s
        record.commanded = np.array([_pick(*point, JOINT_NAMES) for point in points]).reshape(-1, len(JOINT_NAMES))
        record.gripper_command = np.array([_pick(*point, FINGER_NAMES[:1])[0] for point in points])
        for camera in CAMERAS:
            record.frames[camera] = [((s - start) / 1e9, self._frames[camera][s]) for s in sorted(self._frames[camera])]
            record.gates[camera] = [((s - start) / 1e9, self._gates[camera][s]) for s in sorted(self._gates[camera])]
        record.stages = self._stages
        if self._wire_ms:
            p50, p95, p99 = np.percentile(self._wire_ms, [50, 95, 99])
            record.stages = [Stage(WIRE, float(p50), float(p95), float(p99), len(self._wire_ms)), *self._stages]

    def _on_image(self, camera: str, message: ImageMessage) -> None:
        self._frames[camera][stamp_ns(message.header.stamp)] = image_array(message, camera)

    def _on_gate(self, camera: str, message: ImageMessage) -> None:
        gate = np.frombuffer(message.data, dtype=np.uint8).reshape(message.height, message.width)
        self._gates[camera][stamp_ns(message.header.stamp)] = gate

    def _on_joints(self, message: JointState) -> None:
        stamp = stamp_ns(message.header.stamp)
        self._joints[stamp] = message
        self._seen_at.setdefault(stamp, time.monotonic())

    def _on_command(self, message: JointTrajectory) -> None:
        stamp = stamp_ns(message.header.stamp)
        if stamp not in self._commands and stamp in self._seen_at:
            self._wire_ms.append(1e3 * (time.monotonic() - self._seen_at[stamp]))
        self._commands[stamp] = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": latency"):
                self._stages = stages({item.key: item.value for item in status.values})
                self.diagnostics_at = time.monotonic()


def stages(values: dict[str, str]) -> list[Stage]:
    """The stages that policy_node reports on /diagnostics as `<stage>_ms_p50`, `_p95`, `_p99` and `<stage>_count`."""
    found = []
    for key in values:
        match = re.fullmatch(r"(.+)_ms_p50", key)
        if match:
            name = match.group(1)
            p50, p95, p99 = (float(values[f"{name}_ms_{p}"]) for p in ("p50", "p95", "p99"))
            found.append(Stage(STAGE_NAMES.get(name, name), p50, p95, p99, int(values[f"{name}_count"])))
    return sorted(found, key=lambda stage: -stage.p50)


def _select(message: JointState, names: tuple[str, ...]) -> NDArray[np.float64]:
    return _pick(message.name, message.position, names)


def _pick(have: list[str], values: object, names: tuple[str, ...]) -> NDArray[np.float64]:
    """Values of the named joints; NaN for one that is not named."""
    by_name = dict(zip(have, np.asarray(values, dtype=float), strict=True))
    return np.array([by_name.get(name, np.nan) for name in names])
