"""A capsule round every piece of a URDF's collision geometry, since distances between capsules cost next to nothing.

Each contains its piece, so that what is said to be free is free; coal's Python module cannot fit them itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import coal
import numpy as np
import pinocchio as pin

from policies.types import FloatArray, VegaError

ROUNDING_M = 1e-6
CIRCLE_STEPS = 200


def collision_pieces(urdf_xml: str, model: pin.Model) -> pin.GeometryModel:
    """The URDF's collision geometry on `model` (all joints).

    Raises VegaError if a mesh is not found or the file has no collision geometry.
    """
    # Pinocchio drops, without a word, all collisions of a link with a <capsule> unless the file has this version.
    root = ET.fromstring(urdf_xml)
    root.set("version", "1.1")
    folders = package_folders()
    try:
        pieces = pin.buildGeomFromUrdfString(
            model, ET.tostring(root, encoding="unicode"), pin.GeometryType.COLLISION, package_dirs=folders
        )
    except (ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise VegaError(
            f"The collision geometry of the robot description cannot be read ({why}): install the package that has its "
            "meshes, or set body.check to false."
        ) from error
    wanted = sum(1 for link in root.iter("link") for _ in link.findall("collision"))
    if pieces.ngeoms == 0 or pieces.ngeoms < wanted:
        raise VegaError(
            f"The robot description has {wanted} pieces of collision geometry, of which {pieces.ngeoms} can be used: "
            "add <collision> to its links, or set body.check to false."
        )
    return pieces


def capsules_round(pieces: pin.GeometryModel) -> pin.GeometryModel:
    """The same pieces, each replaced by its capsule.  Raises VegaError on a shape that is not known."""
    capsules = pin.GeometryModel()
    for piece in pieces.geometryObjects:
        radius, length, placement = _capsule_of(piece.geometry)
        capsules.addGeometryObject(
            pin.GeometryObject(
                piece.name,
                piece.parentJoint,
                piece.parentFrame,
                piece.placement * placement,
                coal.Capsule(radius, length),
            )
        )
    return capsules


def package_folders() -> list[str]:
    """Where `package://` may lead: the share folders of what is sourced, and ROS_PACKAGE_PATH."""
    shares = [str(Path(prefix) / "share") for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]
    return [*shares, *filter(None, os.environ.get("ROS_PACKAGE_PATH", "").split(os.pathsep))]


def fit_capsule(points: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """The smallest of a few capsules round points (k, 3) m: radius m, and the two ends (3,) of its axis."""
    centre = points.mean(axis=0)
    _, _, principal = np.linalg.svd(points - centre, full_matrices=False)
    best: tuple[float, float, FloatArray, FloatArray] | None = None
    for axis in (*principal, *np.eye(3)):
        along = points @ axis
        flat = points - np.outer(along, axis)
        middle = _circle_centre(flat)
        off = np.linalg.norm(flat - middle, axis=1)
        radius = float(off.max()) + ROUNDING_M
        # A point at this height reaches so far into the half sphere at either end.
        reach = np.sqrt(radius**2 - off**2)
        low, high = float((along + reach).min()), float((along - reach).max())
        if low > high:
            low = high = (low + high) / 2
        volume = np.pi * radius**2 * (high - low) + 4 / 3 * np.pi * radius**3
        if best is None or volume < best[0]:
            best = (volume, radius, middle + low * axis, middle + high * axis)
    assert best is not None
    return best[1], best[2], best[3]


def _circle_centre(flat: FloatArray) -> FloatArray:
    """About the centre of the smallest circle round points (k, 3) in a plane: steps towards the farthest, ever shorter
    (Badoiu and Clarkson, 2003)."""
    centre = flat.mean(axis=0)
    for step in range(1, CIRCLE_STEPS):
        farthest = flat[np.argmax(((flat - centre) ** 2).sum(axis=1))]
        centre = centre + (farthest - centre) / (step + 1)
    return centre


def _capsule_of(shape: object) -> tuple[float, float, pin.SE3]:
    """Radius, length (m) and placement of the capsule round one shape."""
    if isinstance(shape, coal.Sphere):
        return float(shape.radius), 0.0, pin.SE3.Identity()
    if isinstance(shape, coal.Capsule):
        return float(shape.radius), 2 * float(shape.halfLength), pin.SE3.Identity()
    if isinstance(shape, coal.Cylinder):
        points = _ring(float(shape.radius)) + np.array([[[0, 0, shape.halfLength]], [[0, 0, -shape.halfLength]]])
        return _placed(fit_capsule(points.reshape(-1, 3)), _bulge(float(shape.radius)))
    if isinstance(shape, coal.Box):
        signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
        return _placed(fit_capsule(signs * np.asarray(shape.halfSide)))
    if hasattr(shape, "vertices"):  # meshes; Pinocchio has applied their scale
        return _placed(fit_capsule(np.array(shape.vertices(), dtype=float)))
    if hasattr(shape, "points"):
        return _placed(fit_capsule(np.array(shape.points(), dtype=float)))
    raise VegaError(
        f"The robot description has collision geometry of kind {type(shape).__name__}: use mesh, box, sphere, cylinder "
        "or capsule, or set body.check to false."
    )


_SIDES = 64


def _ring(radius: float) -> FloatArray:
    angles = np.arange(_SIDES) * 2 * np.pi / _SIDES
    return radius * np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)


def _bulge(radius: float) -> float:
    """By how much a circle stands out between the corners of `_ring`, m."""
    return radius * (1 - float(np.cos(np.pi / _SIDES)))


def _placed(capsule: tuple[float, FloatArray, FloatArray], more: float = 0.0) -> tuple[float, float, pin.SE3]:
    radius, low, high = capsule
    length = float(np.linalg.norm(high - low))
    axis = (high - low) / length if length > 0 else np.array([0.0, 0.0, 1.0])
    rotation = pin.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), axis).matrix()
    return radius + more, length, pin.SE3(rotation, (low + high) / 2)


def link_name(geometry: str) -> str:
    """The link of a piece of geometry, which Pinocchio calls `<link>_<number>`."""
    return re.sub(r"_\d+$", "", geometry)


def half_space(name: str, normal: Sequence[float], offset: float) -> pin.GeometryObject:
    """What lies below a plane: all x with normal . x <= offset, in the root link's frame, m."""
    return pin.GeometryObject(name, 0, pin.SE3.Identity(), coal.Halfspace(np.array(normal, dtype=float), offset))


def box(name: str, lower: FloatArray, upper: FloatArray) -> pin.GeometryObject:
    """A box with these corners, (3,) m in the root link's frame."""
    return pin.GeometryObject(name, 0, pin.SE3(np.eye(3), (lower + upper) / 2), coal.Box(*(upper - lower)))
