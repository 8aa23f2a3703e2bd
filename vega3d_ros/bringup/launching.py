"""How the launch files hand a table of processes to the launch system, which is imported where it is asked for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.types import VegaError
from vega3d_ros.bringup.bringup import environment_of, strict_files
from vega3d_ros.bringup.entries import Argument, NodeEntry
from vega3d_ros.bringup.preflight import check_launch_words

# Parameter files as they were understood; it goes with this process.
FOLDER = tempfile.TemporaryDirectory(prefix="vega3d-")
Table = Callable[[Mapping[str, str]], Sequence[NodeEntry]]


def end_everything(event: Any, context: Any) -> None:
    """Every process is needed: one that ends by itself ends the launch, with a status that says so."""
    if not context.is_shutdown:
        raise RuntimeError(f"{event.process_name} ended with status {event.returncode}, so everything was stopped.")


def node_actions(entry: NodeEntry, folder: Path) -> list[Any]:
    """A process, and what its end leads to."""
    from launch.actions import RegisterEventHandler
    from launch.event_handlers import OnProcessExit
    from launch_ros.actions import Node

    node = Node(
        package=entry.package,
        executable=entry.executable,
        name=entry.name,
        parameters=list(map(str, strict_files(entry, folder))),
        remappings=list(entry.remappings),
        arguments=list(entry.words),
        output="screen",
        emulate_tty=True,
    )
    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end_everything)), node]


def launch_description(declared: Sequence[Argument], table: Table) -> Any:
    """The LaunchDescription of what `table` makes of the arguments."""
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch.substitutions import LaunchConfiguration

    from launch import LaunchDescription

    def start(context: Any) -> list[Any]:
        arguments = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in declared}
        try:
            check_launch_words(context.argv, [argument.name for argument in declared])
            os.environ.update(environment_of(arguments))
            entries = table(arguments)
        except VegaError as error:
            # The launch system shows this sentence and ends with status 1.
            raise RuntimeError(str(error)) from None
        return [action for entry in entries for action in node_actions(entry, Path(FOLDER.name))]

    actions = [
        DeclareLaunchArgument(argument.name, default_value=argument.default, description=argument.description)
        for argument in declared
    ]
    return LaunchDescription([*actions, OpaqueFunction(function=start)])
