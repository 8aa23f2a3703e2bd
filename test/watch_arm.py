"""Exits with 0 once `joint_states` has moved by 0.02 rad in some joint, with 1 after four minutes of stillness."""

from __future__ import annotations

import sys
import time

from vega3d_ros.ros.dds import apply_defaults

apply_defaults()

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402


def main() -> int:
    rclpy.init()
    node = rclpy.create_node("watch_arm")
    positions: list[np.ndarray] = []
    node.create_subscription(
        JointState,
        "joint_states",
        lambda message: positions.append(np.array(message.position)),
        qos_profile_sensor_data,
    )
    deadline = time.monotonic() + 240.0
    while time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.2)
        if positions and np.abs(positions[-1] - positions[0]).max() > 0.02:
            print(f"moved by {np.abs(positions[-1] - positions[0]).max():.3f} rad in {len(positions)} samples")
            return 0
    print(f"no motion in {len(positions)} samples")
    return 1


if __name__ == "__main__":
    sys.exit(main())
