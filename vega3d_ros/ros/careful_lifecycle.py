"""A lifecycle node whose transitions say why they fail, and that survives impossible requests.

rclpy swallows what a transition raises, and ends the process at a transition that the present state lacks.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from policies.types import VegaError


class CarefulLifecycleNode(LifecycleNode):  # type: ignore[misc]
    """Subclasses implement the transitions as plain methods and run them through `transition`."""

    def transition(
        self, name: str, action: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Run `action`; if it raises, log one sentence, run `undo` and answer FAILURE."""
        try:
            action()
            return TransitionCallbackReturn.SUCCESS
        except VegaError as error:
            self.get_logger().error(str(error))
        except Exception as error:
            self.get_logger().error(traceback.format_exc())
            self.get_logger().error(f"Cannot {name} ({type(error).__name__}: {error}): see the traceback in the log.")
        if undo is not None:
            undo()
        return TransitionCallbackReturn.FAILURE

    # The name is rclpy's own, mangled, as it offers no other place to refuse a request.
    def _LifecycleNodeMixin__on_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)  # type: ignore[misc]
        except RuntimeError as error:
            name = request.transition.label or request.transition.id
            self.get_logger().error(
                f"Transition {name} is not possible in this state ({str(error).split(', at ')[0]}): ask for another."
            )
            response.success = False
            return response
