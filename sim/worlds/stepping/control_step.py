"""robosuite's control step without what it computes three times: equal to it bit for bit, or left to it.

At each of the 25 physics steps of a control step robosuite makes a forward pass, its controller makes another one, and
`mj_step` a third.  Positions and velocities are the same in all three, so kinematics, collisions and velocities are
computed once here.  The constraint solver does run three times, each time from the accelerations of the time before:
its result depends on where it starts in the last bits.  Where nothing is scored it runs once (`quick`).
"""

from __future__ import annotations

from typing import Any, Protocol

import mujoco
import numpy as np
from numba import njit
from robosuite.environments.base import MujocoEnv
from robosuite.environments.robot_env import RobotEnv
from robosuite.models.grippers import PandaGripper
from robosuite.robots.single_arm import SingleArm

from policies.types import FloatArray
from sim.worlds.stepping.joint_controller import JointServo, ServoLaw
from sim.worlds.stepping.operational_space import OperationalSpaceLaw, is_osc_pose

_CALLBACKS = tuple(getattr(mujoco, name) for name in dir(mujoco) if name.startswith("get_mjcb_"))
_BEGINNING, _AFTER_VELOCITIES = mujoco.mjtStage.mjSTAGE_NONE, mujoco.mjtStage.mjSTAGE_VEL


class Law(Protocol):
    """An arm's controller between forward passes that somebody else makes."""

    controller: Any

    def set_goal(self, action: FloatArray) -> None: ...

    def torques(self) -> FloatArray: ...

    def finish(self) -> None: ...


class ControlStep:
    """Steps a robosuite environment; single-threaded, like it.

        step = ControlStep(env)
        step(action)   # instead of env.step(action); no observations, no reward
        env._check_success()

    What a control step leaves in MuJoCo's data, in the environment and in its controller and gripper is the same; the
    robot's history of recent forces and velocities (`recent_ee_forcetorques`, ...), which only observations and some
    rewards of robosuite's read, is not kept.  An environment that differs from what is known here is stepped by itself.

    quick: contacts are solved once a physics step, as MuJoCo's `mj_step1` and `mj_step2` do it, for demonstrations
    only: the same motion to within the solver's tolerance, not its bits.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.quick = False
        self._arm: _Arm | None = None

    def __call__(self, action: FloatArray) -> None:
        """One control period with the environment's own (n,) action."""
        env = self.env
        arm = self._known_arm()
        if arm is None or env.done or len(action) != env.action_dim:
            env.step(action)
            return
        env.timestep += 1
        arm.advance(action, int(env.control_timestep / env.model_timestep), self.quick)
        env.cur_time += env.control_timestep
        env._post_action(action)

    def _known_arm(self) -> _Arm | None:
        """The arm as it is now (a reset makes a new controller, or a new simulator), None where it is not known."""
        env = self.env
        if any(callback() is not None for callback in _CALLBACKS) or any(o._enabled for o in env._observables.values()):
            return None
        controller = env.robots[0].controller
        if self._arm is None or self._arm.law.controller is not controller or self._arm.sim is not env.sim:
            known = _is_known_environment(env) and _is_known_model(env.sim.model._model)
            law = _law(controller) if known else None
            self._arm = None if law is None else _Arm(env, law)
        return self._arm


def _is_known_environment(env: Any) -> bool:
    """One Panda with its gripper, stepped by robosuite's own methods."""
    kind, robot = type(env), env.robots[0]
    steps = [cls for cls in kind.__mro__ if "step" in vars(cls)]
    # LIBERO's step adds its check of success to robosuite's, and its _pre_action nothing.
    return (
        len(env.robots) == 1
        and all(cls is MujocoEnv or cls.__name__ == "BDDLBaseDomain" for cls in steps)
        and all(
            cls in (RobotEnv, MujocoEnv) or cls.__name__ == "BDDLBaseDomain"
            for cls in kind.__mro__
            if "_pre_action" in vars(cls)
        )
        and type(robot).control is SingleArm.control
        and robot.has_gripper
        and type(robot.gripper) is PandaGripper
        and env.viewer is None
    )


def _is_known_model(model: Any) -> bool:
    """A model that `mj_step` takes through `mj_forward` and `mj_Euler`, with nothing between."""
    return bool(
        model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
        and model.opt.enableflags == 0
        and model.nplugin == 0
        and model.nuserdata == 0
    )


def _law(controller: Any) -> Law | None:
    if isinstance(controller, JointServo):
        return ServoLaw(controller)
    return OperationalSpaceLaw(controller) if is_osc_pose(controller) else None


class _Arm:
    """The arm of an environment and what does not change while its controller stays."""

    def __init__(self, env: Any, law: Law) -> None:
        self.sim, self.law = env.sim, law
        self._robot = robot = env.robots[0]
        self._model, self._data = self.sim.model._model, self.sim.data._data
        self._arm_dim = robot.controller.control_dim
        self._low, self._high = (np.array(limit) for limit in robot.torque_limits)
        self._arm_actuators = np.array(robot._ref_joint_actuator_indexes)
        self._fingers = np.array([self.sim.model.actuator_name2id(name) for name in robot.gripper.actuators])
        limits = self._model.actuator_ctrlrange[self._fingers]
        self._finger_middle = 0.5 * (limits[:, 1] + limits[:, 0])
        self._finger_half = 0.5 * (limits[:, 1] - limits[:, 0])

    def advance(self, action: FloatArray, substeps: int, quick: bool) -> None:
        """The physics steps of one control period."""
        model, data, law = self._model, self._data, self.law
        ctrl = data.ctrl
        fingers = self._finger_commands(action[self._arm_dim :], substeps)
        for i in range(substeps):
            last = i == substeps - 1
            if quick and law.controller.new_update:
                mujoco.mj_fwdPosition(model, data)
                mujoco.mj_fwdVelocity(model, data)
            else:
                # Sensors are read by nobody before the end of the step.
                mujoco.mj_forwardSkip(model, data, _BEGINNING, not last)
                if law.controller.new_update:  # only then does a controller make the second pass
                    mujoco.mj_fwdConstraint(model, data)
            if i == 0:
                law.set_goal(action[: self._arm_dim])
            torques = _clipped(law.torques(), self._low, self._high)
            ctrl[self._arm_actuators] = torques
            ctrl[self._fingers] = fingers[i]
            mujoco.mj_checkPos(model, data)
            mujoco.mj_checkVel(model, data)
            mujoco.mj_forwardSkip(model, data, _AFTER_VELOCITIES, not last)
            mujoco.mj_checkAcc(model, data)
            mujoco.mj_Euler(model, data)
        law.finish()
        self._robot.torques = torques

    def _finger_commands(self, action: FloatArray, substeps: int) -> FloatArray:
        """(substeps, 2): what `PandaGripper.format_action`, called at each physics step, makes of one action."""
        gripper = self._robot.gripper
        current = np.array(np.broadcast_to(gripper.current_action, (2,)), dtype=float)
        increment = np.array([-1.0, 1.0]) * gripper.speed * np.sign(action)
        commands = _ramp(current, increment, substeps)
        gripper.current_action = commands[-1].copy()
        return self._finger_middle + self._finger_half * commands


@njit(cache=True)  # type: ignore[untyped-decorator]
def _ramp(current: FloatArray, increment: FloatArray, substeps: int) -> FloatArray:
    commands = np.empty((substeps, current.size))
    for i in range(substeps):
        for j in range(current.size):
            current[j] = min(max(current[j] + increment[j], -1.0), 1.0)
            commands[i, j] = current[j]
    return commands


@njit(cache=True)  # type: ignore[untyped-decorator]
def _clipped(values: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    clipped = values.copy()
    for i in range(values.size):
        if values[i] < low[i]:
            clipped[i] = low[i]
        elif values[i] > high[i]:
            clipped[i] = high[i]
    return clipped
