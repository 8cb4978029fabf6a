"""The one way to repeat what failed for a reason that may pass: a server that is busy or lost."""

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_exponential,
)

Result = TypeVar("Result")
Waits = Callable[[RetryCallState], float]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0


def backoff(first: float = FIRST_PAUSE_SECONDS, longest: float = LONGEST_PAUSE_SECONDS) -> Waits:
    """Return waits that begin at ``first`` seconds and double up to ``longest``."""
    return wait_exponential(multiplier=first, max=longest)


def retry_while(
    lost: Callable[[BaseException], bool],
    call: Callable[[], Result],
    *,
    patience: float,
    announce: Callable[[BaseException, float], None],
    waits: Waits | None = None,
    sleep: Callable[[float], object] | None = None,
) -> Result:
    """Run ``call`` until it raises nothing that is ``lost``, and return what it returns.

    Args:
        lost: whether a later attempt may not meet this error; every other one passes at once.
        call: must be safe to repeat.
        patience: seconds from the start; an attempt that would begin later is not waited for.
        announce: called at each failure that is waited for, with the seconds of the wait.
        waits: how long after each; None takes ``backoff()``.
        sleep: waits, and may return early; None takes ``time.sleep``.

    Raises:
        Exception: the last one, after ``patience`` seconds, or the first that is not lost.
    """

    def before_sleep(state: RetryCallState) -> None:
        announce(error_of(state), state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(lost),
        wait=waits or backoff(),
        stop=stop_before_delay(patience),
        before_sleep=before_sleep,
        sleep=sleep or time.sleep,  # type: ignore[arg-type]
        reraise=True,
    )(call)


def error_of(state: RetryCallState) -> BaseException:
    """Return what the attempt raised that is waited for."""
    error = state.outcome.exception() if state.outcome is not None else None
    return error or RuntimeError("the attempt raised nothing")
