"""Service calls whose answer gets lost, as Fast DDS loses it on a busy machine."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_stand_in import StandIn, lose_an_answer
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from policies.types import VegaError
from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.ros import service_calls

DEADLINE_S = 240.0
AGAIN_S = 0.5


class Scene:
    """A lifecycle node that serves in a thread of its own, and its client."""

    def __init__(self) -> None:
        domain = unused_domain()
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = StandIn(context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()
        self.client = RosClient("caller", domain)

    def close(self) -> None:
        self.client.close()
        self._executor.shutdown()
        self._thread.join(DEADLINE_S)
        self.node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_what_is_not_answered_is_asked_again(scene: Scene) -> None:
    lose_an_answer(scene.node, "run")
    assert scene.client.trigger("stand_in/run", DEADLINE_S, AGAIN_S) == "it runs"
    assert scene.node.told.count("runs") == 2


def test_what_is_never_answered_is_an_error_that_names_the_service(scene: Scene) -> None:
    lose_an_answer(scene.node, "run", times=1000)
    with pytest.raises(VegaError, match=r"stand_in/run did not answer within 1 s: check its node's log"):
        scene.client.call(Trigger, "stand_in/run", Trigger.Request(), 1.0, AGAIN_S)


def test_an_infinite_patience_asks_once(scene: Scene) -> None:
    lose_an_answer(scene.node, "run")
    with pytest.raises(VegaError, match="did not answer"):
        scene.client.trigger("stand_in/run", 3 * AGAIN_S, math.inf)
    assert scene.node.told.count("runs") == 1


@pytest.mark.parametrize("refuse", ["", "configure"])
def test_a_transition_whose_answer_is_lost_is_made_once_and_told_by_the_state(
    scene: Scene, refuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_calls, "AGAIN_S", AGAIN_S)
    scene.node.set_parameters([Parameter("refuse", value=refuse)])
    lose_an_answer(scene.node, "change_state")
    made = scene.client.change_state("stand_in", Transition.TRANSITION_CONFIGURE, DEADLINE_S)
    assert made == (not refuse)
    assert scene.node.told.count("asked to configure") == 1
    assert scene.client.state("stand_in", DEADLINE_S).label == ("unconfigured" if refuse else "inactive")


def test_time_that_is_over_is_named_as_it_was_given(scene: Scene) -> None:
    assert scene.client.change_state("stand_in", Transition.TRANSITION_CONFIGURE, DEADLINE_S)
    lose_an_answer(scene.node, "change_state", times=1000)
    with pytest.raises(VegaError, match=r"stand_in did not end its transition within 0\.5 s"):
        scene.client.change_state("stand_in", Transition.TRANSITION_CLEANUP, 0.5)
