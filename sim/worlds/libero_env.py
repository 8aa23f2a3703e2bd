"""LIBERO, LIBERO-PRO and LIBERO-plus tasks as an `Environment`: the OpenVLA-OFT protocol, rendering on demand.

Protocol (openvla-oft `experiments/robot/libero/run_libero_eval.py`): `env.seed(0)` once per task, then for every
trial a reset, the official initial state, ten no-op steps with the gripper open; step limits without those ten;
success at the first `done`.  A reset draws from NumPy's global generator, so trial k depends on the k resets before
it; here `reset(k)` repeats those draws and continues from there, which makes every trial independent of what ran
before it in the process, other users of that generator included.
A reset does not rebuild the MuJoCo model (10 ms instead of seconds), and a control step computes what robosuite
computes three times once (`stepping/control_step.py`): the states they lead to are the same, bit for bit.
Images and states are those at the end of a control step.  The stock environment returns what its observables sampled on
a clock of their own, up to one physics substep (2 ms) before.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from policies.types import FloatArray, Image, RobotState, VegaError
from sim.worlds.camera_model import CameraModel, camera_model
from sim.worlds.installation import check_versions, render_device
from sim.worlds.plus.libero_plus import PlusBenchmark, Variant, moved_camera
from sim.worlds.plus.sensor_noise import add_noise
from sim.worlds.suites import MAX_STEPS, base_suite, initial_states, load_task, task_instruction

if TYPE_CHECKING:
    from sim.worlds.drawing import Drawing
    from sim.worlds.stepping.control_step import ControlStep
    from sim.worlds.stepping.joint_controller import JointFollower

os.environ.setdefault("MUJOCO_GL", "egl")

WAIT_STEPS = 10
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
JOINT_NAMES = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_NAMES = ("panda_finger_joint1", "panda_finger_joint2")
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
GL_REMEDY = "install a software renderer: sudo apt-get install -y libegl1 libgl1 libgles2"


class LiberoEnvironment:
    """One LIBERO task on the Panda, 20 Hz, OSC_POSE or joint commands.  Single-threaded (OpenGL).

    Raises VegaError on an unknown suite or task and where no OpenGL library is found.
    """

    control_period_s = 0.05
    cameras = tuple(CAMERAS)
    _drawing: Drawing | None = None
    _noise = 0  # of LIBERO-plus, which other worlds have not

    def __init__(self, suite: str, task: int, *, seed: int = 0, image_size: int = 256) -> None:
        benchmark = load_task(suite, task)
        self.suite, self.task, self.seed, self.image_size = suite, task, seed, image_size
        self.instruction = task_instruction(suite, benchmark, task)
        self.max_steps = MAX_STEPS[base_suite(suite)]
        variant = benchmark.variant(task) if isinstance(benchmark, PlusBenchmark) else None
        self._noise = variant.noise if variant else 0
        self.initial_states = np.asarray(initial_states(suite, benchmark, task))
        self.env = _build(benchmark.get_task_bddl_file_path(task))
        if variant is not None:
            assert isinstance(benchmark, PlusBenchmark)
            self._vary(benchmark, variant)
        self._trial = 0
        self._control_step = control_step(self.env)
        self._generator_before: list[Any] = []  # NumPy's global generator before the reset of trial 0, 1, ...
        self._follower: JointFollower | None = None
        self._gripper = -1.0
        self._steps = 0
        robot = self.env.robots[0]
        self.base_position: FloatArray = np.array(robot.base_pos, dtype=float)
        self.base_quaternion: FloatArray = np.array(robot.base_ori, dtype=float)
        self._base_rotation = _rotation(self.base_quaternion)

    @property
    def trials(self) -> int:
        """Number of official initial states."""
        return len(self.initial_states)

    def reset(self, trial: int) -> None:
        if not 0 <= trial < self.trials:
            raise VegaError(
                f"Task {self.task} of {self.suite} has trials 0 to {self.trials - 1}: trial {trial} does not exist."
            )
        if not self._generator_before:
            self.env.seed(self.seed)
            self._generator_before.append(np.random.get_state())
        while True:
            known = min(trial, len(self._generator_before) - 1)
            np.random.set_state(self._generator_before[known])
            self.random_reset()
            if known + 1 == len(self._generator_before):
                self._generator_before.append(np.random.get_state())
            if known == trial:
                break
        self._trial = trial
        sim = self.env.sim
        sim.set_state_from_flattened(self.initial_states[trial])
        sim.forward()
        self.env._check_success()
        self.env._post_process()
        self.settle()

    def random_reset(self) -> None:
        """Reset with a random layout drawn from NumPy's global generator, without settling (demonstrations)."""
        from robosuite.utils.errors import RandomizationError

        self._use_osc()
        while True:
            try:
                self.env.reset()
                break
            except RandomizationError:
                continue
        # A rebuilt model would start with a fresh gripper; the same here, or the first steps differ.
        gripper = self.env.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        self._gripper = -1.0
        self._steps = 0

    def settle(self) -> None:
        """The protocol's ten no-op steps."""
        for _ in range(WAIT_STEPS):
            self.step_eef(NO_OP)
        self._steps = 0

    def step_quickly(self) -> None:
        """Solve contacts once a physics step from now on (demonstrations): nothing that is scored."""
        self._control_step.quick = True

    def seed_random(self, seed: int) -> None:
        """Seed the generator that `random_reset` draws from."""
        self.env.seed(seed)

    def state(self) -> RobotState:
        robot, sim = self.env.robots[0], self.env.sim
        position = sim.data.site_xpos[robot.eef_site_id] - self.base_position
        rotation = self._base_rotation.T @ sim.data.get_body_xmat("robot0_right_hand")
        return RobotState(
            stamp_ns=round(self._steps * self.control_period_s * 1e9),
            joint_names=JOINT_NAMES,
            joint_positions=np.array(robot._joint_positions, dtype=float),
            joint_velocities=np.array(robot._joint_velocities, dtype=float),
            gripper_positions=np.abs(sim.data.qpos[robot._ref_gripper_joint_pos_indexes]),
            eef_position=self._base_rotation.T @ position,
            eef_quaternion=_quaternion(rotation),
        )

    def render(self, camera: str) -> Image:
        if camera not in CAMERAS:
            raise VegaError(f"There is no camera '{camera}': choose one of {', '.join(CAMERAS)}.")
        sim = self.env.sim
        if self._drawing is None or self._drawing.model is not sim.model._model:
            from sim.worlds.drawing import Drawing  # MuJoCo is imported here and not before

            self._drawing = Drawing(sim.model._model)
        picture = self._drawing.picture(sim, CAMERAS[camera], self.image_size)
        if not self._noise or camera != "agentview":
            return picture
        # Of its own for each step: a picture that is drawn again is the same.
        generator = np.random.default_rng((self.seed, self.task, self._trial, self._steps))
        return np.ascontiguousarray(add_noise(picture[::-1], self._noise, generator)[::-1])

    def camera_model(self, camera: str) -> CameraModel:
        """How that camera sees, and where it is mounted: in the world, or on the hand's flange."""
        size, links = self.image_size, {"robot0_right_hand": "panda_hand_flange"}
        return camera_model(self.env.sim.model._model, CAMERAS[camera], size, size, links)

    def step_eef(self, action: FloatArray) -> bool:
        self._use_osc()
        self._gripper = float(action[-1]) or self._gripper
        return self._step(np.asarray(action, dtype=float))

    def step_joints(self, positions: FloatArray, velocities: FloatArray, gripper: float) -> bool:
        if self._follower is None:
            # Not at the top, as in `control_step`.
            from sim.worlds.stepping.joint_controller import JointFollower

            self._follower = JointFollower()
            self._follower.attach(self.env.robots[0])
        self._gripper = float(np.sign(gripper)) or self._gripper
        self._follower.command(positions, velocities)
        return self._step(self._follower.action(self._gripper))

    def states_digest(self) -> bytes:
        """The simulator's state (time, qpos, qvel) as bytes, for comparing runs bit for bit."""
        return np.asarray(self.env.sim.get_state().flatten(), dtype=np.float64).tobytes()

    def close(self) -> None:
        # robosuite's EGL contexts complain from __del__ when the interpreter ends; that says nothing to a user.
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            self.env.close()

    def _vary(self, benchmark: PlusBenchmark, variant: Variant) -> None:
        """What LIBERO-plus changes about the scene; its noise is added when a picture is drawn."""
        robot, model = self.env.robots[0], self.env.sim.model
        start = benchmark.start(self.task, type(robot.robot_model).__name__)
        if start is not None:
            robot.init_qpos = start
        camera = model.camera_name2id(CAMERAS["agentview"])
        model.cam_pos[camera], model.cam_quat[camera] = moved_camera(
            model.cam_pos[camera], model.cam_quat[camera], variant.view
        )

    def _step(self, action: FloatArray) -> bool:
        self._steps += 1
        self._control_step(action)
        return bool(self.env._check_success())

    def _use_osc(self) -> None:
        if self._follower is not None:
            self._follower.detach()
            self._follower = None


@contextlib.contextmanager
def building() -> Iterator[None]:
    """While an environment is built: quiet, and VegaError where no OpenGL library is found."""
    check_versions()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), render_device():
            yield
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        if re.search(r"(?i)\b(lib)?(egl|osmesa|opengl|gl)\b|glGetError|eglQueryString", str(error)):
            raise VegaError(f"OpenGL is missing ({error}): {GL_REMEDY}.") from error
        raise


def control_step(env: Any) -> ControlStep:
    """What steps a robosuite environment faster than its own `step`."""
    # Not at the top: robosuite fails to import where OpenGL is missing, and `building` says that in a sentence.
    from sim.worlds.stepping.control_step import ControlStep

    return ControlStep(env)


def switch_off_observables(env: Any) -> None:
    """States are read from the simulator when asked for."""
    for name in env.observation_names:
        env.modify_observable(name, "enabled", False)
        env.modify_observable(name, "active", False)


def _build(bddl_file: str) -> Any:
    """The robosuite environment of a bddl file."""
    with building():
        from libero.libero.envs.env_wrapper import ControlEnv

        env = ControlEnv(bddl_file, use_camera_obs=False, has_offscreen_renderer=True, hard_reset=True).env
    env.hard_reset = False
    _reset_as_if_rebuilt(env)
    switch_off_observables(env)
    return env


def _reset_as_if_rebuilt(env: Any) -> None:
    """Make `env.sim.reset()` leave what building the model afresh leaves.

    A new model has its fixtures at the origin, and what stands on one is placed from there.  Resets of fixtures move
    bodies of the model itself.  After building a model robosuite makes two forward passes, one of them for the cameras'
    context; each stores accelerations from which the constraint solver starts next time, so without them states differ
    in the last bits.
    """
    sim, model = env.sim, env.sim.model
    position, quaternion = model.body_pos.copy(), model.body_quat.copy()
    for fixture in env.fixtures_dict.values():
        if fixture.root_body in model.body_names:
            body = model.body_name2id(fixture.root_body)
            position[body], quaternion[body] = 0.0, (1.0, 0.0, 0.0, 0.0)
    plain = sim.reset

    def reset() -> None:
        plain()
        model.body_pos[:], model.body_quat[:] = position, quaternion
        sim.forward()
        sim.forward()

    sim.reset = reset


def _rotation(quaternion: FloatArray) -> FloatArray:
    """xyzw -> (3, 3)."""
    from robosuite.utils.transform_utils import quat2mat

    return np.asarray(quat2mat(quaternion), dtype=float)


def _quaternion(rotation: FloatArray) -> FloatArray:
    """(3, 3) -> xyzw."""
    from robosuite.utils.transform_utils import mat2quat

    return np.asarray(mat2quat(rotation), dtype=float)
