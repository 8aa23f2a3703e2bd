"""The joint driver of the simulated arm: what joint_trajectory_controller is to a real one.

robosuite's own joint controllers hold one step target for a whole control period.  This one follows a
cubic Hermite curve from the measured state to the commanded positions and velocities, by inverse dynamics
(feed-forward acceleration, gravity and velocity terms, critically damped feedback, torque limits).
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from robosuite.controllers.base_controller import Controller

from policies.types import FloatArray
from sim.worlds.stepping.operational_space import arm_part

KP = 400.0  # 1/s^2
KD = 2.0 * KP**0.5


class JointFollower:
    """Lets a robosuite arm obey joint commands; `detach` gives it back its own controller.

        follower = JointFollower()
        follower.attach(env.robots[0])
        follower.command(positions, velocities)
        env.step(follower.action(gripper))

    The environment's action keeps its size, and only its gripper part counts.  A step without a new command holds
    the last one.  `env.reset()` builds new controllers: detach before it, attach after it.
    """

    def __init__(self) -> None:
        self._robot: Any = None
        self._original: Any = None
        self._servo: JointServo | None = None

    def attach(self, robot: Any) -> None:
        """Take the place of the controller of a robosuite SingleArm.  Attaching twice changes nothing."""
        if self._servo is not None and robot.controller is self._servo:
            return
        self._robot, self._original = robot, robot.controller
        self._servo = JointServo(robot.controller, 1.0 / robot.control_freq)
        robot.controller = self._servo

    def detach(self) -> None:
        """Put the original controller back, with the arm's present pose as its goal."""
        if self._servo is not None and self._robot.controller is self._servo:
            self._original.update(force=True)
            self._original.reset_goal()
            self._robot.controller = self._original
        self._robot = self._original = self._servo = None

    def command(self, positions: FloatArray, velocities: FloatArray) -> None:
        """Be at positions (n,) rad with velocities (n,) rad/s at the end of the next control period."""
        if self._servo is None:
            raise RuntimeError("Attach the follower to a robot before commanding it.")
        self._servo.command(positions, velocities)

    def action(self, gripper: float) -> FloatArray:
        """The action for `env.step`: zeros for the arm, then the gripper (> 0 closes, < 0 opens)."""
        if self._servo is None:
            raise RuntimeError("Attach the follower to a robot before stepping it.")
        return np.append(np.zeros(self._servo.control_dim), gripper)


class JointServo(Controller):
    """What SingleArm.control calls: set_goal once a period, run_controller at every physics step."""

    def __init__(self, replaced: Controller, period_s: float) -> None:
        super().__init__(
            replaced.sim,
            replaced.eef_name,
            {"joints": replaced.joint_index, "qpos": replaced.qpos_index, "qvel": replaced.qvel_index},
            replaced.actuator_limits,
        )
        self.control_dim = replaced.control_dim
        self._limits = replaced.control_limits
        self._period = period_s
        self._elapsed = 0.0
        self._target = np.array(self.joint_pos)
        self._target_velocity = np.zeros_like(self._target)
        self._fresh = False
        self._start = (self._target, self._target_velocity)

    def command(self, positions: FloatArray, velocities: FloatArray) -> None:
        self._target = np.array(positions, dtype=float)
        self._target_velocity = np.array(velocities, dtype=float)
        self._fresh = True

    def set_goal(self, action: FloatArray) -> None:
        """Begin a control period from the measured state."""
        self.update()
        if not self._fresh:
            self._target_velocity = np.zeros_like(self._target)
        self._fresh = False
        self._elapsed = 0.0
        self._start = (self.joint_pos, self.joint_vel)

    def run_controller(self) -> FloatArray:
        """Torques (n,) N m for the next physics step."""
        self.update()
        position, velocity = self._curve(self._elapsed)
        _, next_velocity = self._curve(self._elapsed + self.model_timestep)
        acceleration = (
            (next_velocity - velocity) / self.model_timestep
            + KP * (position - self.joint_pos)
            + KD * (velocity - self.joint_vel)
        )
        self._elapsed += self.model_timestep
        self.torques = self.clip_torques(self.mass_matrix @ acceleration + self.torque_compensation)
        super().run_controller()
        return self.torques

    def _curve(self, time_s: float) -> tuple[FloatArray, FloatArray]:
        """Position and velocity, each (n,), on the cubic Hermite curve; at rest on its end after the period."""
        if time_s > self._period + 1e-9:
            return self._target, self._target_velocity
        (q0, v0), q1, v1 = self._start, self._target, self._target_velocity
        period, s = self._period, time_s / self._period
        position = (
            (2 * s**3 - 3 * s**2 + 1) * q0
            + (s**3 - 2 * s**2 + s) * period * v0
            + (3 * s**2 - 2 * s**3) * q1
            + (s**3 - s**2) * period * v1
        )
        velocity = (6 * s**2 - 6 * s) * (q0 - q1) / period + (3 * s**2 - 4 * s + 1) * v0 + (3 * s**2 - 2 * s) * v1
        return position, velocity

    def reset_goal(self) -> None:
        self._target = np.array(self.joint_pos)
        self._target_velocity = np.zeros_like(self._target)

    @property
    def control_limits(self) -> tuple[FloatArray, FloatArray]:
        return self._limits

    @property
    def name(self) -> str:
        return "JOINT_FOLLOWER"


class ServoLaw:
    """Runs a `JointServo` between forward passes that somebody else makes: the same torques, bit for bit."""

    def __init__(self, controller: JointServo) -> None:
        self.controller = controller
        self._model, self._data = controller.sim.model._model, controller.sim.data._data
        self._full_mass = np.zeros((self._model.nv, self._model.nv))
        self._qvel_index = np.array(controller.qvel_index)

    def set_goal(self, action: FloatArray) -> None:
        self._measure()
        self.controller.set_goal(action)

    def torques(self) -> FloatArray:
        """(n,) N m for the next physics step, within the actuators' limits."""
        self._measure()
        return self.controller.run_controller()

    def finish(self) -> None:
        """The controller measures again whenever it is asked to."""

    def _measure(self) -> None:
        """What `Controller.update` does of what a servo needs, without a forward pass."""
        servo = self.controller
        if not servo.new_update:
            return
        servo.joint_pos, servo.joint_vel = self._data.qpos[servo.qpos_index], self._data.qvel[servo.qvel_index]
        mujoco.mj_fullM(self._model, self._full_mass, self._data.qM)
        servo.mass_matrix = arm_part(self._full_mass, self._qvel_index)
        servo.new_update = False
