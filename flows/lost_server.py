"""What is told to Prefect beside the work: a server that is lost costs a warning and no work."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def at_the_cost_of_a_warning(event: str) -> Iterator[None]:
    """Do the block as far as it goes; whatever the lost server did to it is logged and forgotten.

    Args:
        event: what was not done, as the line says it: ``progress_not_shown``, or
            ``event_not_sent event=rlhf.promoted``.
    """
    try:
        yield
    except Exception as error:  # the server's own faults have many types; none may stop the work
        logger.warning("%s error=%s: %s", event, type(error).__name__, error)
