"""Cameras of another generation of Fast DDS, which shares no memory with ours: found out, and told once.

With the variable VEGA3D_OTHER_ROS naming the Python of an environment that has the other one (ros-kilted-* beside
Jazzy's wheels, or the reverse), pictures really cross.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from benchmarks.clients.programs import SEND_IMAGES
from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros.dds import fast_dds_generation
from vega3d_ros.topics import neighbours
from vega3d_ros.topics.neighbours import Neighbours

DEADLINE_S = 120.0
OWN = fast_dds_generation()
FAMILY = {2: "fastrtps", 3: "fastdds"}
OTHER_PYTHON = os.environ.get("VEGA3D_OTHER_ROS", "")

pytestmark = pytest.mark.skipif(OWN == 0, reason="the middleware here is not Fast DDS")

# A camera driver that holds a file as a port of shared memory.
CAMERA = """
import fcntl, os, sys
from vega3d_ros.ros.dds import apply_defaults
apply_defaults()
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from sim.robot.ros_client import RosClient
client = RosClient("driver", int(os.environ["ROS_DOMAIN_ID"]))
publisher = client.node.create_publisher(Image, "wrist/image_raw", qos_profile_sensor_data)
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("there", flush=True)
client.until(lambda: False, 600.0)
"""


@pytest.fixture
def viewer() -> Iterator[RosClient]:
    client = RosClient("viewer", unused_domain())
    client.node.create_subscription(Image, "wrist/image_raw", lambda message: None, qos_profile_sensor_data)
    yield client
    client.close()


def driver(client: RosClient, port: Path) -> ChildProcess:
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(client.node.context.get_domain_id()),
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    return ChildProcess("driver", [sys.executable, "-c", CAMERA, str(port)], environment=environment, on_line=None)


@pytest.mark.parametrize("kind", [2, 3])
def test_a_camera_whose_process_has_a_port_of_the_other_kind_is_told_once(viewer, kind, tmp_path):
    port = tmp_path / f"{FAMILY[kind]}_port7411_el"
    watch = Neighbours(viewer.node, {"wrist": "wrist/image_raw"}, tmp_path)
    with driver(viewer, port) as child:
        child.wait_for_line("there", DEADLINE_S)
        known = viewer.node.get_publishers_info_by_topic
        assert viewer.until(lambda: any(i.node_name == "driver" for i in known("/wrist/image_raw")), DEADLINE_S)
        said = watch.news()
        if kind == OWN:
            assert said == []
        else:
            assert len(said) == 1 and "Camera 'wrist' comes from driver" in said[0]
            assert f"Fast DDS {kind} shares no memory with Fast DDS {OWN} here" in said[0]
        assert watch.news() == []


def test_a_port_that_somebody_else_holds_or_nobody_does_is_no_reason(viewer, tmp_path):
    mine = tmp_path / f"{FAMILY[5 - OWN]}_port7413_el"
    (tmp_path / f"{FAMILY[5 - OWN]}_port7415_el").touch()  # left by one that was killed
    with mine.open("w") as file, driver(viewer, tmp_path / "no_port") as child:
        fcntl.flock(file, fcntl.LOCK_EX)
        child.wait_for_line("there", DEADLINE_S)
        known = viewer.node.get_publishers_info_by_topic
        assert viewer.until(lambda: any(i.node_name == "driver" for i in known("/wrist/image_raw")), DEADLINE_S)
        assert Neighbours(viewer.node, {"wrist": "wrist/image_raw"}, tmp_path).news() == []


@pytest.mark.skipif(not OTHER_PYTHON, reason="VEGA3D_OTHER_ROS names no environment of another ROS distribution")
def test_pictures_of_the_other_distribution_arrive_and_the_camera_is_told(viewer):
    received: list[Image] = []
    viewer.node.create_subscription(Image, "agentview/image_raw", received.append, qos_profile_sensor_data)
    ours = ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "PYTHONPATH", "AMENT_PREFIX_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["ROS_DOMAIN_ID"] = str(viewer.node.context.get_domain_id())
    command = [OTHER_PYTHON, "-c", SEND_IMAGES, "30", "10", "agentview"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as sender:
        try:
            watch, said = Neighbours(viewer.node, {"agentview": "agentview/image_raw"}), list[str]()
            viewer.until(lambda: said.extend(watch.news()) or bool(said), DEADLINE_S)
            assert "shares no memory with" in said[0], said
            viewer.until(lambda: sender.poll() is not None, DEADLINE_S)
            assert sender.returncode == 0
            begun = time.monotonic()
            viewer.until(lambda: len(received) >= 30 or time.monotonic() - begun > 5.0, DEADLINE_S)
            assert len(received) >= 27
        finally:
            sender.kill()


def test_a_lock_of_no_file_is_passed_over(tmp_path: Path) -> None:
    """As the kernel writes a lock whose file it cannot name (fs/locks.c, lock_get_status)."""
    port, told = tmp_path / "port", tmp_path / "locks"
    with port.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told.write_text("1: LEASE  ACTIVE    READ  77 <none>:0 0 EOF\n" + Path("/proc/locks").read_text())
        assert neighbours._processes([port], told) == {os.getpid() & 0xFFFF}
