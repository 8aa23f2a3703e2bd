"""What all tests share: an environment in which nothing leaves the machine, and the installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Before rclpy, MuJoCo or torch is imported anywhere.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a property test says must not depend on how fast the machine is, or on what else it does.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


@dataclass(frozen=True)
class Installation:
    """The package as `pip install .` leaves it in a prefix of its own."""

    prefix: Path

    @property
    def site_packages(self) -> Path:
        return self.prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    @property
    def share(self) -> Path:
        return self.prefix / "share" / "vega3d_ros"

    def environment(self) -> dict[str, str]:
        """Variables with which Python and the ament index find it, the checkout left aside."""
        prefixes = [str(self.prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH")])]
        paths = [str(self.site_packages), *filter(None, [os.environ.get("PYTHONPATH")])]
        programs = [str(self.prefix / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        return {
            **os.environ,
            "AMENT_PREFIX_PATH": os.pathsep.join(prefixes),
            "PYTHONPATH": os.pathsep.join(paths),
            "PATH": os.pathsep.join(programs),
        }


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installation")
    # pip writes build folders into the source tree, so it gets a tree of its own.
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "install", "log", "outputs", "data")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--ignore-installed"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--prefix", str(folder / "prefix")]
    subprocess.run([*command, str(folder / "source")], check=True, timeout=300)
    return Installation(folder / "prefix")
