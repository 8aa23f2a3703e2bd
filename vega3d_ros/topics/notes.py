"""The journal of a configured node (`control/journal.py`), whether it is active or not.

Everything runs in the executor's thread.
"""

from __future__ import annotations

from typing import Any

from vega3d_ros.control.journal import to_text
from vega3d_ros.ros.conversions import GripperMemory


class Notes:
    """Exists from the configuration to the cleanup; between `begin` and `end` the node is active.

    While it is not, nothing is told, and kept is only what changes how it begins the next time: that it was configured,
    and that the arm is to be taken over anew.  gripper: what it remembers of its orders, which others' orders and its
    controller's end make void.
    """

    def __init__(self, gripper: GripperMemory) -> None:
        self.gripper = gripper
        self._active = False
        self._noted: list[tuple[str, dict[str, Any]]] = [("configure", {})]
        self._count = 0

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "forget" or (event == "release" and fields["elsewhere"]):
            self.gripper.forget()
        if self._active or event == "release":
            self._noted.append((event, fields))

    def begin(self) -> None:
        """An activation: events are counted from 0, and the first say what is left of the one before."""
        self._active, self._count = True, 0
        if self.gripper.kept is not None:
            position, off = self.gripper.kept
            self("gripper", position=position, off=off)

    def end(self) -> None:
        """After what was noted has been taken."""
        self._active = False

    def take(self) -> list[str]:
        """What was noted and not taken yet, one JSON object each."""
        noted, self._noted = self._noted, []
        first, self._count = self._count, self._count + len(noted)
        return [to_text(first + i, event, fields) for i, (event, fields) in enumerate(noted)]
