"""RViz beside the robot: the processes that rviz:=true adds, where they are installed."""

from __future__ import annotations

import os
from pathlib import Path

from policies.types import VegaError
from vega3d_ros.control.resources import resolve, share_folder

URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"


def installed(package: str, executable: str) -> Path:
    """The program of a ROS package, in any of the sourced prefixes.  Raises VegaError."""
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        path = Path(prefix) / "lib" / package / executable
        if os.access(path, os.X_OK):
            return path
    raise VegaError(
        f"rviz:=true needs the ROS package {package}, which is not installed or not sourced: install "
        f"ros-<distro>-{package.replace('_', '-')}, or leave rviz out."
    )


def rviz_file() -> Path:
    """Cameras, robot and frames, as RViz shows them."""
    return share_folder() / "config" / "rviz" / "vega3d.rviz"


def simulated_description() -> str:
    """The URDF of the simulated arm, whose links robot_state_publisher moves; a real arm's driver starts its own."""
    return resolve(URDF).read_text(encoding="utf-8")
