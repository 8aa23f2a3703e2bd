"""DDS settings of every process we start: nothing leaves the machine, and large images arrive.

Fast DDS loses best-effort images above half a megabyte silently, because its shared-memory segment
is smaller than the image; the profiles in `config/dds/` enlarge it.  They also announce a process six
times as often as Fast DDS does, since one that joins may miss the others until they are announced
again.  Call `apply_defaults()` before rclpy is imported.  What the user has set stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from policies.types import VegaError
from vega3d_ros.control.resources import share_folder

_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
# s after joining a domain until everybody in it is known.  Fast DDS announces a process every 3 s unless its profile
# says otherwise (leaseAnnouncement), and it may take that one announcement.
DISCOVERY_S = 4.0
# Fast DDS 2 (Humble, Jazzy) reads only the second name, Fast DDS 3 (Kilted and later) the first.
_PROFILE_NAMES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


def check_middleware(environ: Mapping[str, str] | None = None) -> None:
    """Raise VegaError where RMW_IMPLEMENTATION names a middleware that is not installed.

    rclpy would end the process with status 102 and no sentence.
    """
    chosen = (os.environ if environ is None else environ).get("RMW_IMPLEMENTATION", "")
    if not chosen or _has_library(chosen):
        return
    raise VegaError(
        f"RMW_IMPLEMENTATION is {chosen}, which is not installed (the ROS wheels bring rmw_fastrtps_cpp only): unset "
        f"it, or install ros-<distro>-{chosen.replace('_', '-')} and source ROS 2."
    )


def require_middleware() -> None:
    """`check_middleware` before rclpy is imported, which would end the process itself: with the sentence, status 1."""
    try:
        check_middleware()
    except VegaError as error:
        raise SystemExit(str(error)) from error


def check_discovery(environ: Mapping[str, str] | None = None) -> None:
    """Raise VegaError where the user has switched off that nodes find each other."""
    if (os.environ if environ is None else environ).get(_RANGE, "").upper() == "OFF":
        raise VegaError(f"{_RANGE} is OFF, so that no node finds another: unset it, or set it to LOCALHOST.")


@contextlib.contextmanager
def discovery_off() -> Iterator[None]:
    """Participants that are made meanwhile find nobody and are found by nobody."""
    before = os.environ.get(_RANGE)
    os.environ[_RANGE] = "OFF"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RANGE]
        else:
            os.environ[_RANGE] = before


def _has_library(name: str) -> bool:
    """Whether lib<name>.so is in a folder where the loader of ROS looks, or in a package of the wheels."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders += [Path(prefix) / "lib" for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    folders.append(Path(sys.prefix) / "lib")
    return any((folder / f"lib{name}.so").exists() for folder in folders)


def apply_defaults(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Set what the user left unset; returns what was set.

    A user who widens ROS_AUTOMATIC_DISCOVERY_RANGE gets the same shared memory without the
    restriction of UDP to 127.0.0.1.
    """
    environ = os.environ if environ is None else environ
    chosen: dict[str, str] = {}
    humble = environ.get("ROS_DISTRO") == "humble"
    if humble and "ROS_LOCALHOST_ONLY" not in environ:
        chosen["ROS_LOCALHOST_ONLY"] = "1"
    if not humble and _RANGE not in environ:
        chosen[_RANGE] = "LOCALHOST"
    if humble:
        local = chosen.get("ROS_LOCALHOST_ONLY", environ.get("ROS_LOCALHOST_ONLY")) == "1"
    else:
        local = chosen.get(_RANGE, environ.get(_RANGE)) in ("LOCALHOST", "OFF")
    if not any(name in environ for name in _PROFILE_NAMES):
        profile = "fastdds_local.xml" if local else "fastdds_network.xml"
        chosen.update(dict.fromkeys(_PROFILE_NAMES, str(share_folder() / "config" / "dds" / profile)))
    environ.update(chosen)
    return chosen
