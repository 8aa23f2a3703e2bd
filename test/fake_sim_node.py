"""sim_node with a small world of its own instead of LIBERO, for tests of what goes over the wire.

The joints go where they are told; the task is solved once joint 1 is beyond 1 rad; a command of joint 2 beyond 2 rad
breaks the simulator.
"""

import sys

import numpy as np

from policies.types import RobotState, VegaError
from sim.robot.sim_node import main
from sim.worlds.camera_model import CameraModel
from sim.worlds.libero_env import JOINT_NAMES


class FakeEnvironment:
    cameras = ("agentview", "wrist")
    max_steps = 30
    control_period_s = 0.05

    def __init__(self, suite, task):
        if suite != "fake" or task not in (0, 1):
            raise VegaError("There are suite fake and tasks 0 and 1: choose one of them.")
        self.suite, self.task = suite, task
        self.instruction = f"turn joint {task}"
        self.base_position = np.array([-0.6, 0.0, 0.9])
        self.base_quaternion = np.array([0.0, 0.0, 0.0, 1.0])
        self.reset(0)

    def reset(self, trial):
        if trial > 4:
            raise VegaError("There are trials 0 to 4: choose one of them.")
        self.positions, self.velocities, self.steps = np.full(7, 0.1 * trial), np.zeros(7), 0
        self.gripper = -1.0

    def state(self):
        opening = 0.04 if self.gripper < 0 else 0.0
        return RobotState(
            self.steps, JOINT_NAMES, self.positions, self.velocities, np.full(2, opening), np.zeros(3), np.eye(4)[3]
        )

    def states_digest(self):
        return np.r_[self.positions, self.velocities, self.gripper].tobytes()

    def render(self, camera):
        return np.full((256, 256, 3), 8 * self.steps + self.cameras.index(camera), dtype=np.uint8)

    def camera_model(self, camera):
        return CameraModel(256, 256, 300.0, (127.5, 127.5), "world", np.array([0.0, 0.0, 1.0]), np.eye(3))

    def step_joints(self, positions, velocities, gripper):
        if positions[1] > 2.0:
            raise RuntimeError("the world broke")
        self.positions, self.velocities, self.steps = positions, velocities, self.steps + 1
        self.gripper = gripper or self.gripper
        return bool(positions[0] > 1.0)

    def close(self):
        pass


if __name__ == "__main__":
    sys.exit(main(make_environment=FakeEnvironment))
