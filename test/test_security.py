"""Nothing leaves the machine unless it is asked for, and enforced security is never skipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sim.robot.ros_client import unused_domain
from vega3d_ros.inference.process import ChildProcess

ROOT = Path(__file__).resolve().parent.parent
POLICY = ROOT / "config" / "security" / "policy.xml"
DEADLINE_S = 120.0

# In a namespace of its own: an interface that everything not for this machine would go through.  Without addrgenmode
# none the kernel itself would send IPv6 neighbour solicitations.
IN_NAMESPACE = """
set -e
ip link set lo up
ip link add out0 type veth peer name in0
ip link set out0 addrgenmode none
ip link set in0 addrgenmode none
ip link set in0 up
ip addr add 10.9.8.7/24 dev out0
ip link set out0 up multicast on
ip route add default dev out0
python=$1; shift
sent() { awk '$1 == "out0:" { print $11 }' /proc/net/dev; }
before=$(sent)
"$python" "$@"
after=$(sent)
echo "packets $((after - before))"
"""
# Two processes find each other and exchange a message, so that silence cannot come from DDS not running.
TALK = """
import os, subprocess, sys, time
from vega3d_ros.ros.dds import apply_defaults
print(apply_defaults(), file=sys.stderr)
import rclpy
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node('talker' if len(sys.argv) > 1 else 'listener')
if len(sys.argv) > 1:
    publisher = node.create_publisher(String, 'words', 1)
    while True:
        publisher.publish(String(data='x'))
        rclpy.spin_once(node, timeout_sec=0.1)
heard = []
node.create_subscription(String, 'words', heard.append, 1)
talker = subprocess.Popen([sys.executable, __file__, 'talk'])
deadline = time.monotonic() + 60
while not heard and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.2)
talker.kill()
talker.wait()
print('heard', len(heard))
"""


def namespaces() -> bool:
    command = ["unshare", "--net", "sh", "-c", "ip link add out0 type veth peer name in0"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def packets(tmp_path: Path, **variables: str) -> tuple[int, int]:
    """Packets on the way out while two of our processes talk, and the messages heard (0 or more)."""
    script = tmp_path / "talk.py"
    script.write_text(TALK)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROS_", "FASTDDS", "FASTRTPS", "RMW"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "ROS_DOMAIN_ID": str(unused_domain()), **variables}
    command = ["unshare", "--net", "sh", "-c", IN_NAMESPACE, "sh", sys.executable, str(script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.search(r"heard (\d+)\s+packets (\d+)", run.stdout)
    assert found, run.stdout + run.stderr
    return int(found[2]), int(found[1])


@pytest.mark.skipif(not namespaces(), reason="network namespaces are not permitted here")
def test_no_packet_leaves_the_machine_by_default_and_some_do_when_asked_for(tmp_path):
    sent, heard = packets(tmp_path)
    assert heard > 0, "the two processes did not talk at all"
    assert sent == 0
    sent, _ = packets(tmp_path, ROS_AUTOMATIC_DISCOVERY_RANGE="SUBNET")
    assert sent > 0, "the counter would not have seen a packet"


@pytest.mark.parametrize("keystore", ["missing", "empty"])
def test_a_node_that_cannot_be_secure_does_not_start(tmp_path, keystore):
    if keystore == "empty":
        (tmp_path / "missing" / "enclaves" / "vega3d" / "policy_node").mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ROS_DOMAIN_ID": str(unused_domain()),
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path / "missing"),
    }
    command = [sys.executable, "-m", "vega3d_ros.node.policy_node", "--ros-args", "--enclave", "/vega3d/policy_node"]
    with ChildProcess("policy_node", command, environment=environment, on_line=None) as child:
        assert child.wait(DEADLINE_S) == 1
        assert any("ecurity" in line or "SECURITY" in line for line in child.tail(50)), child.tail(50)


def test_the_policy_file_lists_what_the_node_offers():
    root = ElementTree.parse(POLICY).getroot()
    profile = root.find(".//profile[@node='policy_node']")
    assert profile is not None
    services = {element.text for element in profile.iterfind("services[@reply='ALLOW']/service")}
    others = {ROOT / "vega3d_ros" / name for name in ("driver", "scene")}
    files = (path for path in (ROOT / "vega3d_ros").rglob("*.py") if not others & set(path.parents))
    sources = "".join(path.read_text() for path in files)
    offered = set(re.findall(r'create_service\(Trigger, "(~/\w+)"', sources))
    assert len(offered) == 4 and offered <= services
    assert "~/set_parameters" not in services
    told = {element.text for element in profile.iterfind("topics[@publish='ALLOW']/topic")}
    published = set(re.findall(r'create_publisher\(\w+, "(~/\w+)"', sources))
    assert {"~/heartbeat", "~/decisions"} <= published <= told
    heard = {element.text for element in profile.iterfind("topics[@subscribe='ALLOW']/topic")}
    assert {"joint_states", "instruction", "e_stop", "robot_description"} <= heard
