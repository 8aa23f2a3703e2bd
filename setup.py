"""Installs the Python packages, and the launch, configuration and executable files of the ROS package."""

from pathlib import Path

from setuptools import setup

NAME = "vega3d_ros"
VERSION = "0.1.0"
ROOT = Path(__file__).parent


def requirements(name):
    """Lines of requirements/<name>.in."""
    lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def python_packages():
    """Every folder with Python modules below our top-level packages, those without __init__.py too."""
    found = {
        path.parent.relative_to(ROOT)
        for top in (NAME, "policies", "sim", "benchmarks")
        for path in (ROOT / top).rglob("*.py")
    }
    return sorted(".".join(folder.parts) for folder in found)


def data_folder(folder):
    """(target, files) pairs that install a folder below share/<package>, its subfolders included."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    parents = sorted({path.parent for path in files if "__pycache__" not in path.parts})
    return [(f"share/{NAME}/{parent}", [str(path) for path in files if path.parent == parent]) for parent in parents]


setup(
    name=NAME,
    version=VERSION,
    packages=python_packages(),
    package_data={
        "": ["py.typed"],
        "sim.demonstrations.skills": ["*.json"],
        "policies": ["vega_*/**/*.safetensors", "vega_*/**/*.json", "vega_*/README.md"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        # pip puts console scripts into bin/, where `ros2 run` and the launch system do not look.
        (f"lib/{NAME}", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts" / "lib").iterdir())),
        *data_folder("launch"),
        *data_folder("config"),
    ],
    python_requires=">=3.10",
    install_requires=requirements("core"),
    extras_require={
        "policy": requirements("torch") + requirements("policy"),
        "spatial": requirements("spatial"),
        "training": requirements("training"),
        "prior": requirements("prior"),
        "sim": requirements("sim"),
        "ray": requirements("ray"),
        "franka": requirements("franka"),
        "ros-wheels": requirements("ros-wheels"),
        "test": requirements("test"),
    },
    zip_safe=False,
    author="The vega3d_ros authors",
    maintainer="The vega3d_ros authors",
    maintainer_email="vega3d_ros@users.noreply.github.com",
    description="Lets a robot arm follow a written instruction with the geometry-aware VEGA-3D policy.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "vega3d-bringup = vega3d_ros.bringup.bringup:main",
            "vega3d-check-robot = vega3d_ros.bringup.check_robot:main",
            "vega3d-franka-driver = vega3d_ros.driver.franka_driver:main",
            "vega3d-policy-node = vega3d_ros.node.policy_node:main",
            "vega3d-replay = vega3d_ros.recording.replay:main",
            "vega3d-run-libero = sim.run_libero:main",
            "vega3d-scene-node = vega3d_ros.scene.scene_node:main",
            "vega3d-serve = policies.serving.serve:main",
            "vega3d-sim-node = sim.robot.sim_node:main",
        ]
    },
)
