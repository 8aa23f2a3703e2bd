"""policy_node: cameras, joint states and an instruction in, joint commands out.  Lifecycle node, wiring only.

Topics, services and parameters: docs/interfaces.md.  Everything runs in the executor's thread, except the policy in
`realtime`, which has a process of its own (`separate_policy.py`).

The robot stays still unless everything is right.  What is wrong with an input (`Inputs.problem`, `Inputs.stale`) holds
commands back until it is right again; a *fault* (the clock jumped back, the policy failed, somebody else commands the
same arm) stops until `~/start` is called.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vega3d_ros.ros.dds import apply_defaults

apply_defaults()  # before rclpy reads the environment

from geometry_msgs.msg import PoseStamped  # noqa: E402
from rclpy.clock import Clock, ClockType  # noqa: E402
from sensor_msgs.msg import CompressedImage, JointState  # noqa: E402
from sensor_msgs.msg import Image as ImageMessage  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from policies.types import Policy, VegaError  # noqa: E402
from vega3d_ros.inference.failures import policy_failed  # noqa: E402
from vega3d_ros.inference.lockstep import Lockstep  # noqa: E402
from vega3d_ros.inference.realtime import Realtime  # noqa: E402
from vega3d_ros.inference.separate_policy import SeparatePolicy  # noqa: E402
from vega3d_ros.node.activity import Activity  # noqa: E402
from vega3d_ros.node.commander import Commander  # noqa: E402
from vega3d_ros.node.node_report import Condition, is_waiting, report  # noqa: E402
from vega3d_ros.node.node_setup import Parts, build, check_autostart, open_policy  # noqa: E402
from vega3d_ros.node.still_watch import StillWatch  # noqa: E402
from vega3d_ros.node.supervision import EmergencyStop  # noqa: E402
from vega3d_ros.ros import node_parameters  # noqa: E402
from vega3d_ros.ros.careful_lifecycle import CarefulLifecycleNode, fix_parameters_while  # noqa: E402
from vega3d_ros.ros.diagnostics import Level, is_news, say  # noqa: E402
from vega3d_ros.ros.node_process import may_end_at_once, run_from_words  # noqa: E402
from vega3d_ros.topics.inputs import Inputs  # noqa: E402
from vega3d_ros.topics.node_outputs import gripper_memory  # noqa: E402
from vega3d_ros.topics.notes import Notes  # noqa: E402
from vega3d_ros.topics.reporter import Reporter  # noqa: E402
from vega3d_ros.topics.subscriptions import subscribe  # noqa: E402

WATCH_PERIOD_S = 0.1
CLOSE_S = 2.0


class PolicyNode(CarefulLifecycleNode):
    """One policy, one arm.  Raises from the constructor what rclpy raises on parameters of a wrong type."""

    def __init__(self, **options: Any) -> None:
        super().__init__("policy_node", **options)
        node_parameters.declare(self)
        node_parameters.refuse_unknown(self)
        self._joined_s = time.monotonic()
        # From the configuration to the cleanup:
        self._policy: Policy | None = None
        self._parts: Parts | None = None
        self._still: StillWatch | None = None
        self._listeners: list[Any] = []
        # From the activation to the deactivation; after a fault the reporter stays until the next of either.
        self._active: Activity | None = None
        self._reporter: Reporter | None = None
        self._condition = Condition()
        self._said = ""
        # A simulated clock that stands still must not silence the supervision.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(WATCH_PERIOD_S, self._on_watch, clock=self._steady)
        self.create_service(Trigger, "~/start", self._on_start)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self._emergency = EmergencyStop(self, self._on_emergency, self._on_emergency_cleared)
        # With use_sim_time the control timer, and so the supervision, would change under way.
        fix_parameters_while(self, lambda: self._active is not None)

    @property
    def _inputs(self) -> Inputs | None:
        return None if self._parts is None else self._parts.inputs

    @property
    def _runner(self) -> Lockstep | Realtime | None:
        return None if self._parts is None else self._parts.runner

    # Lifecycle

    def _configure(self) -> None:
        parameters = self._parameters_read = node_parameters.read(self)
        with may_end_at_once(), self._emergency.listening():
            self._policy = open_policy(parameters)
        self._parts = parts = build(self, parameters, self._policy)
        self._lockstep = isinstance(parts.runner, Lockstep)
        self._notes = parts.runner.journal = Notes(gripper_memory(parameters))
        self._condition.strict = self._is_strict
        self._still = StillWatch(self, parameters, parts.runner)
        self._set_base()
        self._listeners = subscribe(self, self, parameters, parts.cameras, self._condition.qos_problems)
        spec = parts.runner.loop.policy.spec
        self.get_logger().info(f"Policy {spec.name} is loaded; it looks at {', '.join(spec.cameras)}.")

    def _activate(self) -> None:
        parameters = self._parameters_read
        self._emergency.check()
        check_autostart(self, parameters)
        self._drop_report()
        self._condition.fault = ""
        assert self._parts is not None
        self._active = Activity(
            self, parameters, self._parts, self._condition, self._joined_s, self._emergency.check, self._notes,
            self._now_ns,
        )  # fmt: skip
        self._reporter = Reporter(self, parameters.hardware_id, self._parts.inputs.topics, self._on_diagnostics)
        self._active.begin(self._on_control_timer, self._on_silence if self._is_strict else None, self._steady)
        gc.freeze()  # what is there stays; to look through it again and again would hold commands up
        if self.get_parameter("autostart").value:  # it may have been changed since the configuration
            self._start()

    def _deactivate(self) -> None:
        self._stop()
        if self._active is not None:
            self._active.destroy()
        self._active = None
        # After a fault somebody must be able to read what happened.
        if not self._condition.fault:
            self._drop_report()

    def _drop_report(self) -> None:
        if self._reporter is not None:
            self._reporter.destroy()
        self._reporter = None

    def _unconfigure(self) -> None:
        self._deactivate()
        self._drop_report()
        while self._listeners:
            self.destroy_subscription(self._listeners.pop())
        if isinstance(self._policy, SeparatePolicy):
            self._policy.close()  # whatever it computes; its thread then ends
        if isinstance(self._runner, Realtime):
            self._runner.close(CLOSE_S)
        self._parts = self._policy = self._still = None
        self._condition.qos_problems.clear()

    def destroy_node(self) -> None:
        """Also ends the inference thread, without which the interpreter could not end cleanly."""
        self._unconfigure()
        super().destroy_node()

    # Start and stop

    def _on_start(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._emergency.check()
            if self._active is None or self._inputs is None:
                raise VegaError("policy_node is not active: activate it first.")
            self._start()
            response.success = self._condition.running
            problem = self._condition.not_connected or self._inputs.problem() or self._active.outputs.missing
            response.message = f"Started, and waiting: {problem}" if problem else "Started."
            if not response.success:
                response.message = self._condition.fault
        except VegaError as error:
            response.message = str(error)
            self.get_logger().error(response.message)
        return response

    def _on_stop(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._stop()
        response.success = True
        response.message = "Stopped; the queue is empty."
        return response

    def _start(self) -> None:
        """Begin an episode: nothing from before counts.  A policy that cannot is a fault."""
        assert self._inputs is not None and self._runner is not None and self._active is not None
        self._condition.running = False
        self._condition.moving = False
        self._active.vigilance.reset()
        self._condition.refused_in_a_row = 0
        self._condition.late_in_a_row = 0
        self._inputs.clear(None if self._lockstep else self._now_ns(), self._runner.told)
        try:
            self._runner.reset()
        except VegaError as error:
            self._fail(str(error))
            return
        self._active.outputs.reset()
        self._active.commander.forget()
        self._condition.fault = ""
        self._condition.started_s = time.monotonic()
        self._condition.counts["episodes"] += 1
        self._condition.running = True

    def _stop(self) -> None:
        if self._condition.running and self._active is not None and self.context.ok():
            try:
                self._active.commander.brake()
            except Exception:  # whatever it was, what follows has to; the path under way ends at rest by itself
                self.get_logger().error(traceback.format_exc())
        self._condition.running = False
        self._drop_queue()
        if self._active is not None and not self._active.outputs.stop() and isinstance(self._runner, Realtime):
            self._runner.release(True, self._active.outputs.held)

    def _drop_queue(self) -> None:
        if self._active is not None:
            self._active.commander.forget()
        if isinstance(self._runner, Lockstep):
            self._runner.pending = None
        if self._runner is not None:
            self._runner.discard()

    def _on_emergency(self, sentence: str) -> None:
        if self._active is not None:
            self._fail(sentence, deactivate=True)
        else:
            if self._reporter is not None:  # which tells the fault that deactivated the node, and what helps no more
                self._condition.fault = sentence
            self.get_logger().error(sentence)

    def _on_emergency_cleared(self, sentence: str) -> None:
        if self._condition.fault == sentence:
            self._condition.fault = ""

    @property
    def _is_strict(self) -> bool:
        """Whether every problem while the arm moves is a fault."""
        return not self._lockstep and self._parameters_read.after_problem == "deactivate"

    def _fail(self, sentence: str, deactivate: bool = False) -> None:
        """Stop until ~/start; where `after_problem` or the caller says so, by deactivating."""
        deactivate = deactivate or self._is_strict
        if deactivate and "activate policy_node" not in sentence:
            cause = sentence.rstrip(".").replace(", then call ~/start again", "")
            sentence = f"{cause}, then activate policy_node and call ~/start."
        self._condition.fault = self._said = sentence
        self._condition.counts["faults"] += 1
        self._stop()  # before anything is told
        self.get_logger().error(sentence)
        if deactivate:
            self._on_diagnostics()  # now, not within the next second
            self.trigger_deactivate()

    # Inputs

    def _on_image(self, camera: str, message: ImageMessage | CompressedImage) -> None:
        if self._inputs is not None and self._active is not None:
            self._after_input(self._inputs.on_image(camera, message, self._now_ns()))

    def _on_joint_state(self, message: JointState, info: Mapping[str, Any] | None = None) -> None:
        if self._inputs is None or self._active is None:
            return
        number = None if info is None else info.get("publication_sequence_number")  # from ROS 2 Iron on
        sample, jump = self._inputs.on_joint_state(message, self._now_ns(), number)
        if self._inputs.belief.problem and self._condition.running and not jump:
            self._fail(self._inputs.belief.problem)
            return
        if isinstance(self._runner, Lockstep) and self._condition.running and sample is not None and not jump:
            if self._is_done(self._active.commander, sample.stamp_ns):
                return
            self._runner.offer(sample)
        self._after_input(jump)

    def _is_done(self, commander: Commander, stamp_ns: int) -> bool:
        """lockstep: whether this joint state needs no decision: it had one, now told again, or commanding ended."""
        done = [True]
        self._guarded(lambda: done.append(commander.repeat(stamp_ns)))
        return done[-1]

    def _on_instruction(self, message: String) -> None:
        if self._inputs is None:
            return
        before = self._inputs.instruction
        accepted = self._inputs.on_instruction(message.data)
        # In lockstep a new sentence counts from the next chunk: a world that renders only where a chunk ends could
        # not answer an earlier question.
        if isinstance(self._runner, Realtime) and before != self._inputs.instruction:
            self._runner.discard()
            flood = self._inputs.flooded(time.monotonic())
            if flood and self._condition.running:
                self._fail(flood)
        elif isinstance(self._runner, Lockstep) and not accepted:
            self._runner.discard()
        self._after_input("")

    def _on_base_pose(self, message: PoseStamped) -> None:
        if self._inputs is not None and self._inputs.on_base_pose(message):
            self._set_base()
            self._after_input("")

    def _set_base(self) -> None:
        if self._inputs is not None and self._runner is not None and self._inputs.base is not None:
            self._runner.loop.base_position, self._runner.loop.base_quaternion = self._inputs.base

    def _after_input(self, jump: str) -> None:
        if jump:
            self._on_jump(jump)
        elif self._condition.running and self._lockstep and self._active is not None:
            self._guarded(self._active.commander.answer)

    def _on_jump(self, sentence: str) -> None:
        """A clock was set back: what is held belongs to another time."""
        assert self._inputs is not None
        self._condition.counts["stamp_jumps"] += 1
        self._inputs.clear()
        if self._condition.running:
            self._fail(sentence)

    # Commands

    def _on_control_timer(self) -> None:
        if self._condition.running and self._active is not None:
            self._guarded(partial(self._tick, self._active.commander), is_period=True)

    def _tick(self, commander: Commander) -> None:
        if isinstance(self._policy, SeparatePolicy):
            self._policy.check()  # one that died between two questions has nobody else who notices
        commander.tick()

    def _guarded(self, action: Callable[[], None], is_period: bool = False) -> None:
        try:
            if self._active is not None:
                self._active.vigilance.check(self._condition.moving, is_period)
            action()
        except VegaError as error:
            self._fail(str(error))
        except Exception as error:
            if not self.context.ok():
                return  # a signal came meanwhile, after which nothing can be published
            self.get_logger().error(traceback.format_exc())
            self._fail(str(policy_failed(error)))
        if self._active is not None:
            self._active.outputs.publish_decisions()

    # Supervision

    def _on_watch(self) -> None:
        active = self._active
        if self._still is not None:
            self._still.look(None if active is None else active.outputs, self._condition.running)
        if active is None or not self._condition.running:
            return
        problem = active.vigilance.problem(self._condition.moving) or active.outputs.rivals()
        if problem:
            self._fail(problem)

    def _on_silence(self) -> None:
        if self._condition.running and self._active is not None:
            silent = self._active.commander.silent()
            if silent:
                self._fail(silent)

    def _on_diagnostics(self) -> None:
        if self._runner is None or self._inputs is None or self._reporter is None:
            return
        outputs = None if self._active is None else self._active.outputs
        level, sentence, statuses = report(self._condition, self._runner, self._inputs, outputs, self._now_ns())
        if is_news(sentence, self._said) and level > Level.OK:
            say(self.get_logger(), level, sentence, is_waiting(self._condition, self._inputs))
        self._said = sentence
        self._reporter.publish(statuses, self._now_ns())

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_from_words(PolicyNode, "vega3d-policy-node", __doc__, node_parameters.declare_all, args)


if __name__ == "__main__":
    raise SystemExit(main())
