"""The robots' parameter files: policy_node reads every entry, and a real arm's file is a careful one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from rclpy.context import Context
from rclpy.node import Node

from policies.types import FloatArray
from vega3d_ros.parameters.table import FRANKA
from vega3d_ros.ros import node_parameters

FILES = sorted((Path(__file__).resolve().parent.parent / "config" / "robots").glob("*.yaml"))
REAL = [path for path in FILES if path.stem != "libero"]


@pytest.fixture
def context():
    context = Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


def node_of(path: Path, context: Context) -> Node:
    options = ["--ros-args", "--params-file", str(path), "-p", "clock_mode:=realtime"]
    node = Node("robot_file", context=context, cli_args=options, use_global_arguments=False)
    node_parameters.declare(node)
    return node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_entry_is_a_parameter(path, context):
    def names(tree: dict, prefix: str = "") -> list[str]:
        found = []
        for key, value in tree.items():
            found += names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
        return found

    tree = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    node = node_of(path, context)
    node_parameters.read(node)
    for camera in tree["cameras"]:
        node_parameters.read_camera(node, camera)
    of_the_driver = {row.name for row in FRANKA}
    unknown = [name for name in names(tree) if not node.has_parameter(name) and name not in of_the_driver]
    assert not unknown
    node.destroy_node()


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_real_arm_is_dry_stops_for_good_and_rests_within_its_limits(path, context):
    node = node_of(path, context)
    parameters = node_parameters.read(node)
    assert parameters.dry_run and parameters.committed and parameters.after_problem == "deactivate"
    assert parameters.max_age_s <= 0.1 and 0.0 < parameters.policy_timeout_s <= 1.0
    n = len(parameters.joint_names)

    def limit(name: str) -> FloatArray:
        return np.broadcast_to(np.array(parameters.safety[name], dtype=float), (n,))

    margin = limit("position_margin")
    assert np.all(limit("lower") + margin < parameters.home) and np.all(parameters.home < limit("upper") - margin)
    slowest_braking_s = np.max(
        limit("velocity_scale") * limit("velocity") / (limit("acceleration_scale") * limit("acceleration"))
    )
    # After the last command an arm needs one period of 50 ms and its braking time.
    assert parameters.max_age_s + 0.05 + slowest_braking_s < 0.3
    low, high = (np.array(parameters.safety[f"workspace_{end}"]) for end in ("lower", "upper"))
    assert low.shape == (3,) and np.all(low < high)
    for camera in ("agentview", "wrist"):
        assert node_parameters.read_camera(node, camera).max_identical > 0
    node.destroy_node()


# Franka Research 3: its velocity limit shrinks towards the ends of the joint, min(top, sqrt(k (end - q)) - c), rad/s
# (libfranka, include/franka/rate_limiting.h); each row is one joint: top, c, k, lower end, upper end.
FR3_VELOCITY = np.array(
    [
        [2.62, 0.30, 12.00, -2.7501, 2.7501],
        [2.62, 0.20, 5.17, -1.7918, 1.7918],
        [2.62, 0.20, 7.00, -2.9065, 2.9065],
        [2.62, 0.30, 8.00, -3.0481, -0.1458],
        [5.26, 0.35, 34.00, -2.8101, 2.8101],
        [4.18, 0.35, 11.00, 0.54092, 4.5205],
        [5.26, 0.35, 34.00, -3.0196, 3.0196],
    ]
)


def test_the_fr3_may_keep_its_velocity_limit_up_to_the_ends_of_its_range():
    tree = yaml.safe_load((FILES[0].parent / "franka_fr3.yaml").read_text())["/**"]["ros__parameters"]
    limits = {name: np.array(values) for name, values in tree["safety"].items() if name != "mode"}
    top, c, k, low_end, high_end = FR3_VELOCITY.T
    assert np.all(limits["velocity"] <= top) and np.all(limits["acceleration"] <= 10.0)
    for to_the_end in (limits["lower"] - low_end, high_end - limits["upper"]):
        assert np.all(np.sqrt(k * to_the_end) - c >= limits["velocity"] - 1e-3)
