"""Versions and render devices that users bring: one sentence before anything runs, or a device that draws."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from policies.types import VegaError
from sim import demo, run_libero, run_robosuite
from sim.worlds.installation import check_versions

ROOT = Path(__file__).resolve().parent.parent


def pretend(monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else real(name))


@pytest.mark.parametrize(
    ("package", "version", "remedy"),
    [
        ("mujoco", "3.8.1", "pip install mujoco==3.3.2"),
        ("mujoco", "3.3.3", "pip install mujoco==3.3.2"),
        ("mujoco", "4.0.0", "pip install mujoco==3.3.2"),
        ("mujoco", "4.0.1rc1", "pip install mujoco==3.3.2"),
        ("mujoco", "2.3.7", "pip install mujoco==3.3.2"),
        ("robosuite", "1.5.1", "pip install robosuite==1.4.0"),
        ("robosuite", "1.3.0", "pip install robosuite==1.4.0"),
    ],
)
def test_another_version_is_one_sentence_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, version: str, remedy: str
) -> None:
    pretend(monkeypatch, package, version)
    for main, status in ((run_libero.main, 2), (run_robosuite.main, 2), (demo.main, 1)):
        assert main([]) == status
        said = capsys.readouterr()
        (line,) = said.err.strip().splitlines()
        assert version in line and line.endswith(f"{remedy}.") and not said.out


@pytest.mark.parametrize(("package", "version"), [("mujoco", "3.3.2"), ("mujoco", "3.2.7"), ("robosuite", "1.4.1")])
def test_versions_that_do_not_change_pictures_are_taken(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str
) -> None:
    pretend(monkeypatch, package, version)
    check_versions()


def test_a_missing_simulator_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(VegaError, match=r"pip install mujoco==3\.3\.2"):
        check_versions()


# Every variable in one process: a picture costs seconds, and each scene gets a context of its own.
PROBE = """
import os, sys
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.robosuite_env import RobosuiteEnvironment
for visible in ("0", "7", "", "GPU-5ebe9b6a-0d5c", "-1", "3,1"):
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    for make in (lambda: LiberoEnvironment("libero_object", 0), lambda: RobosuiteEnvironment(0)):
        environment = make()
        environment.reset(1)
        print(visible, environment.render(environment.cameras[0]).mean())
        environment.close()
        if visible not in ("7", ""):
            break
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible and "MUJOCO_EGL_DEVICE_ID" not in os.environ
"""


@pytest.mark.skipif(os.environ.get("MUJOCO_GL", "egl") != "egl", reason="only EGL has devices")
def test_whatever_cuda_shall_see_a_device_that_exists_draws() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_EGL_DEVICE_ID"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    drawn = [line.split()[-1] for line in run.stdout.splitlines()]
    assert len(drawn) == 8 and all(10 < float(mean) < 245 for mean in drawn)


def test_a_render_device_that_does_not_exist_is_one_sentence() -> None:
    probe = "from sim.worlds.libero_env import LiberoEnvironment; LiberoEnvironment('libero_object', 0)"
    environment = {**os.environ, "MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}
    run = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.stderr.strip().splitlines()[-1].startswith("policies.types.VegaError: MUJOCO_EGL_DEVICE_ID is '99'")
