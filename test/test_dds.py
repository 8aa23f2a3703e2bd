"""The DDS defaults: what they set, what they leave, and that they do what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

from benchmarks.ros_transport import images_between_processes
from policies.types import VegaError
from sim.robot.ros_client import RosClient
from vega3d_ros.ros.dds import DISCOVERY_S, apply_defaults, check_middleware, discovery_off

NAMESPACE = {"d": "http://www.eprosima.com"}


def announced_every_s(profile: ET.ElementTree) -> float:
    """How often a process makes itself known to those who missed it when they joined."""
    announcement = profile.find(".//d:leaseAnnouncement", NAMESPACE)
    assert announcement is not None
    seconds, nanoseconds = (float(announcement.findtext(f"d:{unit}", "0", NAMESPACE)) for unit in ("sec", "nanosec"))
    return seconds + 1e-9 * nanoseconds


def test_an_empty_environment_stays_on_this_machine():
    environ: dict[str, str] = {}
    apply_defaults(environ)
    assert environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    profile = ET.parse(environ["FASTDDS_DEFAULT_PROFILES_FILE"])
    addresses = [item.text for item in profile.iterfind(".//d:interfaceWhiteList/d:address", NAMESPACE)]
    assert addresses == ["127.0.0.1"]
    assert int(profile.findtext(".//d:segment_size", "0", NAMESPACE)) >= 16 * 2**20
    assert profile.findtext(".//d:useBuiltinTransports", "", NAMESPACE) == "false"
    assert announced_every_s(profile) < DISCOVERY_S / 2


@pytest.mark.parametrize("scope", ["SUBNET", "SYSTEM_DEFAULT"])
def test_who_asks_for_the_network_gets_it_with_the_large_segment(scope):
    environ = {"ROS_AUTOMATIC_DISCOVERY_RANGE": scope}
    apply_defaults(environ)
    assert environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == scope
    profile = ET.parse(environ["FASTDDS_DEFAULT_PROFILES_FILE"])
    assert profile.find(".//d:interfaceWhiteList", NAMESPACE) is None
    assert int(profile.findtext(".//d:segment_size", "0", NAMESPACE)) >= 16 * 2**20
    assert announced_every_s(profile) < DISCOVERY_S / 2


@pytest.mark.parametrize("name", ["FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"])
def test_a_profile_of_the_users_own_is_kept(name):
    environ = {name: "/my/profile.xml"}
    assert apply_defaults(environ) == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    assert environ[name] == "/my/profile.xml"


def test_humble_gets_the_names_it_knows():
    environ = {"ROS_DISTRO": "humble"}
    chosen = apply_defaults(environ)
    assert chosen["ROS_LOCALHOST_ONLY"] == "1" and "FASTRTPS_DEFAULT_PROFILES_FILE" in chosen
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in chosen


def test_large_best_effort_images_arrive_between_processes():
    """640x480 rgb8, which the default segment of 512 kB loses nearly all of; slow enough for a busy machine."""
    counts = images_between_processes(rate_hz=10, seconds=3)
    assert counts["sent"] >= 60
    assert counts["received"] >= 0.95 * counts["sent"], counts


@pytest.mark.parametrize(
    "module",
    [f"vega3d_ros.{name}" for name in ("node.policy_node", "bringup.check_robot", "bringup.bringup")]
    + ["sim.robot.sim_node"],
)
def test_a_middleware_that_is_not_installed_is_one_sentence_instead_of_status_102(module):
    environment = {**os.environ, "RMW_IMPLEMENTATION": "rmw_nobodys_cpp"}
    environment.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    command = [sys.executable, "-m", module, "robot:=libero"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    said = run.stderr.strip().splitlines()
    assert run.returncode == 1 and len(said) == 1, run.stderr
    assert "RMW_IMPLEMENTATION is rmw_nobodys_cpp, which is not installed" in said[0] and "unset it" in said[0]


def test_the_middleware_that_is_installed_passes(monkeypatch):
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    check_middleware()


def test_nodes_that_are_forbidden_to_find_each_other_are_not_waited_for(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    with pytest.raises(VegaError, match=r"ROS_AUTOMATIC_DISCOVERY_RANGE is OFF.*unset it"):
        RosClient("nobody", 1)
    command = [sys.executable, "-m", "vega3d_ros.bringup.bringup", "robot:=libero"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = run.stderr.strip().splitlines()
    assert run.returncode == 1 and len(said) == 1 and "ROS_AUTOMATIC_DISCOVERY_RANGE is OFF" in said[0], run.stderr


@pytest.mark.parametrize("before", [None, "SUBNET"])
def test_discovery_is_off_for_as_long_as_it_is_asked_for(monkeypatch, before):
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE")
    if before is not None:
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", before)
    with pytest.raises(KeyError), discovery_off():
        assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "OFF"
        raise KeyError
    assert os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == before
