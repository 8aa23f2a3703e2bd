"""The Franka Hand of franka_driver when it fails: nothing old is told as new, and an order is not lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from vega3d_ros.driver import franka_hand
from vega3d_ros.driver.franka_hand import FrankaHand

DEADLINE_S = 30.0
RETRY_S = 0.05


class HandError(Exception):
    pass


class Gripper:
    """Fails as often as it is told; reads: when each began, s."""

    def __init__(self, _address: str) -> None:
        self.width, self.reads_fail, self.orders_fail = 0.08, 0, 0
        self.reads: list[float] = []
        self.orders: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error: Exception = HandError("UDP receive: Timeout")

    def read_once(self) -> SimpleNamespace:
        self.reads.append(time.monotonic())
        if self.reads_fail:
            self.reads_fail -= 1
            raise self.error
        return SimpleNamespace(width=self.width)

    def move(self, width: float, _speed: float) -> bool:
        return self._obey("move", width)

    def grasp(self, *_how: float) -> bool:
        return self._obey("grasp", 0.0)

    def _obey(self, order: str, width: float) -> bool:
        self.orders.append(order)
        assert self.goes_on.wait(DEADLINE_S)
        if self.orders_fail:
            self.orders_fail -= 1
            raise self.error
        self.width = width
        return True


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def hand(monkeypatch, said) -> Iterator[FrankaHand]:
    monkeypatch.setattr(franka_hand, "library", lambda: SimpleNamespace(FrankaError=HandError, Gripper=Gripper))
    monkeypatch.setattr(franka_hand, "READ_S", 0.001)
    monkeypatch.setattr(franka_hand, "RETRY_S", RETRY_S)
    monkeypatch.setattr(franka_hand, "TELL_S", 3600.0)
    hand = FrankaHand("nowhere", 0.02, said.append)
    yield hand
    hand.end()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.001)


@pytest.mark.parametrize("error", [HandError("UDP receive: Timeout"), RuntimeError("Already borrowed")])
def test_what_cannot_be_read_is_unknown_until_it_is_read_again(hand, said, error):
    hand._hand.error, hand._hand.reads_fail = error, 10**9
    until(lambda: hand.opening is None)
    begun = len(hand._hand.reads)
    until(lambda: len(hand._hand.reads) > begun + 3)
    assert np.diff(hand._hand.reads[begun:]).min() > 0.9 * RETRY_S  # no busy loop
    assert len(said) == 1 and "left out of joint_states" in said[0] and str(error) in said[0]
    hand._hand.width, hand._hand.reads_fail = 0.05, 0
    until(lambda: hand.opening == 0.025)


@pytest.mark.parametrize("width", [0.02, 0.039])
def test_to_stay_where_the_fingers_are_is_no_order_to_grasp(hand, width):
    """What leads an arm at first holds the opening that was measured."""
    gripper = hand._hand
    gripper.width = width
    until(lambda: hand.opening == width / 2.0)
    for noise in (0.0, 1e-4, -1e-4):
        hand.command(width / 2.0 + noise)
    hand.command(0.0)
    until(lambda: gripper.orders == ["grasp"])
    gripper.width = 0.01
    hand.command(0.04)
    until(lambda: gripper.orders == ["grasp", "move"])


def test_a_failed_order_is_repeated_while_it_is_asked_for(hand, said):
    gripper = hand._hand
    gripper.orders_fail = 3

    def ask() -> bool:
        hand.command(0.0)
        return gripper.width == 0.0

    until(ask)
    assert gripper.orders == ["grasp"] * 4 and len(said) == 1 and "did not move" in said[0]
    for _ in range(100):
        assert ask()
    hand.command(0.04)
    until(lambda: gripper.width == 0.08)
    assert gripper.orders == ["grasp"] * 4 + ["move"]  # one that has been obeyed is not repeated


def test_a_failed_order_that_nobody_asks_for_any_more_is_not_repeated(hand, said):
    """Somebody mends the hand, with his own in it."""
    hand._hand.orders_fail = 1
    hand.command(0.0)
    until(lambda: bool(said))
    begun = len(hand._hand.reads)
    until(lambda: time.monotonic() > hand._hand.reads[begun - 1] + 4 * RETRY_S)
    assert hand._hand.orders == ["grasp"]


def test_the_way_back_from_a_failed_order_is_obeyed(hand, said):
    hand.command(0.04)
    until(lambda: hand._hand.orders == ["move"])
    hand._hand.orders_fail = 1
    hand.command(0.0)
    until(lambda: bool(said))
    hand.command(0.04)
    until(lambda: hand._hand.orders == ["move", "grasp", "move"])


def test_what_fails_on_and_off_is_no_flood(hand, said):
    for _ in range(5):
        begun = len(hand._hand.reads)
        hand._hand.reads_fail = 1
        until(lambda: not hand._hand.reads_fail and hand.opening is not None and len(hand._hand.reads) > begun + 1)  # noqa: B023
    assert len(said) == 1


def test_an_order_that_waited_for_another_is_not_begun_once_the_robot_has_stopped(hand):
    gripper = hand._hand
    gripper.goes_on.clear()
    hand.command(0.0)
    until(lambda: gripper.orders == ["grasp"])
    hand.command(0.04)
    hand.begin_nothing()
    gripper.goes_on.set()
    until(lambda: gripper.width == 0.0)
    begun = len(gripper.reads)
    until(lambda: len(gripper.reads) > begun + 20)
    assert gripper.orders == ["grasp"]
    hand.command(0.04)
    until(lambda: gripper.orders == ["grasp", "move"])


def test_a_hand_that_was_told_nothing_yet_and_is_to_begin_nothing_obeys_later(hand):
    hand.begin_nothing()
    hand.command(0.0)
    until(lambda: hand._hand.orders == ["grasp"])
