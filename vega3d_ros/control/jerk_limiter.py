"""Position commands without jolts, for controllers that do what they are told at once.  NumPy and Ruckig, no ROS.

A forward_command_controller neither interpolates nor brakes.  Between the targets that come at the policy's rate, and
after the last of them, this gives positions at the controller's rate within velocity, acceleration and jerk.

Source: Berscheid & Kroeger 2021 (Ruckig, arXiv 2105.04830), community version.
"""

from __future__ import annotations

import numpy as np
from ruckig import ControlInterface, InputParameter, OutputParameter, Result, Ruckig

from policies.types import FloatArray, VegaError

# Room for rounding: Ruckig refuses a target that lies on its limit.
INSIDE = 1.0 - 1e-6


class JerkLimiter:
    """Follows targets; without a fresh one it brakes.  Used from one thread.

    positions (n,) rad: where the arm rests at the start.  velocity (n,) rad/s, acceleration (n,) rad/s^2 and jerk (n,)
    rad/s^3: limits of what `step` returns.  period_s: time between two calls of `step`.  patience_s: how old a target
    may be before it brakes.  Raises VegaError on limits that are not positive.
    """

    def __init__(
        self,
        positions: FloatArray,
        velocity: FloatArray,
        acceleration: FloatArray,
        jerk: FloatArray,
        period_s: float,
        patience_s: float,
    ) -> None:
        n = len(positions)
        limits = [np.asarray(limit, dtype=np.float64) for limit in (velocity, acceleration, jerk)]
        if any(limit.shape != (n,) or not np.all(limit > 0.0) for limit in limits):
            raise VegaError(f"Velocity, acceleration and jerk limits must be {n} positive numbers: correct the YAML.")
        self._input, self._output = InputParameter(n), OutputParameter(n)
        self._generator = Ruckig(n, period_s)
        self._input.current_position = list(positions)
        self._input.max_velocity, self._input.max_acceleration, self._input.max_jerk = (list(x) for x in limits)
        self._velocity = limits[0]
        self._period_s, self._patience_s = period_s, patience_s
        self._age_s = np.inf
        self.positions: FloatArray = np.array(positions, dtype=np.float64)
        self.velocities: FloatArray = np.zeros(n)
        self.accelerations: FloatArray = np.zeros(n)

    @property
    def at_rest(self) -> bool:
        return bool(np.all(np.abs(self.velocities) < 1e-6) and np.all(np.abs(self.accelerations) < 1e-6))

    def target(self, positions: FloatArray, velocities: FloatArray) -> None:
        """Be at positions (n,) rad with velocities (n,) rad/s as soon as the limits allow."""
        self._input.control_interface = ControlInterface.Position
        self._input.target_position = list(positions)
        self._input.target_velocity = list(np.clip(velocities, -INSIDE * self._velocity, INSIDE * self._velocity))
        self._input.target_acceleration = [0.0] * len(positions)
        self._age_s = 0.0

    def brake(self) -> None:
        """Come to rest as soon as the limits allow, wherever that is."""
        self._age_s = np.inf

    def step(self) -> FloatArray:
        """Positions (n,) rad for the next period."""
        if self._age_s > self._patience_s:
            self._input.control_interface = ControlInterface.Velocity
            self._input.target_velocity = [0.0] * len(self.positions)
            self._input.target_acceleration = [0.0] * len(self.positions)
        self._age_s += self._period_s
        result = self._generator.update(self._input, self._output)
        if result not in (Result.Working, Result.Finished):
            raise VegaError(f"No motion leads to the commanded target ({result}): lower velocity_scale and try again.")
        self._output.pass_to_input(self._input)
        self.positions = np.array(self._output.new_position)
        self.velocities = np.array(self._output.new_velocity)
        self.accelerations = np.array(self._output.new_acceleration)
        return self.positions.copy()
