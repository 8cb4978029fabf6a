"""What is heard from the trainers' log lines while they train: progress, and the KL watch.

Nothing here may stop or slow a training: a lost Prefect server costs a warning.
"""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from rlhf_core.schema import RunContext
from rlhf_flows.engine.events import announce
from rlhf_flows.engine.lost_server import at_the_cost_of_a_warning
from rlhf_flows.engine.run_folder import is_deployed

TRAINERS = "rlhf_core.trainers"
STEP = re.compile(r"\bstep=(\d+) of=(\d+)\b")
"""How the trainers' log lines say how far they are."""
SPIKE = re.compile(r"^kl_spike action=(\w+)")
"""How they say that the policy left its KL limits and what was done about it."""
STOP = "stop"
"""The action that ends the training; the error that follows is announced instead."""
UPDATE_SECONDS = 2.0
RETRY_SECONDS = 15.0


class ProgressFromLogs(logging.Handler):
    """Moves a progress artifact along with the trainers' log lines, from a thread of its own."""

    def __init__(self, artifact: UUID) -> None:
        super().__init__(logging.INFO)
        self._artifact = artifact
        self._latest: tuple[float, str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Remember the line if it says a step."""
        step = STEP.search(record.getMessage())
        if step:
            self._latest = (100.0 * int(step[1]) / max(int(step[2]), 1), record.getMessage())

    def close(self) -> None:
        """Show the last line; give up soon if the server is lost."""
        self._ended.set()
        self._thread.join(timeout=5)
        super().close()

    def _follow(self) -> None:
        pause = UPDATE_SECONDS
        while not self._ended.wait(pause):
            pause = UPDATE_SECONDS if self._show() else RETRY_SECONDS
        self._show()

    def _show(self) -> bool:
        latest, self._latest = self._latest, None
        if latest is None:
            return True
        with at_the_cost_of_a_warning("progress_not_shown"):
            update_progress_artifact(self._artifact, progress=latest[0], description=latest[1])
            return True
        return False


class SpikesFromLogs(logging.Handler):
    """Announces ``rlhf.kl-spike`` for every intervention of the KL watch that is not the end."""

    def __init__(self, context: RunContext, stage: str) -> None:
        super().__init__(logging.INFO)
        self._context = context
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        """Announce the line if it tells of an intervention."""
        message = record.getMessage()
        spike = SPIKE.match(message)
        if spike and spike[1] != STOP:
            announce(
                "rlhf.kl-spike",
                self._context,
                stage=self._stage,
                action=spike[1],
                message=message,
            )


@contextmanager
def watch_training(context: RunContext, stage: str) -> Iterator[None]:
    """Show how far the training inside the block is, and tell of its KL spikes."""
    handlers: list[logging.Handler] = [SpikesFromLogs(context, stage)]
    artifact = _progress_artifact(stage) if is_deployed() else None
    if artifact is not None:
        handlers.append(ProgressFromLogs(artifact))
    trainers = logging.getLogger(TRAINERS)
    for handler in handlers:
        trainers.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            trainers.removeHandler(handler)
            handler.close()


def _progress_artifact(stage: str) -> UUID | None:
    with at_the_cost_of_a_warning("progress_not_shown"):
        made = create_progress_artifact(
            progress=0.0, key=f"{stage}-progress", description=f"{stage}: training"
        )
        return UUID(str(made))
    return None
