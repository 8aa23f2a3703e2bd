"""Asking a service although its answer may be lost.

On Fast DDS a server can hear a request before it knows who listens for the answer.  It waits 100 ms for that and then
drops the answer with a warning (ros2/rmw_fastrtps issue 842): on a busy machine the first call of a client now and
then waits for ever.  So what stays unanswered is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from policies.types import VegaError

AGAIN_S = 5.0
# `until(condition, timeout_s)` serves callbacks until the condition holds; False if it does not in time.
Until = Callable[[Callable[[], bool], float], bool]
# transition -> the state it leads to
GOALS = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN: State.PRIMARY_STATE_FINALIZED,
    Transition.TRANSITION_INACTIVE_SHUTDOWN: State.PRIMARY_STATE_FINALIZED,
    Transition.TRANSITION_ACTIVE_SHUTDOWN: State.PRIMARY_STATE_FINALIZED,
}


def ask(client: Any, request: Any, until: Until, timeout_s: float, again_s: float = AGAIN_S) -> Any | None:
    """The answer of a service that is ready; None if none came within `timeout_s`.

    again_s: after so long the request is made once more, and so on; longer where an answer takes long and the work is
    not to be done twice.
    """
    deadline = time.monotonic() + timeout_s
    futures: list[Any] = []
    while (remaining := deadline - time.monotonic()) > 0:
        futures.append(client.call_async(request))
        if until(lambda: any(future.done() for future in futures), min(again_s, remaining)):
            break
    for future in futures:
        client.remove_pending_request(future)
    return next((future.result() for future in futures if future.done()), None)


class ServiceClients:
    """The services that one node calls, each by its name and with a deadline.

    until: serves the node's callbacks; what it raises ends the wait.
    """

    def __init__(self, node: Any, until: Until) -> None:
        self._caller = node
        self._until = until
        self._clients: dict[str, Any] = {}

    def client(self, kind: Any, name: str) -> Any:
        """The client of a service.  Made before it is needed it is known on the other side when it calls."""
        if name not in self._clients:
            self._clients[name] = self._caller.create_client(kind, name)
        return self._clients[name]

    def call(self, kind: Any, name: str, request: Any, timeout_s: float, again_s: float = AGAIN_S) -> Any:
        """The response of a service; VegaError if it is not there or silent for the time.

        again_s: as for `ask`; longer where the answer takes long and the work is not to be done twice.
        """
        deadline = time.monotonic() + timeout_s
        client = self._ready(kind, name, timeout_s)
        response = ask(client, request, self._until, deadline - time.monotonic(), again_s)
        if response is None:
            raise VegaError(f"Service {name} did not answer within {timeout_s:.3g} s: check its node's log.")
        return response

    def state(self, node: str, timeout_s: float, waited_s: float = 0.0) -> State:
        """The state of a lifecycle node, once it is in no transition; VegaError if none is told in the time.

        waited_s: for how long it was waited for before.
        """
        deadline = time.monotonic() + timeout_s
        while (remaining := deadline - time.monotonic()) > 0:
            state = self.call(GetState, f"{node}/get_state", GetState.Request(), remaining).current_state
            if state.id <= State.PRIMARY_STATE_FINALIZED:
                return state
        waited_s += timeout_s
        raise VegaError(f"{node} did not end its transition within {waited_s:.3g} s: check its log.")

    def change_state(self, node: str, transition: int, timeout_s: float) -> bool:
        """Whether a lifecycle node made the transition; VegaError if it is not there or silent for the time."""
        deadline = time.monotonic() + timeout_s
        client = self._ready(ChangeState, f"{node}/change_state", timeout_s)
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = ask(client, request, self._until, min(AGAIN_S, deadline - time.monotonic()))
        if answer is not None:
            return bool(answer.success)
        # It takes long, or the answer is lost: asked for twice it would be refused, so the state has to tell.
        left_s = deadline - time.monotonic()
        return int(self.state(node, left_s, timeout_s - left_s).id) == GOALS[transition]

    def _ready(self, kind: Any, name: str, timeout_s: float) -> Any:
        client = self.client(kind, name)
        if not self._until(client.service_is_ready, timeout_s):
            raise VegaError(f"Service {name} did not appear within {timeout_s:.3g} s: check that its node runs.")
        return client
