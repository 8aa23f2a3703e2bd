"""What an `eef_delta` action does to the arm in one control period.

LIBERO's checkpoints were trained on robosuite's OSC_POSE controller, which pulls the tool towards
*measured pose + delta* as a critically damped impedance for 50 ms and does not arrive.  To command joints
instead, this law runs that controller on the arm's own model for one period and returns where it leads.

Source: Khatib 1987 (operational space control, position and orientation decoupled, torques for the
posture projected into the null space), with the gains and conventions of robosuite 1.4
`controllers/osc.py`: the orientation error is half the sum of the cross products of the axes (a sine, not
an angle), and torques are cut at the actuators' limits.  Pure functions of NumPy arrays; same input, same
bits.
"""

from __future__ import annotations

import math

import numpy as np
import pinocchio as pin

from policies.types import ActionSpace, FloatArray, VegaError
from vega3d_ros.control.kinematics import Kinematics

STEP_S = 0.002
# Jacobian and inertia change little in 10 ms; computing them at every 2 ms would cost the most of a call
# and move the result by less than 0.01 mm.
STEPS_PER_MODEL = 5
# A matrix whose largest entry times that of its inverse is more has no inverse worth having.
ILL = 1e8


class ImpedanceLaw:
    """The OSC_POSE law for one arm.  Not thread-safe (it shares `kinematics`' workspace).

    action_space: kind `eef_delta`; gives the period, the scales and the gains.  home (n,) rad: the posture
    that the free direction of a redundant arm is drawn to.
    """

    def __init__(self, kinematics: Kinematics, action_space: ActionSpace, home: FloatArray) -> None:
        if action_space.kind != "eef_delta" or action_space.dim != 7:
            raise VegaError(
                f"The impedance law needs eef_delta actions of 7 numbers, not {action_space.kind} of "
                f"{action_space.dim}: use a checkpoint whose action space fits."
            )
        self._home = np.asarray(home, dtype=np.float64)
        if self._home.shape != (kinematics.n,):
            raise VegaError(f"Parameter home has {self._home.size} angles: give {kinematics.n}, one per arm joint.")
        inertia = kinematics.dynamics(self._home, np.zeros(kinematics.n))[3]
        if np.linalg.eigvalsh(inertia)[0] < 1e-6:
            raise VegaError("The robot description gives the arm no inertia: add <inertial> to every link of the URDF.")
        self._kinematics = kinematics
        self._space = action_space
        self._steps = max(1, round(1.0 / (action_space.rate_hz * STEP_S)))
        self._dt = 1.0 / (action_space.rate_hz * self._steps)
        self._lowest = -kinematics.effort_limits

    def goal(self, q: FloatArray, action: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position (3,) m and rotation (3, 3), base frame, that the action (>= 6,) pulls towards from q (n,) rad.

        Numbers beyond +-1 are cut there, as the controller does.
        """
        delta = np.minimum(np.maximum(np.asarray(action, dtype=np.float64)[:6], -1.0), 1.0)
        position, rotation = self._kinematics.tip_pose(q)
        turn = pin.exp3(self._space.rotation_scale * delta[3:])
        return position + self._space.position_scale * delta[:3], turn.dot(rotation)

    def step(self, q: FloatArray, qd: FloatArray, action: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Joint positions (n,) rad and velocities (n,) rad/s at the end of the period.

        q (n,) rad and qd (n,) rad/s are measured; action (7,) is in the units of the action space.  The
        result is the law's own and may lie beyond joint limits: the safety guard decides about those.
        """
        goal_position, goal_rotation = self.goal(q, action)
        kinematics, lowest, highest, dt = self._kinematics, self._lowest, self._kinematics.effort_limits, self._dt
        n = kinematics.n
        state = np.concatenate([q, qd]).astype(np.float64, copy=False)
        q, qd = state[:n], state[n:]
        torque = np.empty(n)
        for index in range(self._steps):
            if index % STEPS_PER_MODEL == 0:
                position, rotation, jacobian, inertia, bias = kinematics.dynamics(q, qd)
                error = np.concatenate([goal_position - position, orientation_error(goal_rotation, rotation)])
                offset, gain, inverse = self._linear_law(q, error, jacobian, inertia, bias)
            gain.dot(state, out=torque)
            np.subtract(offset, torque, out=torque)
            np.minimum(np.maximum(torque, lowest, out=torque), highest, out=torque)
            torque -= bias
            qd += dt * inverse.dot(torque)
            q += dt * qd
        q, qd = q.copy(), qd.copy()
        return q, qd

    def _linear_law(
        self, q: FloatArray, error: FloatArray, jacobian: FloatArray, inertia: FloatArray, bias: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The law about one configuration q (n,) rad, as torque = offset - gain @ (q, qd) before torque limits.

        error (6,): from the tool to its goal at q.  Returns offset (n,), gain (n, 2 n), inverse inertia (n, n).
        """
        kp, kp_null = self._space.kp, self._space.kp_null
        wrench_to_torque, null, inverse = _operational_space(jacobian, inertia)
        posture = null.dot(inertia)
        tool = wrench_to_torque.dot(jacobian)
        home = self._kinematics.nearest(q, self._home)
        stiffness = kp * tool + kp_null * posture
        damping = 2.0 * math.sqrt(kp) * tool + 2.0 * math.sqrt(kp_null) * posture
        offset = kp * (wrench_to_torque.dot(error) + tool.dot(q)) + kp_null * posture.dot(home) + bias
        return offset, np.concatenate([stiffness, damping], axis=1), inverse


def orientation_error(goal: FloatArray, current: FloatArray) -> FloatArray:
    """(3,) base axes: sin(angle) * axis of the rotation from `current` to `goal`, both (3, 3)."""
    turn = goal.dot(current.T)
    return 0.5 * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])


def _operational_space(jacobian: FloatArray, inertia: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Maps of operational space control for one configuration of n joints.

    Returns (n, 6) from the tool's acceleration to joint torques, with position and orientation each
    weighted by their own inertia; (n, n) the projector of posture torques; (n, n) the inverse inertia.
    """
    inverse: FloatArray = np.linalg.inv(inertia).astype(np.float64, copy=False)
    spread = jacobian.dot(inverse)
    mobility = spread.dot(jacobian.T)
    weights = np.zeros((6, 6))
    weights[:3, :3], weights[3:, 3:] = _inverses(mobility[:3, :3], mobility[3:, 3:])
    null = np.eye(len(inertia)) - jacobian.T.dot(_inverse(mobility)).dot(spread)
    return jacobian.T.dot(weights), null, inverse


def _inverses(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`_inverse` of both, in one call where both have one: of matrices so small the calls are what takes the time."""
    both = np.array([first, second])
    try:
        inverse = np.linalg.inv(both).astype(np.float64, copy=False)
        if (abs(inverse).max(axis=(1, 2)) * abs(both).max(axis=(1, 2)) < ILL).all():
            return inverse[0], inverse[1]
    except np.linalg.LinAlgError:
        pass
    return _inverse(first), _inverse(second)


def _inverse(mobility: FloatArray) -> FloatArray:
    """The inverse, or near a singularity the pseudo-inverse, which takes four times as long."""
    try:
        inverse: FloatArray = np.linalg.inv(mobility).astype(np.float64, copy=False)
        if abs(inverse).max() * abs(mobility).max() < ILL:
            return inverse
    except np.linalg.LinAlgError:
        pass
    return np.linalg.pinv(mobility).astype(np.float64, copy=False)
