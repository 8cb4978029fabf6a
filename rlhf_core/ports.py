"""Protocols: what trainers need from outside, so that they never import a tracking library."""

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


class CheckpointCopies(Protocol):
    """Where checkpoints are kept besides the machine's own disk."""

    def keep(self, checkpoint: Path) -> None:
        """Copy a whole checkpoint; those before it may go."""

    def bring(self, directory: Path, after: str) -> None:
        """Bring the last copy into ``directory`` if it is later than the one named ``after``."""
