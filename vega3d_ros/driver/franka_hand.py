"""The Franka Hand behind a finger joint's topic: a thread of its own, since its commands last as long as the motion."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from policies.types import VegaError
from vega3d_ros.driver.franka_arm import library

SPEED_M_S = 0.1
FORCE_N = 20.0
ANY_WIDTH_M = 0.2  # a grasp has succeeded whatever it holds
READ_S = 0.05


class FrankaHand:
    """Raises VegaError where there is none.

    closed_below: opening of one finger, m, at or below which a command means to grasp.  say: is told what fails, from
    a thread of the hand's.  opening: of one finger, m, as last measured.
    """

    def __init__(self, address: str, closed_below: float, say: Callable[[str], None]) -> None:
        franka = library()
        self._errors: Any = franka.FrankaError
        self._closed_below, self._say = closed_below, say
        try:
            self._hand: Any = franka.Gripper(address)
            self.opening = self._hand.read_once().width / 2.0
        except self._errors as error:
            raise VegaError(
                f"The hand at {address} does not answer ({error}): connect it, or set franka.hand to false."
            ) from error
        self._wanted: float | None = None
        self._news = threading.Condition()
        self._ended = False
        for work in (self._read, self._move):
            threading.Thread(target=work, name=f"hand {work.__name__}", daemon=True).start()

    def command(self, opening: float) -> None:
        """Opening of one finger, m; only the newest counts."""
        with self._news:
            if opening != self._wanted:
                self._wanted = opening
                self._news.notify()

    def end(self) -> None:
        """The fingers stay as they are: what they hold must not fall."""
        with self._news:
            self._ended = True
            self._news.notify()

    def _read(self) -> None:
        while not self._ended:
            try:
                self.opening = self._hand.read_once().width / 2.0
            except self._errors as error:
                self._say(f"The hand cannot be read ({error}): its fingers are reported where they last were.")
                return
            time.sleep(READ_S)

    def _move(self) -> None:
        done: float | None = None
        while True:
            with self._news:
                self._news.wait_for(lambda: self._ended or self._wanted != done)  # noqa: B023
                if self._ended or self._wanted is None:
                    return
                done = self._wanted
            try:
                if done <= self._closed_below:
                    self._hand.grasp(0.0, SPEED_M_S, FORCE_N, ANY_WIDTH_M, ANY_WIDTH_M)
                else:
                    self._hand.move(2.0 * done, SPEED_M_S)
            except self._errors as error:
                self._say(f"The hand did not move ({error}): home it on the robot's desk.")
