"""What is reported to Prefect while a model trains: progress, and the KL watch's interventions.

Nothing here may stop or slow a training: a lost Prefect server costs a warning.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from rlhf_core.schema import RunContext
from rlhf_flows.engine.events import announce
from rlhf_flows.engine.lost_server import best_effort
from rlhf_flows.engine.runs.in_prefect import is_deployed

STOP = "stop"
"""The action that ends the training; the error that follows is announced instead."""
UPDATE_SECONDS = 2.0
RETRY_SECONDS = 15.0


class ProgressShown:
    """Moves a progress artifact along with the training, from a thread of its own."""

    def __init__(self, artifact: UUID) -> None:
        self._artifact = artifact
        self._latest: tuple[float, str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._thread.start()

    def update(self, percent: float, description: str) -> None:
        """Remember how far the training is; the thread shows it."""
        self._latest = (percent, description)

    def close(self) -> None:
        """Show the last step; give up soon if the server is lost."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        pause = UPDATE_SECONDS
        while not self._ended.wait(pause):
            pause = UPDATE_SECONDS if self._show() else RETRY_SECONDS
        self._show()

    def _show(self) -> bool:
        latest, self._latest = self._latest, None
        if latest is None:
            return True
        with best_effort("progress_not_shown"):
            update_progress_artifact(self._artifact, progress=latest[0], description=latest[1])
            return True
        return False


class TrainingObserver:
    """The ``Observer`` of a stage: shows its steps and announces its KL spikes."""

    def __init__(self, context: RunContext, stage: str, shown: ProgressShown | None) -> None:
        self._context, self._stage, self._shown = context, stage, shown

    def step(self, trainer: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show the step where a worker runs the stage."""
        if self._shown is None:
            return
        values = (f"{name.split('/')[-1]}={value:.4g}" for name, value in metrics.items())
        description = " ".join((f"{trainer} step={done} of={total}", *values))
        self._shown.update(100.0 * done / max(total, 1), description)

    def kl_spike(self, action: str, message: str) -> None:
        """Announce ``rlhf.kl-spike`` for every intervention that is not the end."""
        if action != STOP:
            announce(
                "rlhf.kl-spike", self._context, stage=self._stage, action=action, message=message
            )


@contextmanager
def watch_training(context: RunContext, stage: str) -> Iterator[TrainingObserver]:
    """Give the training inside the block its observer."""
    artifact = _progress_artifact(stage) if is_deployed() else None
    shown = None if artifact is None else ProgressShown(artifact)
    try:
        yield TrainingObserver(context, stage, shown)
    finally:
        if shown is not None:
            shown.close()


def _progress_artifact(stage: str) -> UUID | None:
    with best_effort("progress_not_shown"):
        made = create_progress_artifact(
            progress=0.0, key=f"{stage}-progress", description=f"{stage}: training"
        )
        return UUID(str(made))
    return None
