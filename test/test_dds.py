"""The DDS defaults: what they set, what they leave, and that they do what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.ros_transport import images_between_processes
from policies.types import VegaError
from sim.robot.ros_client import RosClient
from vega3d_ros.ros import dds
from vega3d_ros.ros.dds import DISCOVERY_S, UDP_BUFFER, apply_defaults, check_middleware, discovery_off

NAMESPACE = {"d": "http://www.eprosima.com"}
NAMES = {2: "FASTRTPS_DEFAULT_PROFILES_FILE", 3: "FASTDDS_DEFAULT_PROFILES_FILE"}
READ = NAMES[dds.fast_dds_generation() or 2]  # by what is installed here


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
    profile = ET.parse(environ[READ])
    addresses = [item.text for item in profile.iterfind(".//d:interfaceWhiteList/d:address", NAMESPACE)]
    assert addresses == ["127.0.0.1"]
    assert int(profile.findtext(".//d:segment_size", "0", NAMESPACE)) >= 16 * 2**20
    assert profile.findtext(".//d:useBuiltinTransports", "", NAMESPACE) == "false"
    assert int(profile.findtext(".//d:receiveBufferSize", "0", NAMESPACE)) >= UDP_BUFFER
    assert announced_every_s(profile) < DISCOVERY_S / 2


@pytest.mark.parametrize("scope", ["SUBNET", "SYSTEM_DEFAULT"])
def test_who_asks_for_the_network_gets_it_with_the_large_segment(scope):
    environ = {"ROS_AUTOMATIC_DISCOVERY_RANGE": scope}
    apply_defaults(environ)
    assert environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == scope
    profile = ET.parse(environ[READ])
    assert profile.find(".//d:interfaceWhiteList", NAMESPACE) is None
    assert int(profile.findtext(".//d:segment_size", "0", NAMESPACE)) >= 16 * 2**20
    assert announced_every_s(profile) < DISCOVERY_S / 2


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("given", [2, 3])
def test_a_profile_of_the_users_own_is_kept_and_read(generation, given, monkeypatch):
    """Fast DDS 2 reads one name only, 3 warns of that name: only what is read is set, to what the user has chosen."""
    monkeypatch.setattr(dds, "fast_dds_generation", lambda: generation)
    environ = {NAMES[given]: "/my/profile.xml"}
    added = {} if generation == given else {NAMES[generation]: "/my/profile.xml"}
    assert apply_defaults(environ) == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **added}
    assert environ[NAMES[given]] == environ[NAMES[generation]] == "/my/profile.xml"
    environ = {}
    apply_defaults(environ)
    assert NAMES[generation] in environ and NAMES[5 - generation] not in environ


def test_the_generation_is_that_of_the_library_that_is_loaded(tmp_path, monkeypatch):
    environ: dict[str, str] = {}
    apply_defaults(environ)
    maps = Path("/proc/self/maps").read_text()  # rclpy is imported here
    loaded = 3 if "libfastdds.so" in maps else 2 if "libfastrtps.so" in maps else pytest.skip("another middleware")
    assert dds.fast_dds_generation() == loaded
    (tmp_path / "libfastdds.so.3.2").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert dds.fast_dds_generation() == 3, "what the loader finds first"


@pytest.mark.parametrize(
    ("allowed", "profile", "said"),
    [
        ("212992", None, "sysctl net.core.rmem_max=4194304, before anything starts (it is 212992)"),
        ("4194304", None, ""),
        ("4194304", "/my/profile.xml", "receiveBufferSize of the UDP transport in /my/profile.xml"),
    ],
)
def test_what_loses_pictures_that_come_by_udp_is_named(allowed, profile, said, tmp_path, monkeypatch):
    (tmp_path / "rmem_max").write_text(f"{allowed}\n")
    monkeypatch.setattr(dds, "RMEM_MAX", tmp_path / "rmem_max")
    environ = {} if profile is None else {READ: profile}
    apply_defaults(environ)
    assert said in dds.udp_remedy(environ)
    assert bool(dds.udp_remedy(environ)) == bool(said)


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
