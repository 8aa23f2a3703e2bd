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
from lifecycle_msgs.srv import ChangeState

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


def made(client: Any, transition: int, until: Until, state: Callable[[], State]) -> bool:
    """Whether a lifecycle node made the transition that its ready ChangeState `client` asks for.

    state: tells the node's state once it is in no transition.
    """
    answer = ask(client, ChangeState.Request(transition=Transition(id=transition)), until, AGAIN_S)
    if answer is not None:
        return bool(answer.success)
    # It takes long, or the answer is lost: asked for twice it would be refused, so the state has to tell.
    return int(state().id) == GOALS[transition]


def is_primary(state: State) -> bool:
    """Whether a node in this state is in no transition."""
    return int(state.id) <= State.PRIMARY_STATE_FINALIZED
