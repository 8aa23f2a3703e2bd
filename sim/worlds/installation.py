"""What must be right before a simulator is imported: versions that give the published pictures, a device that draws."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from policies.types import VegaError

# docs/simulator.md has the measurements.
MUJOCO_FIRST, MUJOCO_BEYOND, MUJOCO = (3, 0), (3, 3, 3), "3.3.2"
ROBOSUITE_SERIES, ROBOSUITE = (1, 4), "1.4.0"
EGL, CUDA = "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"
OTHER_RENDERERS = ("osmesa", "glx")


def check_versions() -> None:
    """Raise VegaError unless MuJoCo and robosuite are those with which results can be compared.  Imports neither."""
    mujoco = _version("mujoco", MUJOCO)
    if not MUJOCO_FIRST <= mujoco < MUJOCO_BEYOND:
        raise VegaError(
            f"MuJoCo {metadata.version('mujoco')} is installed, but from 3.3.3 on it draws the pictures that policies "
            f"were trained on differently, and newer ones break LIBERO: pip install mujoco=={MUJOCO}."
        )
    robosuite = _version("robosuite", ROBOSUITE)
    if robosuite[:2] != ROBOSUITE_SERIES:
        raise VegaError(
            f"robosuite {metadata.version('robosuite')} is installed, but LIBERO needs the classes and controllers of "
            f"1.4: pip install robosuite=={ROBOSUITE}."
        )


def _version(package: str, wanted: str) -> tuple[int, ...]:
    try:
        text = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise VegaError(f"The simulator needs {package}: pip install {package}=={wanted}.") from error
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def renderer() -> str:
    """What draws the pictures, as robosuite reads MUJOCO_GL: with another one pixels differ."""
    named = os.environ.get("MUJOCO_GL", "")
    return named if named in OTHER_RENDERERS else "egl"  # of whatever else is said there it makes that itself


@contextlib.contextmanager
def render_device() -> Iterator[None]:
    """While a scene is built: robosuite draws on a device that exists.

    robosuite 1.4 takes the first number of CUDA_VISIBLE_DEVICES for the number of an EGL device, which it need not be,
    and fails where that is empty or an id.  Both variables are afterwards as before; what was built keeps its device.
    Raises VegaError where MUJOCO_EGL_DEVICE_ID, which is the user's own word, names none.
    """
    if os.environ.get("MUJOCO_GL", "egl").lower() != "egl":
        yield
        return
    before = {name: os.environ.pop(name, None) for name in (EGL, CUDA)}
    try:
        os.environ[EGL] = str(_choose(before[EGL], before[CUDA]))
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _choose(own: str | None, cuda: str | None) -> int:
    """Index of the EGL device to draw on."""
    from mujoco.egl import egl_ext

    devices = egl_ext.eglQueryDevicesEXT()
    if own:
        if not own.isdigit() or int(own) >= len(devices):
            raise VegaError(
                f"{EGL} is '{own}', but this machine's render devices are 0 to {len(devices) - 1}: give one of them, "
                "or unset it."
            )
        return int(own)
    first = (cuda or "").split(",")[0].strip()
    wanted = [int(first)] if first.isdigit() and int(first) < len(devices) else []
    for index in (*wanted, *range(len(devices))):
        if _works(egl_ext, devices[index]):
            return index
    return 0  # robosuite says why it cannot


def _works(egl_ext: Any, device: Any) -> bool:
    try:
        display = egl_ext.eglGetPlatformDisplayEXT(egl_ext.EGL_PLATFORM_DEVICE_EXT, device, None)
        return bool(display != egl_ext.EGL_NO_DISPLAY and egl_ext.eglInitialize(display, None, None))
    except Exception:  # OpenGL's own, of a class that lives in PyOpenGL
        return False
