"""scene_node: cameras and questions in, answers and objects out.  Lifecycle node, wiring only.

Topics, services and parameters: docs/interfaces.md.  Everything runs in the executor's thread, except the model, which
has a process of its own (`separate_scene.py`) and a thread that waits for it (`worker.py`).

Frames are encoded as they come, so that a question waits for none but those that came before it.  A question that
cannot be answered is answered with the reason; the node commands nothing, and goes on.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from vega3d_ros.ros.dds import apply_defaults

apply_defaults()  # before rclpy reads the environment

from geometry_msgs.msg import PoseStamped  # noqa: E402
from rclpy.clock import Clock, ClockType  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage  # noqa: E402
from sensor_msgs.msg import Image as ImageMessage  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from policies.types import SceneReply, VegaError  # noqa: E402
from vega3d_ros.inference.separate_scene import SeparateScene  # noqa: E402
from vega3d_ros.ros import node_parameters  # noqa: E402
from vega3d_ros.ros.careful_lifecycle import CarefulLifecycleNode, fix_parameters_while  # noqa: E402
from vega3d_ros.ros.diagnostics import Latencies, Level, is_news, say  # noqa: E402
from vega3d_ros.ros.node_process import may_end_at_once, run_from_words  # noqa: E402
from vega3d_ros.ros.qos_events import subscription_events  # noqa: E402
from vega3d_ros.scene import settings as scene_settings  # noqa: E402
from vega3d_ros.scene.outputs import Asked, Outputs  # noqa: E402
from vega3d_ros.scene.report import Condition, report  # noqa: E402
from vega3d_ros.scene.tf_topics import tf_topics  # noqa: E402
from vega3d_ros.scene.views import Views  # noqa: E402
from vega3d_ros.scene.worker import Done, Worker  # noqa: E402
from vega3d_ros.topics.camera_inputs import kinds_known_to  # noqa: E402
from vega3d_ros.topics.reporter import Reporter  # noqa: E402

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
QUESTIONS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
MOST_WAITING = 8
WATCH_PERIOD_S = 0.1
CLOSE_S = 2.0


class SceneNode(CarefulLifecycleNode):
    """One model, the cameras of one robot.  Raises from the constructor what rclpy raises on a wrong parameter."""

    def __init__(self, **options: Any) -> None:
        super().__init__("scene_node", **options)
        scene_settings.declare(self)
        node_parameters.refuse_unknown(self)
        self._scene: SeparateScene | None = None
        self._views: Views | None = None
        self._worker: Worker | None = None
        self._outputs: Outputs | None = None
        self._reporter: Reporter | None = None
        self._watch: Any = None
        self._listeners: list[Any] = []
        self._hearers: list[Any] = []
        self._questions: deque[Asked] = deque()
        self._asked: Asked | None = None  # what the model is about to answer
        self._forget = False
        self._condition = Condition(Counter(), Latencies(), {})
        self._said = ""
        self.create_service(Trigger, "~/forget", self._on_forget)
        fix_parameters_while(self, lambda: self._outputs is not None)

    # Lifecycle

    def _configure(self) -> None:
        settings = self._settings = scene_settings.read(self)
        tf = tf_topics() if settings.tf else ()
        with may_end_at_once():
            model = settings.model, settings.device, settings.threads, settings.framing, settings.max_tokens
            self._scene = SeparateScene(*model, settings.frames)
        self._condition.fault = ""
        self._views = Views(settings, True, self.get_logger().info, kinds=kinds_known_to(self))
        self._worker = Worker(self._wake)
        self._subscribe(tf)
        self.get_logger().info(f"{self._scene.about} It looks through {', '.join(settings.cameras)}.")

    def _subscribe(self, tf: tuple[tuple[Any, str, QoSProfile, bool], ...]) -> None:
        views, settings = self._views, self._settings
        assert views is not None

        def listen(kind: Any, topic: str, callback: Callable[..., Any], qos: QoSProfile) -> None:
            self._listeners.append(self._listen(kind, topic, callback, qos))

        def images(take: Callable[..., None], name: str) -> Callable[[Any], None]:
            return lambda message: self._while_active(take, name, message, self._now_ns())

        for name, camera in settings.cameras.items():
            kind = CompressedImage if camera.compressed else ImageMessage
            listen(kind, camera.topic, images(self._on_image, name), qos_profile_sensor_data)
            places = settings.places[name]
            if places.depth:
                listen(ImageMessage, places.depth, images(views.on_depth, name), qos_profile_sensor_data)
            if places.camera_info:
                listen(CameraInfo, places.camera_info, partial(views.on_info, name), qos_profile_sensor_data)
            if places.pose:
                listen(PoseStamped, places.pose, partial(views.on_pose, name), LATCHED)
        for kind, topic, qos, fixed in tf:
            listen(kind, topic, partial(self._on_tf, fixed), qos)

    def _listen(self, kind: Any, topic: str, callback: Callable[..., Any], qos: QoSProfile) -> Any:
        events = subscription_events(self, topic, self._condition.qos_problems)
        return self.create_subscription(kind, topic, callback, qos, event_callbacks=events)

    def _activate(self) -> None:
        assert self._views is not None
        # A simulated world may wait, and its frames say nothing about our latency.
        self._views.restart(not self.get_parameter("use_sim_time").value)
        self._questions.clear()
        self._forget_frames()
        self._outputs = Outputs(self, self._settings.world_frame, self._condition.qos_problems)
        self._reporter = Reporter(self, self._settings.hardware_id, self._views.inputs.topics, self._on_diagnostics)
        for topic, expression in (("~/question", False), ("~/expression", True)):
            self._hearers.append(self._listen(String, topic, partial(self._on_question, expression), QUESTIONS))
        # A simulated clock that stands still must not silence the supervision.
        self._watch = self.create_timer(WATCH_PERIOD_S, self._work, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._work()

    def _deactivate(self) -> None:
        for subscription in self._hearers:
            self.destroy_subscription(subscription)
        self._hearers = []
        if self.context.ok():
            self._refuse_all("scene_node was deactivated before it answered: activate it, and ask again.")
        self._questions.clear()
        self._asked = None
        if self._watch is not None:
            self.destroy_timer(self._watch)
        if self._reporter is not None:
            self._reporter.destroy()
        if self._outputs is not None:
            self._outputs.destroy()
        self._watch = self._reporter = self._outputs = None

    def _unconfigure(self) -> None:
        self._deactivate()
        for subscription in self._listeners:
            self.destroy_subscription(subscription)
        self._listeners = []
        if self._scene is not None:
            self._scene.close()  # whatever it computes; the thread that waits for it then ends
        if self._worker is not None:
            self._worker.close(CLOSE_S)
        self._scene = self._worker = self._views = None
        self._condition.qos_problems.clear()

    def destroy_node(self) -> None:
        """Also ends the model's process, and the thread without which the interpreter could not end cleanly."""
        self._unconfigure()
        super().destroy_node()

    # Inputs

    def _while_active(self, take: Callable[..., None], *values: Any) -> None:
        if self._outputs is not None:
            take(*values)
            self._work()

    def _on_image(self, name: str, message: ImageMessage | CompressedImage, now_ns: int) -> None:
        assert self._views is not None
        jump = self._views.on_image(name, message, now_ns)
        if jump:
            self._refuse_all(jump)
            self._forget_frames()

    def _forget_frames(self) -> None:
        """The model is told before it sees or answers anything else."""
        self._condition.frames, self._forget = (), True

    def _on_tf(self, fixed: bool, message: Any) -> None:
        if self._views is not None:
            self._condition.tf_problem = self._views.on_tf(message.transforms, fixed)

    def _on_question(self, expression: bool, message: String) -> None:
        asked = Asked(message.data, expression, time.monotonic())
        self._condition.counts["questions"] += 1
        if len(self._questions) >= MOST_WAITING:
            self._answer(asked, None, f"{MOST_WAITING} questions wait already: wait for ~/answer before asking more.")
            return
        self._questions.append(asked)
        self._work()

    def _on_forget(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._views is None or self._outputs is None:
            response.message = "scene_node is not active: activate it first."
            return response
        self._views.clear()
        self._forget_frames()
        self._work()
        response.success, response.message = True, "Forgotten; the next frames are seen as the first."
        return response

    # The model

    def _work(self) -> None:
        """Give the model what is to be done next, if it does nothing."""
        scene, worker, views = self._scene, self._worker, self._views
        if scene is None or worker is None or views is None or not self.context.ok():
            return
        if not worker.collect():
            self._judge_silence(worker.busy_s or 0.0)
            return
        if self._outputs is None:
            return
        if self._condition.fault:
            while self._questions:
                self._answer(self._questions.popleft(), None, self._condition.fault)
            return
        if self._forget:
            self._forget = False
            worker.start(scene.forget, self._on_forgotten)
            return
        # Whoever asks means what was to be seen before; what comes later must not delay the answer.
        asked = self._questions[0] if self._questions else None
        before_s = float("inf") if asked is None else asked.arrived_s
        view = views.next(before_s)
        if view is not None:
            worker.start(partial(scene.see, view), self._on_seen)
        elif asked is not None and not views.awaited(before_s):
            self._questions.popleft()
            unplaced = views.unplaced() if asked.expression and scene.grounds else ""
            if unplaced:
                self._answer(asked, None, unplaced)
                self._wake()
                return
            self._asked = asked
            job = partial(scene.ground if asked.expression else scene.answer, asked.text)
            worker.start(job, partial(self._on_answered, asked))

    def _wake(self) -> None:
        """Have the executor's thread look; from any thread.  (EventsExecutor takes no guard conditions.)"""
        if self.executor is not None:
            self.executor.create_task(self._work)

    def _on_forgotten(self, done: Done) -> None:
        self._condition.frames = ()  # a frame may have been seen since
        self._note(done, "forget")

    def _on_seen(self, done: Done) -> None:
        self._note(done, "see")
        self._condition.unseen = "" if done.error is None else str(done.error)
        if done.reply is not None:
            self._condition.counts["frames_seen"] += 1
            self._condition.frames = done.reply.frames
        else:
            self._condition.counts["frames_refused"] += 1

    def _on_answered(self, asked: Asked, done: Done) -> None:
        self._note(done, "ground" if asked.expression else "answer")
        if self._asked is not asked:
            return  # it was refused meanwhile
        self._asked = None
        self._answer(asked, done.reply, "" if done.error is None else str(done.error))

    def _refuse_all(self, error: str) -> None:
        """Answer the question under way, and all that wait, with an error."""
        under_way, self._asked = self._asked, None
        waiting = [*([] if under_way is None else [under_way]), *self._questions]
        self._questions.clear()
        for asked in waiting:
            self._answer(asked, None, error)

    def _note(self, done: Done, what: str) -> None:
        """Count a job, and what its end says of the model."""
        self._condition.latencies.add(what, done.ms)
        if done.reply is not None:
            self._condition.latencies.add_all(done.reply.timings_ms, f"{what}_")
        if done.error is not None:
            self._check_scene()

    def _answer(self, asked: Asked, reply: SceneReply | None, error: str) -> None:
        if self._outputs is None:
            return  # it was deactivated meanwhile
        latency_ms = 1e3 * (time.monotonic() - asked.arrived_s)
        if error:
            self._condition.counts["questions_refused"] += 1
            self.get_logger().error(error)
        else:
            self._condition.counts["answers"] += 1
            self._condition.latencies.add("question_to_answer", latency_ms)
        self._outputs.publish(asked, reply, error, self._now_ns(), latency_ms)

    def _judge_silence(self, busy_s: float) -> None:
        limit_s = self._settings.answer_timeout_s
        if busy_s <= limit_s or self._condition.fault or self._scene is None:
            return
        self._condition.fault = (
            f"The scene model has been silent for {busy_s:.1f} s (scene.answer_timeout_s is {limit_s:g}): "
            "it was ended; clean scene_node up and configure it again."
        )
        self.get_logger().error(self._condition.fault)
        self._scene.close()  # the thread that waits for it gets an error, and the question its answer

    def _check_scene(self) -> None:
        try:
            if self._scene is not None:
                self._scene.check()
        except VegaError as error:
            self._condition.fault = self._condition.fault or str(error)

    # Supervision

    def _on_diagnostics(self) -> None:
        if self._views is None or self._reporter is None:
            return
        self._check_scene()
        level, sentence, statuses = report(self._condition, self._views, self._settings, self._now_ns())
        if is_news(sentence, self._said) and level > Level.OK:
            say(self.get_logger(), level, sentence, waiting=not self._condition.frames and level is not Level.ERROR)
        self._said = sentence
        self._reporter.publish(statuses, self._now_ns())

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_from_words(SceneNode, "vega3d-scene-node", __doc__, scene_settings.declare_all, args)


if __name__ == "__main__":
    raise SystemExit(main())
