"""Which processes make a robot follow an instruction, and how they are started.

`node_table` is the one description of the processes; `launch/manipulation.launch.py` hands it to the
launch system, and `vega3d-bringup` (this module's `main`) starts the same processes where the launch
system is not installed.  Neither ROS nor torch is imported here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.checkpoints import check_instructions
from policies.types import DEFAULT_POLICY, WORLD_CONTROLS, VegaError, check_instruction
from vega3d_ros.bringup import viewer
from vega3d_ros.bringup.entries import (
    DOMAIN,
    NOT_GIVEN,
    ROBOT,
    SIMULATED_ROBOTS,
    START_SERVICES,
    STARTUP_TIMEOUT,
    TASK,
    USE_SIM_TIME,
    Argument,
    NodeEntry,
    choice,
    command_words,
    given_or,
    integer,
    manager,
    parse_arguments,
    refuse_given,
    refuse_of_simulation,
    robot_file,
    simulated_robot,
    simulated_task,
    wants_sim_time,
)
from vega3d_ros.bringup.preflight import check_policy, check_simulated
from vega3d_ros.bringup.scene import SCENE_ONLY, scene_entry
from vega3d_ros.control.resources import share_folder
from vega3d_ros.inference.process import LAUNCHER, ChildProcess, end_seconds, print_line, stop_all
from vega3d_ros.parameters.arm_check import check_described
from vega3d_ros.parameters.robot_file import read_robot_file, write_parameters
from vega3d_ros.ros.dds import check_discovery, check_middleware

MAX_DOMAIN = 232
ARGUMENTS = (
    ROBOT,
    Argument("driver", "none", "franka: also start franka_driver, for a Franka FR3 without ros2_control; or none."),
    Argument("policy", "auto", f"A name in policies, or a checkpoint's folder; auto: configured, or {DEFAULT_POLICY}."),
    Argument("instruction", "", "What the robot shall do; empty: the simulated task's own sentence, or none yet."),
    USE_SIM_TIME,
    Argument("clock_mode", "auto", "lockstep, realtime, or auto: as configured, else lockstep with a simulated robot."),
    *TASK,
    Argument("device", "auto", "Torch device of the policy, such as cpu or cuda:0; auto: as configured, else cpu."),
    Argument("threads", "auto", "Torch threads of the policy; auto: as configured, else 1."),
    Argument("world_simulator", "auto", "on, off, noise, shuffled, untrained or vae; auto: as configured, else on."),
    Argument("record", "false", "true: write inputs, decisions and commands into a rosbag2 bag (MCAP)."),
    Argument("bag", "", "Folder of the new bag; empty: vega3d-bag-<time> in the working directory."),
    Argument("scene", "false", "true: scene_node too, which answers questions about what the cameras see."),
    *SCENE_ONLY,
    Argument("rviz", "false", "true: RViz, and robot_state_publisher for a simulated robot; they must be installed."),
    DOMAIN,
    STARTUP_TIMEOUT,
)


def node_table(arguments: Mapping[str, str]) -> tuple[NodeEntry, ...]:
    """The processes to run for these arguments (every name of ARGUMENTS with its text).

    An argument that was given wins, then the robot's file, then the policy's, then our defaults.  Raises VegaError on a
    value that cannot work, and on an argument that would do nothing.
    """
    simulated = arguments["robot"] in SIMULATED_ROBOTS
    instruction = check_instruction(arguments["instruction"]) if arguments["instruction"] else ""
    robot = robot_file(arguments["robot"])
    own = read_robot_file(robot)
    name = given_or(arguments, "policy", str(own.get("policy", DEFAULT_POLICY)))
    files = (*policy_files(name), robot)  # later ones win
    # What is wrong with them is said before anything starts.
    values = {key: value for path in files[:-1] for key, value in read_robot_file(path).items()} | own
    check_described(values)
    check_policy(name, given_or(arguments, "device", str(values.get("device", "cpu"))))
    if simulated:
        name = check_simulated(name, *simulated_task(arguments), instruction)
    else:
        refuse_of_simulation(arguments, f'say what robot:={arguments["robot"]} shall do as instruction:="..."')
        if instruction:
            check_instructions(name, [instruction])
    clock_mode = choice(arguments, "clock_mode", (NOT_GIVEN, "lockstep", "realtime"))
    if clock_mode == NOT_GIVEN:
        clock_mode = str(values.get("clock_mode", "lockstep" if simulated else NOT_GIVEN))

    policy: dict[str, Any] = {
        "policy": name,
        "use_sim_time": wants_sim_time(arguments, values),
        # A simulated arm hurts nobody; a real one begins to move only at the service ~/start, unless its own file says
        # otherwise: no policy's file may.
        "autostart": bool(own.get("autostart", simulated)),
    }
    if clock_mode != NOT_GIVEN:
        policy["clock_mode"] = clock_mode
    if simulated and clock_mode == "realtime":
        policy["committed"] = True  # there it follows trajectories as a real arm's controller does
    if arguments["device"] != NOT_GIVEN:
        policy["device"] = arguments["device"]
    if arguments["threads"] != NOT_GIVEN:
        policy["threads"] = integer(arguments, "threads", 1)
    world_simulator = choice(arguments, "world_simulator", (NOT_GIVEN, *WORLD_CONTROLS))
    if world_simulator != NOT_GIVEN:
        policy["world_simulator"] = world_simulator

    record = choice(arguments, "record", ("true", "false")) == "true"
    if arguments["bag"] and not record:
        raise VegaError("bag:= names a folder but nothing is recorded: add record:=true, or leave it out.")

    table = [
        NodeEntry(
            name="policy_node",
            executable="policy_node",
            module="vega3d_ros.node.policy_node",
            lifecycle=True,
            parameter_files=files,
            parameters=policy,
        )
    ]
    if choice(arguments, "scene", ("true", "false")) == "true":
        table.append(scene_entry(arguments, robot))
    else:
        refuse_given(arguments, SCENE_ONLY, "says nothing without scene_node: add scene:=true, or leave it out")
    if simulated:
        # The user's sentence takes the place of the task's own.
        table.append(
            simulated_robot(arguments, clock_mode, (("instruction", "task_instruction"),) if instruction else ())
        )

    if choice(arguments, "driver", ("none", "franka")) == "franka":
        table.append(_franka_driver(arguments["robot"], values))

    if record:
        parameters = {"bag": _new_bag(arguments["bag"])}
        table.append(NodeEntry("recorder", "recorder", "vega3d_ros.recording.recording_node", parameters=parameters))

    if choice(arguments, "rviz", ("true", "false")) == "true":
        table += _viewers(simulated, bool(policy["use_sim_time"]))

    more: dict[str, Any] = {}
    if instruction:
        more["instruction"] = instruction
    if record:
        more["configured_services"] = ["recorder/start"]
    if simulated:
        more["start_services"] = START_SERVICES
    return (*table, manager(table, arguments, **more))


def _new_bag(name: str) -> str:
    """The absolute path of a bag to be made; empty for one in the working directory.  Raises VegaError."""
    bag = Path(name or f"vega3d-bag-{os.getpid()}")
    try:
        bag = bag.expanduser().absolute()
        if bag.exists():
            raise VegaError(f"The bag {bag} exists already: give another folder as bag:=.")
        _try_folder(bag)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home
        why = getattr(error, "strerror", None) or error
        raise VegaError(f"The bag {bag} cannot be made ({why}): give another folder as bag:=.") from error
    return str(bag) if name else ""


def _try_folder(folder: Path) -> None:
    """Make a folder that is not there, and take it away again; OSError where it cannot be made.

    Permissions alone do not tell: root has them in /proc, too.
    """
    missing = [folder, *itertools.takewhile(lambda above: not above.exists(), folder.parents)]
    try:
        folder.mkdir(parents=True)
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # not made, or somebody else's already
                made.rmdir()


def _franka_driver(robot: str, values: Mapping[str, Any]) -> NodeEntry:
    """The driver of a Franka, by the robot's own file (its parameters by full name).  Raises VegaError."""
    for name, what in (
        ("franka.address", "the robot's host name or IP address"),
        ("robot_description", "the path of its URDF, as franka_driver publishes none"),
    ):
        if not values.get(name):
            raise VegaError(f"driver:=franka needs {name} in the file of robot:={robot}: give {what}.")
    name = "franka_driver"
    return NodeEntry(name, name, "vega3d_ros.driver.franka_driver", parameter_files=(robot_file(robot),))


def _viewers(simulated: bool, use_sim_time: bool) -> list[NodeEntry]:
    """RViz and, where no driver has one, the node that moves the robot's links.  Raises VegaError."""
    own = {"use_sim_time": use_sim_time}
    entries = []
    if simulated:
        name = "robot_state_publisher"
        description = {**own, "robot_description": viewer.simulated_description()}
        entries.append(NodeEntry(name, name, str(viewer.installed(name, name)), name, parameters=description))
    rviz = str(viewer.installed("rviz2", "rviz2"))
    return [*entries, NodeEntry("rviz2", "rviz2", rviz, "rviz2", parameters=own, words=("-d", str(viewer.rviz_file())))]


def environment_of(arguments: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that every process gets of the one that calls this and starts them.  Raises VegaError."""
    variables = {LAUNCHER: str(os.getpid())}  # nodes end with whoever started them
    if not arguments["domain"]:
        return variables
    domain = integer(arguments, "domain", 0)
    if domain > MAX_DOMAIN:
        raise VegaError(f"domain:={domain} is not a ROS domain: give a number from 0 to {MAX_DOMAIN}.")
    return {**variables, "ROS_DOMAIN_ID": str(domain)}


def strict_files(entry: NodeEntry, folder: Path) -> list[Path]:
    """Copies in `folder` of an entry's parameter files, as they were understood, and a file of its own parameters.

    Raises VegaError.
    """
    copies = []
    for number, path in enumerate(entry.parameter_files):
        copies.append(folder / f"{entry.name}-{number}-{path.stem}.yaml")
        write_parameters(read_robot_file(path, entry.name), copies[-1])
    own = folder / f"{entry.name}.yaml"
    write_parameters(entry.parameters, own)
    return [*copies, own]


def policy_files(policy: str) -> tuple[Path, ...]:
    """Parameter file of a policy, where one is shipped; whether the policy exists, policy_node says."""
    path = share_folder() / "config" / "policies" / f"{policy.partition('#')[0]}.yaml"
    return (path,) if "/" not in policy and path.is_file() else ()


def node_command(entry: NodeEntry, folder: Path) -> list[str]:
    """The command that runs one process; its parameters are written to files in `folder`."""
    program = [entry.module] if entry.module.startswith("/") else [sys.executable, "-m", entry.module]
    command = [*program, *entry.words, "--ros-args", "-r", f"__node:={entry.name}"]
    for source, target in entry.remappings:
        command += ["-r", f"{source}:={target}"]
    for path in strict_files(entry, folder):
        command += ["--params-file", str(path)]
    return command


def run_table(
    table: Sequence[NodeEntry],
    environment: Mapping[str, str],
    stop: threading.Event,
    on_line: Callable[[str, str], None] = print_line,
) -> None:
    """Start the processes and keep them until `stop` is set; call it from the main thread.

    environment: all variables of the processes.  on_line(name, line): see ChildProcess.
    Raises VegaError, after ending all the others, when one of them ends by itself.
    """
    children: list[ChildProcess] = []
    grace_s = end_seconds(environment)
    with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
        try:
            for entry in table:
                command = node_command(entry, Path(folder))
                child = ChildProcess(
                    entry.name,
                    command,
                    environment=environment,
                    on_line=on_line,
                    at_parents_death=signal.SIGTERM,
                )
                children.append(child)
            while not stop.wait(0.2):
                for child in children:
                    if child.returncode is not None:
                        raise VegaError(_obituary(child))
        finally:
            stop_all(children, grace_s)


def _obituary(child: ChildProcess) -> str:
    status = child.wait(1.0)
    how = f"status {status}" if status is None or status >= 0 else signal.Signals(-status).name
    last = next((line for line in reversed(child.tail()) if line.strip()), "no output")
    last = re.sub(r"^\[[A-Z]+\] \[[\d.]+\] \[[^]]*\]: ", "", last)
    return f"{child.name} ended with {how}, so everything was stopped; its last words: {last}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of vega3d-bringup; returns the exit status."""
    doc = "Start a robot's nodes without the launch system; Ctrl-C ends them."
    words = command_words("vega3d-bringup", doc, argv, ARGUMENTS)
    try:
        check_middleware()
        check_discovery()
        arguments = parse_arguments(words, ARGUMENTS)
        table = node_table(arguments)
        environment = {**os.environ, **environment_of(arguments)}
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        run_table(table, environment, stop)
    except VegaError as error:
        print(f"vega3d-bringup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
