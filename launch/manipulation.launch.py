"""Starts what makes a robot follow an instruction; `ros2 launch ... --show-args` lists the arguments."""

from __future__ import annotations

from launch import LaunchDescription
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table
from vega3d_ros.bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description(ARGUMENTS, node_table)
