"""Parameters of scene_node: declared from the table, read into one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rclpy.node import Node

from policies.types import VegaError
from vega3d_ros.parameters.table import CAMERA_ROWS, SCENE_CAMERA_ROWS, SCENE_ROWS
from vega3d_ros.ros.node_parameters import (
    CameraParameters,
    declare_camera,
    declare_rows,
    getter,
    given_cameras,
    read_camera,
    read_rows,
)

CAMERA = (*CAMERA_ROWS, *SCENE_CAMERA_ROWS)


@dataclass(frozen=True)
class Places:
    """Topics that tell where a camera's pixels lie; '' for none."""

    depth: str
    camera_info: str
    pose: str


@dataclass(frozen=True)
class SceneSettings:
    """docs/interfaces.md says what each is; units SI."""

    model: str
    framing: str
    max_tokens: int
    device: str
    threads: int
    hardware_id: str
    frames: int
    every_s: float
    world_frame: str
    tf: bool
    answer_timeout_s: float
    max_skew_s: float
    max_age_s: float
    cameras: Mapping[str, CameraParameters]
    places: Mapping[str, Places]


def declare(node: Node) -> None:
    """Declare everything but the cameras, which only the robot's file knows."""
    declare_rows(node, SCENE_ROWS)


def declare_all(node: Node) -> None:
    """What there is to tell of: the node's parameters, and those of any camera."""
    declare(node)
    declare_camera(node, "<camera>", CAMERA)


def read(node: Node) -> SceneSettings:
    """The parameters, checked.  Raises VegaError."""
    get = getter(node)
    given = given_cameras(node)
    cameras = tuple(get("scene.cameras") or sorted(given))
    missing = [camera for camera in cameras if given and camera not in given]
    if missing:
        raise VegaError(
            f"Parameter scene.cameras names '{missing[0]}', and the robot has {', '.join(sorted(given))}: correct it."
        )
    if not cameras:
        raise VegaError("No camera is named: pass a robot's file with cameras, or set scene.cameras.")
    if not get("scene.model"):
        raise VegaError("Parameter scene.model is empty: give a scene model's name, its folder, or module:Class.")
    return SceneSettings(
        model=get("scene.model"),
        framing=get("scene.framing"),
        max_tokens=get("scene.max_tokens"),
        device=get("device"),
        threads=get("threads"),
        hardware_id=get("hardware_id"),
        frames=get("scene.frames"),
        every_s=get("scene.every_s"),
        world_frame=get("scene.world_frame"),
        tf=get("scene.tf"),
        answer_timeout_s=get("scene.answer_timeout_s"),
        max_skew_s=get("max_skew_s"),
        max_age_s=get("max_age_s"),
        cameras={camera: _camera(node, camera) for camera in cameras},
        places={camera: _places(node, camera) for camera in cameras},
    )


def _camera(node: Node, camera: str) -> CameraParameters:
    if not node.has_parameter(f"cameras.{camera}.topic"):
        declare_camera(node, camera, CAMERA)
    return read_camera(node, camera)


def _places(node: Node, camera: str) -> Places:
    return Places(*read_rows(node, SCENE_CAMERA_ROWS, f"cameras.{camera}.").values())
