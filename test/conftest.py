"""What all tests share: an environment in which nothing leaves the machine, and the installed package."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import leftovers
import pytest
from hypothesis import HealthCheck, settings
from progress import Progress

ROOT = Path(__file__).resolve().parent.parent

# Before rclpy, MuJoCo or torch is imported anywhere.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before Mesa draws anywhere: it and triton, which torch brings where it is there, each have an LLVM, and the other way
# round the process ends in a segmentation fault.
with contextlib.suppress(ImportError):
    importlib.import_module("triton")

# What a property test says must not depend on how fast the machine is, or on what else it does, nor on the day: the
# same examples each time.  `--hypothesis-profile=search` draws new ones.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", _ANY_SPEED)
settings.register_profile("any speed", _ANY_SPEED, derandomize=True)
settings.load_profile("any speed")


@pytest.fixture(autouse=True)
def _what_decides_who_finds_whom_stays_as_it_was() -> Iterator[None]:
    """A test that leaves it changed makes tests fail that start nodes much later."""
    names = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_DOMAIN_ID", "RMW_IMPLEMENTATION")
    before = {name: os.environ.get(name) for name in names}
    yield
    after = {name: os.environ.get(name) for name in names}
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})
    assert after == before


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # of pytest-xdist: who started it says where it is, and ends what both leave behind
    config.pluginmanager.register(Progress(config), "progress")
    watcher = leftovers.watch()
    config.add_cleanup(lambda: watcher.communicate(timeout=60.0))


@dataclass(frozen=True)
class Installation:
    """The package as `pip install .` leaves it in an environment of its own that shares our heavy packages."""

    prefix: Path

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return self.prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    @property
    def share(self) -> Path:
        return self.prefix / "share" / "vega3d_ros"

    def environment(self) -> dict[str, str]:
        """Variables as an activated environment has them, the checkout left aside."""
        ours = {str(ROOT), str(ROOT / "test")}
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in ours]
        prefixes = [str(self.prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH")])]
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
    installed = Installation(folder / "environment")
    venv.create(installed.prefix, symlinks=True)
    # What stands in a .pth file is looked up, but its own .pth files are not: the finder of the editable package stays
    # out, and what the others do has to be said.
    others = [folder for folder in site.getsitepackages() if Path(folder).is_dir()]
    hooks = [path for other in others for path in Path(other).glob("*.pth") if not path.name.startswith("__editable")]
    lines = [*others, *(line for hook in hooks for line in hook.read_text().splitlines())]
    (installed.site_packages / "shared.pth").write_text("\n".join(lines) + "\n")
    # pip writes build folders into the source tree, so it gets a tree of its own.
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "install", "log", "outputs", "data")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    command = [str(installed.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--ignore-installed", "--no-deps", "--no-build-isolation", "--no-index", str(folder / "source")]
    subprocess.run(command, check=True, timeout=600, env=installed.environment())
    return installed
