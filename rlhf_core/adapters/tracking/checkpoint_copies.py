"""Checkpoints kept with the stage's MLflow run as well: another machine goes on from the last one.

Where ``RLHF_SHARE_CHECKPOINTS`` is set; a checkpoint holds weights and optimiser, so it costs three
to four times the model's size, each time it is written.
"""

import logging
import shutil
import tempfile
from pathlib import Path

from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.earlier_run import RUN_NOTE
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, registry_errors, with_retries
from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.errors import RegistryError

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
KEPT = 2
WEIGHTS = "kept-weights"
"""Folder of the weights that one is chosen from when the training is over."""


class CheckpointCopies:
    """The copies of one stage's checkpoints; a ``ports.CheckpointCopies``."""

    def __init__(self, run_id: str, folder: str = FOLDER, *, most: int = KEPT) -> None:
        self._run_id, self._folder, self._most = run_id, folder, most

    def keep(self, checkpoint: Path) -> None:
        """Copy a checkpoint, and drop all but the last few; a lost server costs a warning."""
        try:
            with registry_errors(f"copying {checkpoint.name}"):
                client = mlflow_client()
                client.log_artifacts(
                    self._run_id, str(checkpoint), f"{self._folder}/{checkpoint.name}"
                )
                for name in self._names()[: -self._most]:
                    self._delete(name)
        except RegistryError as error:
            logger.warning("checkpoint_not_copied checkpoint=%s %s", checkpoint.name, error)

    def restore(self, directory: Path, after: str) -> None:
        """Restore the last copy, if it is later than ``after``.

        Args:
            directory: where the stage keeps its checkpoints.
            after: name of the last one there; empty if there is none.
        """
        names = with_retries("finding checkpoints", self._names)
        if names and names[-1] > after:
            self._restore(directory, names[-1])

    def restore_all(self, directory: Path) -> None:
        """Restore every copy that does not lie in ``directory``."""
        for name in with_retries("finding checkpoints", self._names):
            if not (directory / name).is_dir():
                self._restore(directory, name)

    def _restore(self, directory: Path, name: str) -> None:
        from mlflow.artifacts import download_artifacts

        def fetch(target: str) -> Path:
            found = download_artifacts(
                run_id=self._run_id,
                artifact_path=f"{self._folder}/{name}",
                dst_path=target,
                tracking_uri=load_settings().mlflow_tracking_uri,
            )
            return Path(found)

        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=directory) as folder:
            found = with_retries(f"restoring {name}", lambda: fetch(folder))
            shutil.rmtree(directory / name, ignore_errors=True)
            found.rename(directory / name)
        logger.info("checkpoint_restored checkpoint=%s", name)

    def drop(self) -> None:
        """Delete all of them; a lost server costs a warning."""
        try:
            with registry_errors("deleting copies of checkpoints"):
                for name in self._names():
                    self._delete(name)
        except RegistryError as error:
            logger.warning("checkpoint_copies_kept %s", error)

    def _names(self) -> list[str]:
        entries = mlflow_client().list_artifacts(self._run_id, self._folder)
        return sorted(Path(entry.path).name for entry in entries if entry.is_dir)

    def _delete(self, name: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run = mlflow_client().get_run(self._run_id)
        store = get_artifact_repository(
            run.info.artifact_uri, tracking_uri=load_settings().mlflow_tracking_uri
        )
        store.delete_artifacts(f"{self._folder}/{name}")


def copies_of(run: StageRun, folder: str = FOLDER, *, most: int = KEPT) -> CheckpointCopies | None:
    """Return where a stage's checkpoints are copied to; None where nobody asked for it.

    Args:
        run: of the stage.
        folder: of the run's artifacts.
        most: copies that stay.
    """
    return CheckpointCopies(run.run_id, folder, most=most) if _are_shared() else None


def drop_copies(folder: Path) -> None:
    """Delete the copies of a finished stage's checkpoints, where there are copies.

    Args:
        folder: the stage's.
    """
    note = folder / RUN_NOTE
    if _are_shared() and note.exists():
        for name in (FOLDER, WEIGHTS):
            CheckpointCopies(note.read_text(encoding="utf-8"), name).drop()


def _are_shared() -> bool:
    settings = load_settings()
    return settings.rlhf_share_checkpoints and not settings.embedded
