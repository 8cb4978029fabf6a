"""Protocols: what trainers need from outside; they import no tracking or orchestration library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Receives what happens during training. MLflow in production, a list in tests."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record scalar metrics of one optimisation step or iteration."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings once, at the start."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file or folder with the run."""


class Observer(Protocol):
    """Follows a training while it runs. It is called in the training loop: it returns at once."""

    def step(self, trainer: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Hear of one optimisation step, or of one iteration of PPO.

        Args:
            trainer: ``sft``, ``reward`` (the judge's too), ``dpo``, ``kto`` or ``ppo``.
            done: steps done so far, those before a resume included.
            total: steps planned; early stopping may end before.
            metrics: losses and rates of this step, as the progress bar shows them.
        """

    def kl_spike(self, action: str, message: str) -> None:
        """Hear that the policy left its KL limits.

        Args:
            action: what is done about it, a value of ``policy.kl_watch.action``; after ``stop``
                the training ends with ``KlLimitError``.
            message: KL in nats, limit, iteration and interventions so far.
        """


class CheckpointCopies(Protocol):
    """Where checkpoints are kept besides the machine's own disk."""

    def keep(self, checkpoint: Path) -> None:
        """Copy a whole checkpoint; those before it may go."""

    def restore(self, directory: Path, after: str) -> None:
        """Restore the last copy to ``directory`` if it is later than the one named ``after``."""

    def restore_all(self, directory: Path) -> None:
        """Restore every copy to ``directory`` that is not there."""
