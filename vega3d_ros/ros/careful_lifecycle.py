"""A lifecycle node whose transitions say why they fail, and that survives impossible requests.

rclpy swallows what a transition raises, and ends the process at a transition that the present state lacks.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from policies.types import VegaError


def fix_parameters_while(node: Node, is_active: Callable[[], bool]) -> None:
    """Refuse every change of a parameter while `is_active()`."""

    def judge(parameters: list[Parameter]) -> SetParametersResult:
        if not is_active():
            return SetParametersResult(successful=True)
        names = ", ".join(parameter.name for parameter in parameters)
        return SetParametersResult(
            successful=False,
            reason=f"{names} cannot be changed while {node.get_name()} is active: deactivate it first.",
        )

    node.add_on_set_parameters_callback(judge)


class CarefulLifecycleNode(LifecycleNode):  # type: ignore[misc]
    """Subclasses implement the transitions as plain methods, which may raise, and which undo each other."""

    def _configure(self) -> None:
        raise NotImplementedError

    def _activate(self) -> None:
        raise NotImplementedError

    def _deactivate(self) -> None:
        raise NotImplementedError

    def _unconfigure(self) -> None:
        raise NotImplementedError

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("configure", self._configure, undo=self._unconfigure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("activate", self._activate, undo=self._deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("cleanup", self._unconfigure)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("shutdown", self._unconfigure)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("recover", self._unconfigure)

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
