"""What `vega3d-bringup` and the launch files start: the arguments they take, and the processes these make.

Neither ROS nor torch is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.files.command_line import command_parser
from policies.files.paths import exists, is_folder
from policies.types import VegaError
from vega3d_ros.bringup.preflight import check_words
from vega3d_ros.control.resources import share_folder

SIMULATED_ROBOTS = ("libero",)
SUITE = "libero_object"
NOT_GIVEN = "auto"  # as an argument: what is configured counts, else our default
START_SERVICES = ["sim_node/reset", "sim_node/run"]  # of the simulated robot, once the others are active
Remappings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Argument:
    """One `name:=value` argument of the launch file and of vega3d-bringup."""

    name: str
    default: str
    description: str


ROBOT = Argument("robot", "libero", "Robot: a name in config/robots, or the path of a parameter file of your own.")
USE_SIM_TIME = Argument(
    "use_sim_time", "auto", "true, false, or auto: as configured, else true with a simulated robot."
)
TASK = (
    Argument("suite", "auto", "LIBERO suite (simulated robot only); auto: libero_object."),
    Argument("task", "auto", "Number of the task in the suite (simulated robot only); auto: 0."),
    Argument("trial", "auto", "Number of the official initial state (simulated robot only); auto: 0."),
)
DOMAIN = Argument("domain", "", "ROS domain, 0 to 232; empty: that of the environment variable ROS_DOMAIN_ID.")
STARTUP_TIMEOUT = Argument(
    "startup_timeout_s", "120", "Seconds after which a start-up that is not complete is given up."
)


@dataclass(frozen=True)
class NodeEntry:
    """One process.

    executable: its name in lib/<package>, for `ros2 run` and the launch system; module: the same as
    `python -m`, for vega3d-bringup, or a path where the package is not ours.  parameters override
    parameter_files.  lifecycle: configured and activated by the startup manager.  words: further arguments.
    """

    name: str
    executable: str
    module: str
    package: str = "vega3d_ros"
    lifecycle: bool = False
    parameter_files: tuple[Path, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: Remappings = ()
    words: tuple[str, ...] = ()


def simulated_robot(arguments: Mapping[str, str], clock_mode: str, remappings: Remappings = ()) -> NodeEntry:
    """The simulated robot in the scene that suite, task and trial name."""
    suite, task, trial = simulated_task(arguments)
    return NodeEntry(
        name="sim_node",
        executable="sim_node",
        module="sim.robot.sim_node",
        parameters={"suite": suite, "task": task, "trial": trial, "clock_mode": clock_mode},
        remappings=remappings,
    )


def simulated_task(arguments: Mapping[str, str]) -> tuple[str, int, int]:
    """Suite, task and trial of the simulated robot.  Raises VegaError on what is no number."""
    suite = given_or(arguments, "suite", SUITE)
    task, trial = (
        0 if arguments[name] == NOT_GIVEN else integer(arguments, name, 0) for name in ("task", "trial")
    )
    return suite, task, trial


def refuse_of_simulation(arguments: Mapping[str, str], remedy: str) -> None:
    """A real robot has no task of a suite: who names one means what would silently not be.  Raises VegaError."""
    refuse_given(arguments, TASK, f"is for the simulated robot only: {remedy}")


def refuse_given(arguments: Mapping[str, str], which: Iterable[Argument], why: str) -> None:
    """Raise VegaError, with what is wrong and what to do, where one of these would do nothing and was given."""
    for argument in which:
        if arguments[argument.name] != NOT_GIVEN:
            raise VegaError(f"{argument.name}:={arguments[argument.name]} {why}.")


def manager(table: Sequence[NodeEntry], arguments: Mapping[str, str], **more: Any) -> NodeEntry:
    """What brings the others up.  more: parameters of it."""
    return NodeEntry(
        name="startup_manager",
        executable="startup_manager",
        module="vega3d_ros.bringup.startup_manager",
        parameters={
            "lifecycle_nodes": [entry.name for entry in table if entry.lifecycle],
            "timeout_s": seconds(arguments, "startup_timeout_s"),
            **more,
        },
    )


def wants_sim_time(arguments: Mapping[str, str], configured: Mapping[str, Any]) -> bool:
    """Whether a node takes its time from /clock.  configured: what its files say, by full name."""
    use_sim_time = choice(arguments, "use_sim_time", (NOT_GIVEN, "true", "false"))
    if use_sim_time != NOT_GIVEN:
        return use_sim_time == "true"
    return bool(configured.get("use_sim_time", arguments["robot"] in SIMULATED_ROBOTS))


def given_or(arguments: Mapping[str, str], name: str, otherwise: str) -> str:
    """The text of an argument, or `otherwise` where it was not given."""
    return otherwise if arguments[name] == NOT_GIVEN else arguments[name]


def robot_file(robot: str) -> Path:
    """Parameter file of a robot given by name or path, `~` expanded.  Raises VegaError that lists what exists."""
    folder = share_folder() / "config" / "robots"
    named = folder / f"{robot}.yaml"
    if "/" not in robot and exists(str(named)):
        return named
    what = f"There is no robot '{robot}'"
    if is_folder(robot):
        what = f"'{robot}' is a folder"
    elif exists(robot):
        if robot.endswith((".yaml", ".yml")):
            return Path(robot).expanduser().absolute()
        what = f"'{robot}' is no YAML file, as a robot's is"
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise VegaError(f"{what}: choose one of {known}, or give the path of a .yaml file of your own.")


def choice(arguments: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """The text of an argument that has to be one of these, in lower case.  Raises VegaError."""
    value = arguments[name].lower()
    if value not in choices:
        raise VegaError(f"{name}:={arguments[name]} is not possible: choose one of {', '.join(choices)}.")
    return value


def integer(arguments: Mapping[str, str], name: str, lowest: int) -> int:
    """The whole number that an argument gives, `lowest` or more.  Raises VegaError."""
    text = arguments[name]
    if not (text.isascii() and text.isdigit()) or int(text) < lowest:
        raise VegaError(f"{name}:={text} is not possible: give a whole number, {lowest} or more.")
    return int(text)


def seconds(arguments: Mapping[str, str], name: str) -> float:
    """The number of seconds above 0 that an argument gives.  Raises VegaError."""
    try:
        seconds = float(arguments[name])
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e6:
        raise VegaError(f"{name}:={arguments[name]} is not possible: give a number of seconds above 0.")
    return seconds


def parse_arguments(words: Sequence[str], arguments: Sequence[Argument]) -> dict[str, str]:
    """`name:=value` words -> every argument with its text.  Raises VegaError on an unknown name."""
    values = {argument.name: argument.default for argument in arguments}
    return values | check_words(words, tuple(values))


def describe_arguments(arguments: Sequence[Argument]) -> str:
    """The list of arguments, in the form in which `ros2 launch --show-args` prints it."""
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in arguments:
        lines += ["", f"    '{argument.name}':", f"        {argument.description}"]
        lines += [f"        (default: '{argument.default}')"]
    return "\n".join(lines)


def command_words(
    program: str, doc: str, argv: Sequence[str] | None, arguments: Sequence[Argument]
) -> list[str]:
    """The `name:=value` words of a command line; --help is answered with all of them."""
    usage, epilog = f"{program} [-h] [name:=value ...]", describe_arguments(arguments)
    parser = command_parser(program, doc, usage=usage, epilog=epilog)
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="see below")
    return list(parser.parse_args(argv).arguments)
