"""A LIBERO Panda that speaks ROS as a real arm and its cameras would.

Topics, services and parameters: docs/interfaces.md.

Time: simulated time is control steps x 50 ms and never jumps back while the node lives; each reset moves it on by
one second, so that nothing from before a reset can be taken for fresh.  Between `~/reset` and `~/run`, and after an
episode, the world stands still and nothing but latched topics is on the air.

Lockstep: an observation that stays unanswered is sent again every half second with the same stamp, since sensor data
may be lost.  A command that is not obeyed is counted and logged once.  The message of `~/success` is JSON: phase,
suite, task, trial, steps, success, error, actions_sha256, states_sha256 (see `EpisodeResult`), ignored_commands.

Threads: one.  MuJoCo renders only in the thread that made its OpenGL context, so callbacks and steps take turns in
`spin`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from policies.interrupts import ending
from policies.types import VegaError
from sim.robot import sim_parameters
from sim.robot.robot_topics import RobotTopics
from sim.worlds.episode import DigestedEnvironment, Episode
from sim.worlds.joint_target import JointTarget, joint_target
from sim.worlds.libero_env import FINGER_NAMES, JOINT_NAMES, LiberoEnvironment
from vega3d_ros.driver.trajectory import TrajectoryController
from vega3d_ros.ros.dds import apply_defaults
from vega3d_ros.ros.node_help import answer_help
from vega3d_ros.ros.node_process import SPIN_S, asked_to_end, end_ros, may_end_at_once, start_ros

COMMAND_TOPIC = "panda_arm_controller/joint_trajectory"
GRIPPER_JOINT = FINGER_NAMES[0]
GRIPPER_MIDDLE_M = 0.02
PERIOD_NS = 50_000_000
TICKS_BETWEEN_EPISODES = 20
RESEND_S = 0.5

IDLE, READY, RUNNING, OVER = "idle", "ready", "running", "over"
MakeEnvironment = Callable[[str, int], DigestedEnvironment]


class SimNode(Node):
    """The simulated robot.  `make_environment(suite, task)` raises VegaError on what does not exist."""

    def __init__(self, make_environment: MakeEnvironment = LiberoEnvironment, **node_options: Any) -> None:
        super().__init__("sim_node", **node_options)
        self._make_environment = make_environment
        self._environment: DigestedEnvironment | None = None
        self._episode: Episode | None = None
        self._phase = IDLE
        self._tick = 0
        self._first_tick = 0
        self._trial = 0
        self._target: JointTarget | None = None
        self._fresh = False
        self._messages: list[tuple[Any, Any]] = []
        self._next_tick_at = self._deadline_at = self._resend_at = 0.0
        self._ignored: Counter[str] = Counter()
        self._overruns = self._resent = 0
        self._lockstep, self._camera_every, self._command_deadline_s = True, 1, 0.0
        self._controller = TrajectoryController(JOINT_NAMES, (GRIPPER_JOINT,))
        sim_parameters.declare(self)

        self._topics = RobotTopics(self)
        self._commands = self.create_subscription(JointTrajectory, COMMAND_TOPIC, self._on_command, 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/run", self._on_run)
        self.create_service(Trigger, "~/success", self._on_success)

    # Services

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            response.message = self.reset()
            response.success = True
        except VegaError as error:
            response.message = str(error)
            self.get_logger().error(str(error))
        return response

    def _on_run(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self.run()
            response.success = True
            response.message = "The episode runs."
        except VegaError as error:
            response.message = str(error)
        return response

    def _on_success(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        report = self.report()
        response.success = bool(report.get("success"))
        response.message = json.dumps(report)
        return response

    def reset(self) -> str:
        """Go to the suite, task and trial of the parameters; returns a sentence that names them.

        An episode under way is dropped.  Raises VegaError on what does not exist or cannot be built; then the node is
        idle.
        """
        self._phase, self._episode, self._target, self._fresh, self._messages = IDLE, None, None, False, []
        self._ignored.clear()
        self._overruns = self._resent = 0
        suite, task, trial = (self.get_parameter(name).value for name in ("suite", "task", "trial"))
        self._lockstep = self.get_parameter("clock_mode").value == "lockstep"
        self._camera_every = int(self.get_parameter("camera_every").value)
        self._command_deadline_s = float(self.get_parameter("command_deadline_s").value)
        self._controller = TrajectoryController(
            JOINT_NAMES,
            (GRIPPER_JOINT,),
            bool(self.get_parameter("allow_partial_joints_goal").value),
            bool(self.get_parameter("allow_nonzero_velocity_at_trajectory_end").value),
        )
        try:
            with may_end_at_once():
                environment = self._environment_of(suite, task)
                environment.reset(trial)
            hold = environment.state()
        except VegaError:
            raise
        except Exception as error:  # whatever a physics engine raises must reach the caller of the service
            self._close_environment()
            raise VegaError(f"The simulator failed to reset ({type(error).__name__}: {error}): try again.") from error
        self._trial = trial
        self._tick += TICKS_BETWEEN_EPISODES
        self._first_tick = self._tick
        self._target = JointTarget(0, hold.joint_positions, np.zeros_like(hold.joint_positions), 0.0)
        self._controller.hold(np.append(hold.joint_positions, hold.gripper_positions[0]))
        self._episode = Episode(environment)
        self._phase = READY
        self._topics.begin(environment, self.stamp_ns)
        sentence = f"{suite} task {task} trial {trial}: {environment.instruction}"
        self.get_logger().info(sentence)
        return sentence

    def run(self) -> None:
        """Start the episode: the first observation goes out at once.  Asked again while it runs, it runs on."""
        if self._phase == RUNNING:
            return
        if self._phase != READY:
            raise VegaError(f"The simulated robot is {self._phase}: call ~/reset before ~/run.")
        self._phase = RUNNING
        self._next_tick_at = time.monotonic() + PERIOD_NS / 1e9
        self._guarded(self._observe)

    def report(self) -> dict[str, Any]:
        """The episode so far: phase, steps, outcome, fingerprints, what was ignored."""
        report: dict[str, Any] = {"phase": self._phase}
        if self._episode is not None:
            environment = self._episode.environment
            report |= {
                "suite": environment.suite,
                "task": environment.task,
                "trial": self._trial,
                "instruction": environment.instruction,
                "max_steps": environment.max_steps,
                "clock_mode": "lockstep" if self._lockstep else "realtime",
                "ignored_commands": dict(self._ignored),
                "resent": self._resent,
                "overruns": self._overruns,
                **self._episode.result().to_dict(),
            }
        return report

    # Commands

    def _on_command(self, message: JointTrajectory) -> None:
        if self._phase != RUNNING:
            self._ignore("no_episode", "A command came while no episode runs: call ~/reset and ~/run first.")
            return
        try:
            if self._lockstep:
                self._answer(joint_target(message, JOINT_NAMES, GRIPPER_JOINT, GRIPPER_MIDDLE_M))
            else:
                self._follow(message)
        except VegaError as error:
            self._ignore("malformed", str(error))

    def _answer(self, target: JointTarget) -> None:
        """lockstep: one point answers one joint state."""
        assert self._target is not None
        if target.stamp_ns != self.stamp_ns:
            self._ignore(
                "wrong_stamp",
                f"A command answers stamp {target.stamp_ns} ns, not {self.stamp_ns} ns: "
                "copy the joint state's header.stamp.",
            )
        elif self._fresh:
            self._ignore("second_answer", "Two commands answer one joint state: stop one of the two commanding nodes.")
        else:
            self._target, self._fresh = target, True

    def _follow(self, message: JointTrajectory) -> None:
        """realtime: what a joint_trajectory_controller makes of it."""
        assert self._environment is not None
        state = self._environment.state()
        positions = np.append(state.joint_positions, state.gripper_positions[0])
        self._controller.accept(message, self.stamp_ns / 1e9, positions, np.append(state.joint_velocities, 0.0))

    def _ignore(self, reason: str, sentence: str) -> None:
        """Count a command that is not obeyed; the log says it once per reason and episode."""
        self._ignored[reason] += 1
        if self._ignored[reason] == 1:
            self.get_logger().warning(f"Command ignored. {sentence}")

    # Stepping

    @property
    def stamp_ns(self) -> int:
        """Simulated time of the world as it stands."""
        return self._tick * PERIOD_NS

    def wait_s(self) -> float:
        """How long the executor may wait for a callback before `advance` has something to do."""
        if self._phase != RUNNING:
            return 0.5
        if not self._lockstep:
            return max(0.0, self._next_tick_at - time.monotonic())
        return 0.0 if self._fresh else max(0.0, min(self._resend_at, self._deadline_at) - time.monotonic())

    def advance(self) -> None:
        """Do what is due: a step, a repeated observation, the end of an episode that nobody commands."""
        now = time.monotonic()
        if self._phase != RUNNING:
            return
        if not self._lockstep:
            if now >= self._next_tick_at:
                self._keep_pace(now)
                self._guarded(self._step)
        elif self._fresh:
            self._guarded(self._step)
        elif now >= self._deadline_at:
            self._finish(
                f"No command on {COMMAND_TOPIC} answered step {self._tick - self._first_tick} within "
                f"{self._command_deadline_s:g} s: check that the policy node is active, started and without errors."
            )
        elif now >= self._resend_at:
            # Sensor data may be lost, and a node may have joined late; here the world waits, so saying it again helps.
            self._resent += 1
            self._resend_at = now + RESEND_S
            self._send(self._messages)

    def _keep_pace(self, now: float) -> None:
        period_s = PERIOD_NS / 1e9
        self._next_tick_at += period_s
        if now > self._next_tick_at:
            self._overruns += 1
            self._next_tick_at = now
            if self._overruns == 20:
                self.get_logger().warning(
                    "This machine cannot step and render at 20 Hz, so the world runs slower than real time: "
                    "raise camera_every."
                )

    def _step(self) -> None:
        assert self._episode is not None and self._target is not None
        target = self._target
        if self._lockstep:
            self._fresh = False
        else:
            positions, velocities, named = self._controller.at((self.stamp_ns + PERIOD_NS) / 1e9)
            gripper = 0.0
            if named[-1]:
                gripper = -1.0 if positions[-1] >= GRIPPER_MIDDLE_M else 1.0
            target = JointTarget(self.stamp_ns, positions[:-1], velocities[:-1], gripper)
        over = self._episode.step(target.positions, target.velocities, target.gripper)
        self._tick += 1
        self._observe(last=over)
        if over:
            self._finish()

    def _observe(self, last: bool = False) -> None:
        """Publish the world as it stands: clock, images (when due), then joint states.

        After the last step nobody is to answer, so no joint state goes out.
        """
        environment = self._environment
        assert environment is not None
        stamp_ns = self.stamp_ns
        self._messages = []
        if (self._tick - self._first_tick) % self._camera_every == 0:
            self._messages += self._topics.pictures(environment, stamp_ns)
        if not last:
            self._messages += self._topics.joints(environment.state(), stamp_ns)
        now = time.monotonic()
        self._deadline_at = now + self._command_deadline_s
        self._resend_at = now + RESEND_S
        self._topics.tick(stamp_ns)
        self._send(self._messages)

    def _send(self, messages: list[tuple[Any, Any]]) -> None:
        for publisher, message in messages:
            publisher.publish(message)

    def _guarded(self, action: Callable[[], None]) -> None:
        """A simulator that raises ends the episode with an error, not the node."""
        try:
            action()
        except Exception as error:
            self._finish(f"The simulator failed ({type(error).__name__}: {error}).")
            self._close_environment()

    def _finish(self, error: str = "") -> None:
        assert self._episode is not None
        if error:
            self._episode.abort(error)
            self.get_logger().error(error)
        self._phase = OVER
        result = self._episode.result()
        outcome = "solved" if result.success else "not solved"
        self.get_logger().info(f"Episode over after {result.steps} steps: {outcome}.")
        self._topics.over(result.success)

    # The environment

    def _environment_of(self, suite: str, task: int) -> DigestedEnvironment:
        """The environment of a task; the last one is kept, since building takes seconds."""
        current = self._environment
        if current is None or (current.suite, current.task) != (suite, task):
            self._close_environment()
            current = self._environment = self._make_environment(suite, task)
        return current

    def _close_environment(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def close(self) -> None:
        """Close the simulator, then the node."""
        self._close_environment()
        self.destroy_node()


def spin(node: SimNode) -> None:
    """Take turns between callbacks and steps until a signal comes or the context is shut down."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    while node.context.ok() and not asked_to_end():
        executor.spin_once(timeout_sec=min(SPIN_S, node.wait_s()))
        node.advance()


def main(args: list[str] | None = None, make_environment: MakeEnvironment = LiberoEnvironment) -> int:
    """Entry point `sim_node`."""
    if answer_help("vega3d-sim-node", __doc__, sim_parameters.declare, args):
        return 0
    apply_defaults()
    node = None
    try:
        start_ros(args)
        node = SimNode(make_environment)
        spin(node)
    except ExternalShutdownException:
        pass
    except (VegaError, ParameterException) as error:
        print(f"sim_node: {error}", file=sys.stderr)
        return 1
    finally:
        if node is not None:
            node.close()
        end_ros()
    return ending(0)


if __name__ == "__main__":
    sys.exit(main())
