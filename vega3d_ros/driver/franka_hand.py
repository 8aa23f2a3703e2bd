"""The Franka Hand behind a finger joint's topic: a thread of its own, since its commands last as long as the motion."""

from __future__ import annotations

import math
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
RETRY_S = 0.5  # after a failure
STAYS_M = 0.002  # of one finger; so far from a first order the fingers are where it wants them
TELL_S = 10.0  # what fails on and off is told no oftener


class FrankaHand:
    """Raises VegaError where there is none.

    closed_below: opening of one finger, m, at or below which a command means to grasp.  say: is told what fails, from
    a thread of the hand's.  opening: of one finger, m, as last measured; None while it cannot be.
    """

    def __init__(self, address: str, closed_below: float, say: Callable[[str], None]) -> None:
        franka = library()
        self._errors: Any = franka.FrankaError
        self._closed_below, self._say = closed_below, say
        try:
            self._hand: Any = franka.Gripper(address)
            self.opening: float | None = self._hand.read_once().width / 2.0
        except self._errors as error:
            raise VegaError(
                f"The hand at {address} does not answer ({error}): connect it, or set franka.hand to false."
            ) from error
        self._wanted: float | None = None
        self._failed_s: float | None = None  # when what is wanted was tried in vain
        self._dropped = False  # what is wanted, if it has not begun
        self._news = threading.Condition()
        self._ended = False
        for work in (self._read, self._move):
            threading.Thread(target=work, name=f"hand {work.__name__}", daemon=True).start()

    def command(self, opening: float) -> None:
        """Opening of one finger, m; only the newest counts.

        One that failed is tried again when it is asked for again, and never by itself: by then somebody may have his
        fingers in the hand, to mend it.
        """
        with self._news:
            stays = self.opening is not None and abs(opening - self.opening) < STAYS_M
            if stays and self._wanted is None and 0.0 < opening <= self._closed_below:
                return  # nobody has ordered anything: to grasp would be to close fingers that shall stay
            again = self._failed_s is not None and time.monotonic() - self._failed_s > RETRY_S
            if opening != self._wanted or again or self._dropped:
                self._wanted, self._failed_s, self._dropped = opening, None, False
                self._news.notify_all()

    def begin_nothing(self) -> None:
        """Until the next order: one that waits for another, which is under way, is dropped."""
        with self._news:
            self._dropped = True

    def end(self) -> None:
        """The fingers stay as they are: what they hold must not fall."""
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _read(self) -> None:
        complaint = _Complaint(self._say)
        while not self._ended:
            pause_s = READ_S
            try:
                self.opening = self._hand.read_once().width / 2.0
                complaint.over()
            except Exception as error:  # whatever it is, what was read before is no measurement any more
                self.opening, pause_s = None, RETRY_S
                complaint.tell(
                    f"The hand cannot be read ({error}): its fingers are left out of joint_states until it can; look "
                    "at its plug, and start this driver again if that does not help."
                )
            with self._news:
                self._news.wait_for(lambda: self._ended, pause_s)

    def _move(self) -> None:
        complaint = _Complaint(self._say)
        done: float | None = None
        while True:
            with self._news:
                self._news.wait_for(
                    lambda: self._ended
                    or (self._wanted != done and self._failed_s is None and not self._dropped)  # noqa: B023
                )
                if self._ended or self._wanted is None:
                    return
                order = self._wanted
            try:
                if order <= self._closed_below:
                    self._hand.grasp(0.0, SPEED_M_S, FORCE_N, ANY_WIDTH_M, ANY_WIDTH_M)
                else:
                    self._hand.move(2.0 * order, SPEED_M_S)
                done = order
                complaint.over()
            except Exception as error:  # whatever it is, the next order must find somebody
                done = None  # wherever the fingers are now
                with self._news:
                    if self._wanted == order:
                        self._failed_s = time.monotonic()
                complaint.tell(
                    f"The hand did not move ({error}): home it on the robot's desk; it is tried again when the next "
                    "command comes."
                )


class _Complaint:
    """Tells a failure once, until it is over."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told, self._told_s = False, -math.inf

    def tell(self, sentence: str) -> None:
        now_s = time.monotonic()
        if not self._told and now_s - self._told_s > TELL_S:
            self._told, self._told_s = True, now_s
            self._say(sentence)

    def over(self) -> None:
        self._told = False
