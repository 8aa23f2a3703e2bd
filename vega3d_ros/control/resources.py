"""Where this package's own files lie, and files named in parameters.

A parameter names a file as `package://<package>/<path>` or as a plain path.
"""

from __future__ import annotations

import sys
from pathlib import Path

from policies.types import VegaError

PACKAGE = "vega3d_ros"
_SCHEME = "package://"
_SHOWN = 80


def share_folder() -> Path:
    """The folder that holds config/ and launch/: the checkout if run from one, else the installed share.

    Raises VegaError if neither is there.
    """
    source = Path(__file__).resolve().parents[2]
    # The ROS wheels set no AMENT_PREFIX_PATH; pip puts the data files under the environment's prefix, and colcon
    # puts them beside the lib folder that holds this module.
    candidates = [source, *(parent / "share" / PACKAGE for parent in source.parents)]
    candidates.append(Path(sys.prefix) / "share" / PACKAGE)
    for candidate in candidates:
        if (candidate / "config" / "robots").is_dir():
            return candidate
    raise VegaError(f"The configuration files of {PACKAGE} are missing: install it again with 'pip install .'.")


def resolve(path: str) -> Path:
    """The file that `path` names; other packages are found through the ament index.

    Raises VegaError if there is no such file.
    """
    try:
        found = _named(path)
        if found.is_file():
            return found
        folder = found.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long; nobody's home; with a zero byte
        shown = path if len(path) <= _SHOWN else f"{path[: _SHOWN - 3]}..."
        raise VegaError(f"{shown!r} is no name of a file: give the path of one.") from error
    if folder:
        raise VegaError(f"{found} is a folder: give a file in it in place of '{path}'.")
    raise VegaError(f"The file {found} does not exist: correct '{path}'.")


def read_urdf(named: str) -> str:
    """The text of the URDF that the parameter robot_description names, as `resolve` takes it.  Raises VegaError."""
    if named.lstrip().startswith("<"):
        raise VegaError(
            "robot_description holds the URDF itself: give the path of a file, or leave it empty and let "
            "robot_state_publisher publish it."
        )
    try:
        return resolve(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VegaError(f"The robot description {named} cannot be read ({error}): correct it.") from error


def _named(path: str) -> Path:
    if path.startswith(_SCHEME):
        package, _, rest = path[len(_SCHEME) :].partition("/")
        return (share_folder() if package == PACKAGE else _ament_share(package)) / rest
    return Path(path).expanduser()


def _ament_share(package: str) -> Path:
    try:
        from ament_index_python.packages import get_package_share_directory

        return Path(get_package_share_directory(package))
    except (ImportError, LookupError, OSError, ValueError) as error:
        raise VegaError(f"The ROS package '{package}' is not installed: install it or give a plain path.") from error
