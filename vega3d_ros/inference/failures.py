"""What a policy raises, as one sentence for who uses it."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from policies.types import VegaError


def policy_failed(error: Exception) -> VegaError:
    """What no policy should raise."""
    return _sentence("The policy failed", error)


def begin_episode(reset: Callable[[], None]) -> None:
    """Calls a policy's `reset`.  Raises VegaError, whatever that raises; the traceback goes to the log."""
    try:
        reset()
    except VegaError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise _sentence("The policy could not begin anew", error) from error


def _sentence(what: str, error: Exception) -> VegaError:
    return VegaError(f"{what} ({type(error).__name__}: {str(error)[:200]}): see the log, then call ~/start again.")
