"""The process around a node: spinning, signals, a clean end within a deadline; and what it needs at its start."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy._rclpy_pybind11 import InvalidHandle, RCLError
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from policies.interrupts import ending
from policies.types import VegaError
from vega3d_ros.control.resources import read_urdf
from vega3d_ros.inference.process import LAUNCHER, end_seconds
from vega3d_ros.parameters.robot_file import strict_arguments
from vega3d_ros.ros import dead_segments
from vega3d_ros.ros.node_help import answer_help

SPIN_S = 0.1  # within it a signal is noticed by a node to which nothing happens
DESCRIPTION_S = 5.0
_at_once = False
_asked_s = math.inf  # time.monotonic() of the first signal


def run_node(
    make: Callable[[], Node],
    args: list[str] | None = None,
    linger_s: float = 0.0,
    failure: Callable[[Any], str] = lambda node: "",
) -> int:
    """Run one node until SIGINT, SIGTERM or shutdown; returns the exit status.

    linger_s: for so long after the signal callbacks still run.  failure: why the node cannot go on, '' while it can;
    it ends the process with that sentence and status 1.  (What a callback raises, the executor logs with where it was.)

    A parameter that cannot be used ends the process with one sentence and status 1.  A callback that
    does not return within `END_S` of the signal (a policy that hangs) ends it with status 1 too.
    """
    status = 0
    node: Node | None = None
    executor: Any = None
    try:
        start_ros(args)
        node = make()
        executor = _executor()
        executor.add_node(node)
        while rclpy.ok() and not asked_to_end(linger_s):
            if sentence := failure(node):
                raise VegaError(sentence)
            try:
                executor.spin_once(timeout_sec=SPIN_S)
            except InvalidHandle:
                # The events executor still held an event of a timer or subscription destroyed by the last callback.
                continue
            except RCLError:
                # The context may also be shut down by others; then nothing can be published any more.
                if rclpy.ok():
                    raise
    except ExternalShutdownException:
        pass
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"A parameter cannot be used: {str(error).rstrip('.')}; correct the robot's YAML.", file=sys.stderr)
        status = 1
    except VegaError as error:
        print(error, file=sys.stderr)
        status = 1
    finally:
        if executor is not None:
            executor.shutdown()
        if node is not None:
            node.destroy_node()
        end_ros()
    return ending(status)


def run_from_words(
    make: Callable[[], Node], program: str, doc: str | None, declare: Callable[[Any], None], args: list[str] | None
) -> int:
    """`run_node` for a command whose parameter files are read strictly; --help is answered.  Returns the exit status.

    program: its name in the help; its node has the name without vega3d-, and underscores.  doc, declare: as for
    `answer_help`.
    """
    words = sys.argv if args is None else args
    if answer_help(program, doc, declare, words):
        return 0
    try:
        with strict_arguments(words, program.removeprefix("vega3d-").replace("-", "_")) as strict:
            return run_node(make, strict)
    except VegaError as error:
        print(error, file=sys.stderr)
        return 1


def start_ros(args: list[str] | None = None) -> None:
    """rclpy.init, and from now on SIGINT and SIGTERM make `asked_to_end` true, and nothing else.

    ROS's own handlers would shut the context down from another thread, or raise KeyboardInterrupt, wherever the events
    executor happens to be, and there, as in its destructor, either may abort the process.  A process that is still
    there `END_S` after the signal ends the hard way.  Shared memory that killed processes left goes.  To be called in
    the main thread.  Raises VegaError, with one sentence, on arguments (a parameter file, a remapping) it cannot use.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    threading.Thread(target=_end_in_time, args=(end_seconds(os.environ),), name="end in time", daemon=True).start()
    _watch_launcher()
    dead_segments.remove()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except (RCLError, RuntimeError) as error:
        why = str(error).splitlines()[0].partition(", at /")[0].removeprefix("failed to initialize rcl: ").rstrip(".")
        raise VegaError(f"ROS cannot start ({why}): correct the arguments or the environment.") from error


def asked_to_end(since_s: float = 0.0) -> bool:
    """Whether a signal has come since `start_ros`, at least `since_s` ago."""
    return time.monotonic() - _asked_s >= since_s


def seconds_to_end() -> float:
    """After which the process is ended with whatever it still does; infinite while no signal has come."""
    return _asked_s + end_seconds(os.environ) - time.monotonic()


@contextmanager
def may_end_at_once() -> Iterator[None]:
    """Within it a signal ends the process, status 0, without waiting for what it does.

    For what takes long and commands nothing: loading a policy, building a world.
    """
    global _at_once
    _at_once = True
    try:
        if asked_to_end():
            os._exit(0)
        yield
    finally:
        _at_once = False


def end_ros() -> None:
    """Once all nodes are destroyed; signals then change nothing any more."""
    rclpy.try_shutdown()
    # The end of the interpreter would give every other handler back to the system.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _on_signal(*_: object) -> None:
    global _asked_s
    _asked_s = min(_asked_s, time.monotonic())
    if _at_once:
        os._exit(0)


def _end_in_time(end_s: float) -> None:
    while not asked_to_end():
        time.sleep(SPIN_S)
    time.sleep(end_s)
    _tell(f"A callback did not return within {end_s:g} s of the signal; the process ends now.")
    os._exit(1)


def _watch_launcher() -> None:
    """End as after a signal once the process named by `LAUNCHER` has ended: a launch system that is killed leaves its
    nodes behind, and nobody would see that they go on commanding.  Nodes started by hand have no such name."""
    text = os.environ.get(LAUNCHER, "")
    if not text:
        return
    try:
        descriptor = os.pidfd_open(int(text))
    except (ValueError, OverflowError) as error:
        raise VegaError(f"The variable {LAUNCHER} is '{text}': unset it, or give the launcher's process id.") from error
    except ProcessLookupError as error:
        raise VegaError(f"The process {text} that started this node has ended: start it again.") from error
    except (OSError, AttributeError):
        return  # a kernel or system that cannot tell

    def wait() -> None:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll()
        _tell(f"The process {text} that started this node has ended, and so this node stops and ends too.")
        _on_signal()

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def _tell(sentence: str) -> None:
    # Whoever read our output may be gone.
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _executor() -> Any:
    """The executor with the least delay between a message and its callback that this distribution has."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


def read_robot_description(node: Node, path: str) -> str:
    """The URDF's text, from a file or, if `path` is empty, from the latched topic `robot_description`.

    Waits up to `DESCRIPTION_S` for the topic, with a node of its own, since it is called from a callback
    of `node`.  Raises VegaError.
    """
    if path:
        return read_urdf(path)
    texts: list[str] = []

    def hear(message: String) -> None:
        texts.append(message.data)

    listener = Node(
        f"{node.get_name()}_robot_description",
        namespace=node.get_namespace(),
        context=node.context,
        use_global_arguments=False,
        start_parameter_services=False,
    )
    executor = SingleThreadedExecutor(context=node.context)
    try:
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        topic = node.resolve_topic_name("robot_description")
        listener.create_subscription(String, topic, hear, latched)
        executor.add_node(listener)
        deadline = time.monotonic() + DESCRIPTION_S
        while not texts and time.monotonic() < deadline and node.context.ok() and not asked_to_end():
            executor.spin_once(timeout_sec=0.1)
    finally:
        executor.remove_node(listener)
        executor.shutdown()
        listener.destroy_node()
    if not texts:
        raise VegaError(
            f"No robot description came on '{topic}' within {DESCRIPTION_S:.0f} s: start robot_state_publisher, or set "
            "the parameter robot_description to a URDF."
        )
    return texts[0]
