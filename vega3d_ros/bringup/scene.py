"""What answers questions about a scene: scene_node beside a policy, or with the robot's cameras alone.

`scene_table` is for `launch/scene.launch.py`; beside a policy `vega3d-bringup scene:=true` starts the same node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.checkpoints import check_scene_model
from policies.types import VegaError
from vega3d_ros.bringup import entries
from vega3d_ros.bringup.entries import Argument, NodeEntry
from vega3d_ros.bringup.preflight import check_task, check_torch_device
from vega3d_ros.parameters.robot_file import read_robot_file
from vega3d_ros.parameters.table import row_of

SCENE_ONLY = (
    Argument("scene_model", "auto", "Scene model: a name, a checkpoint's folder or hub id; auto: as configured."),
    Argument("scene_device", "auto", "Torch device of the scene model; auto: as configured, else cpu."),
)
ARGUMENTS = (entries.ROBOT, *SCENE_ONLY, entries.USE_SIM_TIME, *entries.TASK, entries.DOMAIN, entries.STARTUP_TIMEOUT)


def scene_entry(arguments: Mapping[str, str], robot: Path) -> NodeEntry:
    """scene_node with the cameras of a robot's file; an argument wins over the file.

    Raises VegaError on a model or a device that is not there.
    """
    configured = read_robot_file(robot, "scene_node")
    parameters: dict[str, Any] = {"use_sim_time": entries.wants_sim_time(arguments, configured)}
    if not any(name.startswith("cameras.") for name in configured):
        raise VegaError(f"The robot's file {robot} names no camera: add 'cameras', or leave scene_node out.")
    asked = (("scene_model", "scene.model", check_scene_model), ("scene_device", "device", check_torch_device))
    for argument, name, check in asked:
        row = row_of(name)
        assert row is not None
        value = entries.given_or(arguments, argument, str(configured.get(name, row.default)))
        if arguments[argument] != entries.NOT_GIVEN:
            parameters[name] = value
        check(value)
    return NodeEntry(
        name="scene_node",
        executable="scene_node",
        module="vega3d_ros.scene.scene_node",
        lifecycle=True,
        parameter_files=(robot,),
        parameters=parameters,
    )


def scene_table(arguments: Mapping[str, str]) -> tuple[NodeEntry, ...]:
    """The processes to run for these arguments (every name of ARGUMENTS with its text), without a policy.

    A simulated robot stands still, and its time goes on by itself.  Raises VegaError on a value that cannot work.
    """
    simulated = arguments["robot"] in entries.SIMULATED_ROBOTS
    if simulated:
        check_task(*entries.simulated_task(arguments))
    else:
        entries.refuse_of_simulation(arguments, "leave it out")
    table = [scene_entry(arguments, entries.robot_file(arguments["robot"]))]
    if simulated:
        table.append(entries.simulated_robot(arguments, "realtime"))
    more = {"start_services": entries.START_SERVICES} if simulated else {}
    return (*table, entries.manager(table, arguments, **more))
