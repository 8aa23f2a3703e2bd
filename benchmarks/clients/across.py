"""A camera driver of ROS 2 Kilted in front of a process of the distribution that is here: frames that cross."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.clients.environments import Environment
from benchmarks.clients.programs import SEND_IMAGES
from benchmarks.ros_transport import CAMERAS, DEADLINE_S, domain_environment, role_process
from benchmarks.rows import Rows
from vega3d_ros.ros.dds import apply_defaults, own_profile

KILTED = ("ros-kilted-rclpy[fastrtps]==9.1.2", "ros-kilted-sensor-msgs==5.5.1", "ros-kilted-std-msgs==5.5.1")
FRAMES, RATE_HZ = 300, 30
RECEIVED_PERCENT = 99.0
PROFILE = "FASTDDS_DEFAULT_PROFILES_FILE"


def kilted(rows: Rows, folder: Path) -> None:
    """Two cameras of 640x480 at 30 Hz, best effort; beside it, what the system's own UDP buffers would let through."""
    environment = Environment(folder / "kilted", KILTED)
    profile = own_profile("fastdds_local.xml")
    small = folder / "small.xml"
    small.write_text("".join(line for line in profile.read_text().splitlines(True) if "BufferSize" not in line))
    rows.at_least("kilted_camera_received_percent_own_profile", received(environment, {PROFILE: str(profile)}),
                  RECEIVED_PERCENT)  # fmt: skip
    rows.at_least("kilted_camera_received_percent_its_default_profile", received(environment, {}), RECEIVED_PERCENT)
    rows.information(
        "kilted_camera_received_percent_without_larger_buffers", received(environment, {PROFILE: str(small)}, small)
    )


def received(environment: Environment, driver: dict[str, str], profile: Path | None = None) -> float:
    """Percent of the frames; driver: its variables.  profile: of the receiver, in place of this package's own."""
    with domain_environment(own_profile=True) as variables:
        driver = {"ROS_DOMAIN_ID": variables["ROS_DOMAIN_ID"], "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **driver}
        if profile is not None:
            for name in set(apply_defaults({})) - {"ROS_AUTOMATIC_DISCOVERY_RANGE"}:
                variables[name] = str(profile)
        with role_process("receiver", variables) as receiver:
            sent = environment.run("python", "-c", SEND_IMAGES, str(FRAMES), str(RATE_HZ), *CAMERAS, **driver)
            counted = json.loads(receiver.wait_for_line("received", DEADLINE_S))["received"]
    return 100.0 * float(counted) / float(sent.split()[-1])
