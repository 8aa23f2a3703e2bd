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
RMEM_MAX = Path("/proc/sys/net/core/rmem_max")
UDP_BUFFER = 4 * 2**20  # bytes that must be allowed for large pictures to cross by UDP
# s after joining a domain until everybody in it is known.  Fast DDS announces a process every 3 s unless its profile
# says otherwise (leaseAnnouncement), and it may take that one announcement.
DISCOVERY_S = 4.0
# Generation of Fast DDS -> its library, and the variable it reads: 2 is that of Humble and Jazzy, 3 that of Kilted and
# later, which reads the other's too and warns of it.
_LIBRARIES = {2: "libfastrtps.so", 3: "libfastdds.so"}
_PROFILE_NAMES = {2: "FASTRTPS_DEFAULT_PROFILES_FILE", 3: "FASTDDS_DEFAULT_PROFILES_FILE"}


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
    return any((folder / f"lib{name}.so").exists() for folder in _library_folders())


def _library_folders() -> list[Path]:
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders += [Path(prefix) / "lib" for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    return [*folders, Path(sys.prefix) / "lib"]


def fast_dds_generation() -> int:
    """2 or 3: whose shared memory this process can use, and whose variable it reads; 0 where neither is found."""
    for folder in _library_folders():
        for generation, library in _LIBRARIES.items():
            if any(folder.glob(f"{library}*")):
                return generation
    return 0


def apply_defaults(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Set what the user left unset; returns what was set.

    A user who widens ROS_AUTOMATIC_DISCOVERY_RANGE gets the same shared memory without the
    restriction of UDP to 127.0.0.1.  A profile that is given under the name of another generation of Fast DDS counts.
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
    generation = fast_dds_generation()
    wanted = [_PROFILE_NAMES[generation]] if generation else list(_PROFILE_NAMES.values())
    given = next((environ[name] for name in (*wanted, *_PROFILE_NAMES.values()) if name in environ), None)
    profile = given or str(own_profile("fastdds_local.xml" if local else "fastdds_network.xml"))
    chosen.update({name: profile for name in wanted if name not in environ})
    environ.update(chosen)
    return chosen


def own_profile(name: str) -> Path:
    """A DDS profile of this package."""
    return share_folder() / "config" / "dds" / name


def udp_remedy(environ: Mapping[str, str] | None = None) -> str:
    """What keeps large pictures that come by UDP from being lost; '' where it is done already."""
    environ = os.environ if environ is None else environ
    try:
        allowed = int(RMEM_MAX.read_text())
    except (OSError, ValueError):
        allowed = UDP_BUFFER  # a system that cannot tell
    if allowed < UDP_BUFFER:
        return f"sudo sysctl net.core.rmem_max={UDP_BUFFER}, before anything starts (it is {allowed})"
    ours = {str(path) for path in own_profile("").glob("*.xml")}
    theirs = [environ[name] for name in _PROFILE_NAMES.values() if environ.get(name)]
    if theirs and theirs[0] not in ours:
        return f"set receiveBufferSize of the UDP transport in {theirs[0]}, as config/dds/fastdds_local.xml does"
    return ""
