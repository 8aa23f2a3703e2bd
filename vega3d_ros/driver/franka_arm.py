"""A Franka arm through franka-rs (`pip install franka-rs`, import franka): its 1 kHz loop runs on threads of Rust.

Threads: any one at a time.  The loop and the thread that feeds it go on whatever Python does; if the process dies, the
robot's own control box misses its packets and stops the arm.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.types import FloatArray, VegaError
from vega3d_ros.driver.following import ACCELERATION, RAMP_S, STEP_S, VELOCITY

JOINTS = 7
# The loop would end where the arm is farther than this from where it began, rad: the limits are judged elsewhere.
ANYWHERE_RAD = 12.0


@dataclass(frozen=True)
class ArmState:
    """positions, velocities (7,) rad, rad/s, as measured.  mode: of the robot (`idle`, `move`, `reflex`,
    `user_stopped`, ...).  success_rate: share of the last 100 commands that came in time."""

    positions: FloatArray
    velocities: FloatArray
    mode: str
    success_rate: float


class FrankaArm:
    """A connection, and a motion under way.  Raises VegaError where there can be none.

    address: host name or IP address.  realtime: `enforce`, or `ignore` for a simulator.  fraction: of the robot's
    limits of velocity, acceleration and jerk, within which targets are shaped.  torque, force: Nm, N, beyond which the
    robot takes a contact for a collision and stops.
    """

    def __init__(self, address: str, realtime: str, fraction: float, torque: float, force: float) -> None:
        self._franka = library()
        self._fraction = fraction
        self._targets: Any = None
        self._robot = self._in_a_thread(lambda: self._connect(address, realtime, torque, force), "connect to the robot")
        version = int(self._robot.fci_version)
        if version not in ACCELERATION:
            raise VegaError(f"The robot at {address} speaks version {version} of Franka's interface: give an FR3.")
        self.velocity = fraction * np.array(VELOCITY[version])
        self.acceleration = fraction * np.array(ACCELERATION[version])
        self.ramp_s = RAMP_S[version]
        self.begin()

    def begin(self) -> None:
        """Hold the arm where it is, and take targets.  Raises VegaError with the robot's reason."""
        self._targets = self._in_a_thread(
            lambda: self._robot.joint_targets(
                fraction=self._fraction, backend="robot", max_deviation=ANYWHERE_RAD, limit_rate=True
            ),
            "take over the arm",
        )

    @property
    def running(self) -> bool:
        """Whether targets are followed."""
        return self._targets is not None and bool(self._targets.running)

    def target(self) -> FloatArray:
        """(7,) rad: the newest target."""
        return np.array(self._targets.target(), dtype=np.float64)

    def state(self) -> ArmState:
        """The newest.  Raises VegaError where the connection is lost."""
        try:
            state = self._targets.state() if self.running else self._robot.read_once()
        except self._franka.FrankaError as error:
            raise VegaError(f"The robot's state cannot be read ({_why(error)}): check power and network.") from error
        return ArmState(state.q, state.dq, state.robot_mode, float(state.control_command_success_rate))

    def follow(self, targets: FloatArray) -> None:
        """Targets (m, 7) rad, the first at once and one every `STEP_S`, in the place of those before."""
        try:
            self._targets.follow(np.ascontiguousarray(targets), dt=STEP_S)
        except self._franka.FrankaError as error:
            raise VegaError(f"The robot takes no targets ({_why(error)}): call ~/recover.") from error

    def end(self) -> str:
        """Come to rest at the newest target and end the motion; the reason for which it ended already, or ''."""
        if self._targets is None:
            return ""
        try:
            self._targets.stop()
        except self._franka.FrankaError as error:
            return _why(error)
        return ""

    def recover(self) -> None:
        """Clear the robot's error and begin anew, at rest where it is.  Raises VegaError."""
        self._in_a_thread(self._robot.automatic_error_recovery, "recover")
        self.begin()

    def _connect(self, address: str, realtime: str, torque: float, force: float) -> Any:
        robot = self._franka.Robot(address, realtime=realtime)
        torques, forces = [torque] * JOINTS, [force] * 6
        robot.set_collision_behavior_simple(torques, torques, forces, forces)
        return robot

    def _in_a_thread(self, make: Callable[[], Any], what: str) -> Any:
        """franka-rs gives the thread that connects the highest real-time priority, which those started from it inherit:
        right for the one that feeds targets, wrong for Python's."""
        found: list[Any] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                found.append(make())
            except self._franka.FrankaError as error:
                failed.append(error)

        thread = threading.Thread(target=run, name=what)
        thread.start()
        thread.join()
        if failed:
            raise VegaError(f"franka_driver cannot {what} ({_why(failed[0])}): mend that, then try again.")
        return found[0]


def library() -> Any:
    """The module.  Raises VegaError where it is not installed."""
    try:
        return importlib.import_module("franka")
    except ImportError as error:
        raise VegaError(f"franka-rs cannot be imported ({error}): install the package's extra 'franka'.") from error


def _why(error: BaseException) -> str:
    return " ".join(str(error).removeprefix("libfranka: ").split()).rstrip(".")
