"""What a robot's file says about the arm's body and its approach to trouble, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.types import FloatArray
from vega3d_ros.control.body.approach import Approach, ApproachLimits
from vega3d_ros.control.body.body import Body, Surroundings
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.control.kinematics import Kinematics


@dataclass(frozen=True)
class BodySettings:
    """Whether distances are watched, to what (m, root link's frame), and from where the arm slows down."""

    check: bool
    surroundings: Surroundings
    ignored: tuple[str, ...]
    clearance_m: float
    slow_m: float
    approach: ApproachLimits

    @classmethod
    def read(cls, get: Callable[[str], Any]) -> BodySettings:
        """get: the value of a parameter by its full name, None for one that has none."""
        floor, boxes = get("body.floor"), get("body.boxes")
        cell = [get(f"body.cell_{end}") for end in ("lower", "upper")]
        return cls(
            check=get("body.check"),
            surroundings=Surroundings(
                floor=None if floor is None else float(floor[0]),
                cell=None if cell[0] is None else (np.array(cell[0]), np.array(cell[1])),
                boxes=() if boxes is None else tuple((low, high) for low, high in np.reshape(boxes, (-1, 2, 3))),
            ),
            ignored=tuple(get("body.ignore") or ()),
            clearance_m=get("body.clearance"),
            slow_m=get("body.slow_distance"),
            approach=ApproachLimits(
                get("approach.condition_slow"), get("approach.condition_stop"), get("approach.joint_margin")
            ),
        )

    def body(self, urdf_xml: str, joint_names: Sequence[str], home: FloatArray) -> Body | None:
        """None where distances are not watched.  Raises VegaError as `Body` does."""
        if not self.check:
            return None
        return Body(urdf_xml, joint_names, home, self.surroundings, self.clearance_m, self.slow_m, self.ignored)

    def pace(self, arm: Kinematics, limits: GuardLimits, body: Body | None) -> Approach | None:
        """None where nothing ever slows the arm."""
        if body is None and not self.approach.condition_stop and not self.approach.joint_margin_rad:
            return None
        return Approach(arm, self.approach, body, limits)
