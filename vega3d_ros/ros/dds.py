"""DDS settings of every process we start: nothing leaves the machine, and large images arrive.

Fast DDS loses best-effort images above half a megabyte silently, because its shared-memory segment
is smaller than the image; the profiles in `config/dds/` enlarge it.  They also announce a process six
times as often as Fast DDS does, since one that joins may miss the others until they are announced
again.  Call `apply_defaults()` before rclpy is imported.  What the user has set stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from vega3d_ros.control.resources import share_folder

_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
# s after joining a domain until everybody in it is known.  Fast DDS announces a process every 3 s unless its profile
# says otherwise (leaseAnnouncement), and it may take that one announcement.
DISCOVERY_S = 4.0
# Fast DDS 2 (Humble, Jazzy) reads only the second name, Fast DDS 3 (Kilted and later) the first.
_PROFILE_NAMES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


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
