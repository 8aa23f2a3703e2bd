"""Starts what answers questions about a scene, with no policy; `ros2 launch ... --show-args` lists the arguments."""

from __future__ import annotations

from launch import LaunchDescription
from vega3d_ros.bringup.launching import launch_description
from vega3d_ros.bringup.scene import ARGUMENTS, scene_table


def generate_launch_description() -> LaunchDescription:
    return launch_description(ARGUMENTS, scene_table)
