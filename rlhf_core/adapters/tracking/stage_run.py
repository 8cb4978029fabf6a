"""What a stage writes while it runs: batched metrics, parameters, tags, files, dataset."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.adapters.datasets.data_docs import find_docs
from rlhf_core.adapters.datasets.dvc_versions import version_named
from rlhf_core.adapters.retries import LONGEST_PAUSE_SECONDS
from rlhf_core.adapters.settings import mlflow_address
from rlhf_core.adapters.tracking.dataset_input import DATA_DOCS, dataset_files, dataset_input
from rlhf_core.adapters.tracking.mlflow_client import (
    LostServerError,
    mlflow_client,
    registry_errors,
    with_retries,
)
from rlhf_core.errors import RegistryError
from rlhf_core.schema import DatasetSplits

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

FLUSH_SECONDS = 2.0
MAX_BATCH = 1_000
"""Most metrics that MLflow takes in one request."""
NOTE = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run, in Markdown."""


class StageRun:
    """The MLflow run of one stage; a ``ports.Tracker``.

    Metrics are buffered and sent a batch every two seconds, and before each checkpoint: a killed
    stage goes on after its last checkpoint, and would never log the steps before it again. While
    the server is lost the buffer grows and training goes on; after ``patience`` seconds the next
    ``log_metrics`` raises.
    """

    def __init__(
        self, run: "Run", lineage: Mapping[str, str], *, resumed: bool, patience: float
    ) -> None:
        self.stage: str = lineage["rlhf.stage"]
        self.lineage = dict(lineage)
        """Tags ``rlhf.*`` that pass on to every version the run registers."""
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.resumed = resumed
        self._client = mlflow_client()
        self._patience = patience
        self._buffer: list[Metric] = []
        self._last_steps: dict[str, int] = {}
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        self._pause = FLUSH_SECONDS
        self._lost_since: float | None = None

    @property
    def url(self) -> str:
        """Where a person looks at the run."""
        return run_url(self.experiment_id, self.run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer scalar metrics of one step.

        Raises:
            RegistryError: the server has been lost for longer than the patience.
        """
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._buffer += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() >= self._next_flush:
            self._try_flush()

    def send_before_checkpoint(self) -> None:
        """Send what is buffered, unless the server is lost just now.

        Raises:
            RegistryError: the server has been lost for longer than the patience.
        """
        if self._lost_since is None:
            self._try_flush()

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep all settings with the run, as ``config.yaml``."""
        import yaml

        # MLflow's log_dict writes YAML in Python: a twentieth of an evaluation of small models.
        text = yaml.dump(dict(settings), Dumper=yaml.CSafeDumper, indent=2)
        with_retries(
            f"storing the settings of the {self.stage} run",
            lambda: self._client.log_text(self.run_id, text, "config.yaml"),
        )

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings once, as text."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in params.items()]
        for start in range(0, len(entries), 100):
            self._retry("params", params=entries[start : start + 100])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        self._retry("tags", tags=[RunTag(name, value) for name, value in tags.items()])

    def log_evaluation(self, values: Mapping[str, float], model_id: str | None = None) -> None:
        """Record final measurements, as the latest of their name, with the model they are of."""
        from mlflow.entities import Metric

        self.flush()
        now = time.time_ns() // 1_000_000
        steps = with_retries(f"metrics of the {self.stage} run", lambda: self._steps(values))
        metrics = [
            Metric(name, float(value), now, steps[name], model_id=model_id)
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), MAX_BATCH):
            self._retry("metrics", metrics=metrics[start : start + MAX_BATCH])

    def _steps(self, names: Iterable[str]) -> dict[str, int]:
        """The latest step each metric has: MLflow shows the highest step, not the newest point."""
        logged = self._client.get_run(self.run_id).data.metrics
        return {name: self._latest_step(name) if name in logged else 0 for name in names}

    def _latest_step(self, name: str) -> int:
        history = self._client.get_metric_history(self.run_id, name)
        return max((point.step for point in history), default=-1)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file or folder with the run."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with_retries(
            f"storing {path.name} with the {self.stage} run",
            lambda: log(self.run_id, str(path), folder or None),
        )

    def log_dataset(self, splits: DatasetSplits) -> None:
        """Record the dataset version as an input, and keep its report, pictures and Data Docs."""
        version = version_named(Path.cwd(), splits.dvc_md5, splits.git_revision)
        entity = dataset_input(splits, version)
        with_retries(
            f"recording the dataset of the {self.stage} run",
            lambda: self._client.log_inputs(self.run_id, [entity]),
        )
        for path, folder in dataset_files(splits):
            self.log_artifact(path, folder)
        name = version or f"{splits.sha256[:12]}, not published as a version"
        tags = {NOTE: f"Dataset: {name}"}
        if version:
            self.lineage["rlhf.dataset_version"] = tags["rlhf.dataset_version"] = version
        if find_docs(splits.directory):
            page = f"/artifacts/{DATA_DOCS}/index.html"
            tags["rlhf.data_docs"] = self.url + page
            tags[NOTE] += f". [Data Docs](#{self.url.partition('#')[2]}{page})"
        self.log_tags(tags)

    def flush(self) -> None:
        """Send what is buffered, waiting for a lost server as long as the patience lasts."""
        with_retries(f"metrics of the {self.stage} run", self.send, patience=self._patience)

    def _try_flush(self) -> None:
        now = time.monotonic()
        try:
            with registry_errors(f"metrics of the {self.stage} run"):
                self.send()
        except LostServerError as error:
            self._lost_since = self._lost_since or now
            if now - self._lost_since > self._patience:
                raise RegistryError(f"{error}; lost for {now - self._lost_since:.0f} s") from error
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        else:
            self._lost_since, self._pause = None, FLUSH_SECONDS
        self._next_flush = time.monotonic() + self._pause

    def send(self) -> None:
        """Try once to send what is buffered."""
        while self._buffer:
            batch = self._buffer[:MAX_BATCH]
            # MLflow ignores a point it already holds, so a batch whose answer got lost is safe.
            fresh = [metric for metric in batch if metric.step > self._last_step(metric.key)]
            if fresh:
                self._client.log_batch(self.run_id, metrics=fresh)
            del self._buffer[: len(batch)]

    def _last_step(self, name: str) -> int:
        """Last step an earlier, killed attempt recorded: the steps it repeats are not doubled."""
        if not self.resumed:
            return -1
        if name not in self._last_steps:
            self._last_steps[name] = self._latest_step(name)
        return self._last_steps[name]

    def _retry(self, what: str, **batch: Any) -> None:
        with_retries(
            f"{what} of the {self.stage} run",
            lambda: self._client.log_batch(self.run_id, **batch),
        )


def run_url(experiment_id: str, run_id: str) -> str:
    """Address of a run in the MLflow UI; for the embedded database, the file and the page."""
    base = mlflow_address().rstrip("/")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"
