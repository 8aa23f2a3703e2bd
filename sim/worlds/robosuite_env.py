"""robosuite's own tasks as an `Environment`: Lift, PickPlaceCan, Stack, Door, NutAssemblySquare on the Panda.

There are no official initial states: trial k is what robosuite's own reset draws after seeding NumPy's global generator
with `seed + k`, the model being rebuilt as robosuite does by default.  So every trial is independent of the others.
Success is the task's own check after a step; 20 Hz, OSC_POSE, 500 steps at most (robosuite's benchmark horizon).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.types import FloatArray, VegaError
from sim.worlds.libero_env import LiberoEnvironment, building, control_step, switch_off_observables

SUITE = "robosuite"
PROTOCOL = "robosuite-seeded"
MAX_STEPS = 500
# Task -> sentence for the policy; robosuite's tasks have none of their own.
TASKS = {
    "Lift": "lift the red cube",
    "PickPlaceCan": "pick up the can and place it in its bin",
    "Stack": "stack the red cube on the green cube",
    "Door": "open the door",
    "NutAssemblySquare": "put the square nut on the square peg",
}


class RobosuiteEnvironment(LiberoEnvironment):
    """One robosuite task.  The arm, its commands, states and cameras are those of LIBERO's; beginning and end are not.

    Raises VegaError on an unknown task and where no OpenGL library is found.
    """

    def __init__(self, task: int, *, seed: int = 0, image_size: int = 256) -> None:
        if not 0 <= task < len(TASKS):
            raise VegaError(f"robosuite has tasks 0 to {len(TASKS) - 1} here: task {task} does not exist.")
        name = list(TASKS)[task]
        self.suite, self.task, self.seed, self.image_size = SUITE, task, seed, image_size
        self.instruction, self.max_steps = TASKS[name], MAX_STEPS
        self.env = _make(name)
        self._control_step = control_step(self.env)
        self._follower = None
        self.reset(0)

    @property
    def trials(self) -> int:
        """Any number of seeds will do; this is as many as NumPy's generator knows."""
        return 2**32 - self.seed

    def reset(self, trial: int) -> None:
        if not 0 <= trial < self.trials:
            raise VegaError(f"robosuite has trials 0 to {self.trials - 1}: trial {trial} does not exist.")
        self._use_osc()
        np.random.seed(self.seed + trial)
        with building():  # a hard reset makes the model and the drawing context anew
            self.env.reset()
        self._gripper, self._steps = -1.0, 0
        robot = self.env.robots[0]
        self.base_position: FloatArray = np.array(robot.base_pos, dtype=float)
        self.base_quaternion: FloatArray = np.array(robot.base_ori, dtype=float)
        self._base_rotation = np.array(robot.sim.data.get_body_xmat(robot.robot_model.root_body)).reshape(3, 3)


def _make(name: str) -> Any:
    with building():
        import robosuite

        controller = robosuite.load_controller_config(default_controller="OSC_POSE")
        env = robosuite.make(
            name, robots="Panda", controller_configs=controller, has_renderer=False, has_offscreen_renderer=True,
            use_camera_obs=False, control_freq=20, horizon=MAX_STEPS, ignore_done=True, hard_reset=True,
        )  # fmt: skip
    switch_off_observables(env)
    return env
