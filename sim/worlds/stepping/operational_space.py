"""The torques of robosuite 1.4's OSC_POSE, bit for bit, without the Python around it.

Same operations in the same order on arrays of the same memory layout: what robosuite compiles (`opspace_matrices`,
`orientation_error`, `nullspace_torques`) is called from code compiled around it, and each product that robosuite leaves
to NumPy stays NumPy's, because the two link different BLAS libraries.  Element by element there is nothing to round
differently.  The time is saved where nothing is calculated: names looked up, Jacobians asked for four times, limits
built again for every physics step.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numba import njit
from robosuite.controllers.osc import OperationalSpaceController
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

from policies.types import FloatArray


def is_osc_pose(controller: Any) -> bool:
    """Whether this is the controller that `OperationalSpaceLaw` knows: OSC_POSE by deltas, gains fixed."""
    return (
        type(controller) is OperationalSpaceController
        and controller.impedance_mode == "fixed"
        and controller.use_ori
        and controller.use_delta
        and controller.uncoupling
        and controller.interpolator_pos is None
        and controller.interpolator_ori is None
        and hasattr(opspace_matrices, "py_func")  # robosuite's macro ENABLE_NUMBA
    )


class OperationalSpaceLaw:
    """Runs an OSC_POSE controller between forward passes that somebody else makes."""

    def __init__(self, controller: OperationalSpaceController) -> None:
        sim = controller.sim
        self.controller = controller
        self._model, self._data = sim.model._model, sim.data._data
        self._site = sim.model.site_name2id(controller.eef_name)
        self._qpos_index, self._qvel_index = np.array(controller.qpos_index), np.array(controller.qvel_index)
        velocities = self._model.nv
        self._jacp, self._jacr = np.zeros((3, velocities)), np.zeros((3, velocities))
        self._full_mass, self._wrench = np.zeros((velocities, velocities)), np.zeros(6)
        data = self._data
        self._position, self._rotation = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._qpos, self._qvel, self._bias, self._packed_mass = data.qpos, data.qvel, data.qfrc_bias, data.qM
        self._measured: tuple[FloatArray, ...] = ()

    def set_goal(self, action: FloatArray) -> None:
        """Begin a control period with (6,) deltas, from a state whose forward pass was made."""
        controller = self.controller
        if controller.new_update:
            controller.ee_pos, controller.ee_ori_mat = np.array(self._position), np.array(self._rotation)
            controller.new_update = False  # or set_goal would make a forward pass of its own
            controller.set_goal(action)
            controller.new_update = True
        else:
            controller.set_goal(action)

    def torques(self) -> FloatArray:
        """(n,) N m for the next physics step, not clipped."""
        controller = self.controller
        if not controller.new_update:
            # A new controller begins with what it measured when it was made, before the initial state was set.
            return controller.run_controller()
        mujoco.mj_jacSite(self._model, self._data, self._jacp, self._jacr, self._site)
        mujoco.mj_fullM(self._model, self._full_mass, self._packed_mass)
        linear, angular = self._jacp.dot(self._qvel), self._jacr.dot(self._qvel)
        mass, jacobian, lambda_pos, lambda_ori, nullspace, force, torque = _matrices(
            self._jacp, self._jacr, self._full_mass, self._qvel_index,
            controller.goal_pos, controller.goal_ori, self._position, self._rotation, linear, angular,
            controller.kp, controller.kd,
        )  # fmt: skip
        wrench = self._wrench
        lambda_pos.dot(force, out=wrench[:3])
        lambda_ori.dot(torque, out=wrench[3:])
        torques, joint_pos, joint_vel = _joint_torques(
            jacobian.T.dot(wrench), self._bias, self._qpos, self._qvel, self._qpos_index, self._qvel_index,
            mass, nullspace, controller.initial_joint,
        )  # fmt: skip
        self._measured = linear, angular, joint_pos, joint_vel, jacobian, mass, torques
        return torques

    def finish(self) -> None:
        """Leave in the controller what it would have measured at the last physics step of a period."""
        controller = self.controller
        # mj_Euler moves qpos on; where the site is stays what the last forward pass made of it.
        controller.ee_pos, controller.ee_ori_mat = np.array(self._position), np.array(self._rotation)
        (
            controller.ee_pos_vel, controller.ee_ori_vel, controller.joint_pos, controller.joint_vel,
            controller.J_full, controller.mass_matrix, controller.torques,
        ) = self._measured  # fmt: skip
        controller.J_pos, controller.J_ori = controller.J_full[:3], controller.J_full[3:]
        controller.new_update = True


@njit(cache=True)  # type: ignore[untyped-decorator]
def arm_part(full: FloatArray, index: FloatArray) -> FloatArray:
    """(n, n) rows and columns of a mass matrix, column by column in memory as NumPy's indexing leaves them."""
    n = index.size
    part = np.empty((n, n)).T
    for row in range(n):
        for column in range(n):
            part[row, column] = full[index[row], index[column]]
    return part


@njit(cache=True)  # type: ignore[untyped-decorator]
def _matrices(
    jacp: FloatArray,
    jacr: FloatArray,
    full_mass: FloatArray,
    index: FloatArray,
    goal: FloatArray,
    goal_rotation: FloatArray,
    position: FloatArray,
    rotation: FloatArray,
    linear: FloatArray,
    angular: FloatArray,
    kp: FloatArray,
    kd: FloatArray,
) -> tuple[FloatArray, ...]:
    """What multiplies what: the arm's matrices, then force and torque (3,) wanted at the end effector."""
    n = index.size
    j_pos, j_ori, j_full = np.empty((n, 3)).T, np.empty((n, 3)).T, np.empty((n, 6)).T
    for column in range(n):
        for row in range(3):
            j_pos[row, column] = j_full[row, column] = jacp[row, index[column]]
            j_ori[row, column] = j_full[row + 3, column] = jacr[row, index[column]]
    mass = arm_part(full_mass, index)
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, j_full, j_pos, j_ori)
    force = kp[:3] * (goal - position) + (-linear) * kd[:3]
    torque = kp[3:] * orientation_error(goal_rotation, rotation) + (-angular) * kd[3:]
    return mass, j_full, lambda_pos, lambda_ori, nullspace, force, torque


@njit(cache=True)  # type: ignore[untyped-decorator]
def _joint_torques(
    task_torques: FloatArray,
    bias: FloatArray,
    qpos: FloatArray,
    qvel: FloatArray,
    qpos_index: FloatArray,
    qvel_index: FloatArray,
    mass: FloatArray,
    nullspace: FloatArray,
    initial_joint: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    joint_pos, joint_vel = qpos[qpos_index], qvel[qvel_index]
    torques = task_torques + bias[qvel_index]
    torques += nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)
    return torques, joint_pos, joint_vel
