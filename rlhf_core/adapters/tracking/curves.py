"""Training curves, read back from the tracking server for a report."""

import fnmatch
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries

Curve = tuple[tuple[int, ...], tuple[float, ...]]
"""Steps and values, in order of the steps."""


def read_curves(run_id: str, names: Sequence[str]) -> dict[str, Curve]:
    """Return the recorded points of each metric that a run has more than one point of.

    A name may be a pattern (``policy/reward_term_*``).

    Raises:
        RegistryError: there is no such run, or MLflow does not answer.
    """
    client = mlflow_client()
    logged = with_retries(f"reading run {run_id}", lambda: client.get_run(run_id).data.metrics)
    curves: dict[str, Curve] = {}
    for pattern in names:
        for name in fnmatch.filter(sorted(logged), pattern):
            steps, values = _points(run_id, name)
            if len(steps) > 1:
                curves[name] = (steps, values)
    return curves


def run_span(run_id: str) -> tuple[datetime, timedelta]:
    """Return when a run ended, or began where it has not ended, and how long it took.

    Raises:
        RegistryError: there is no such run, or MLflow does not answer.
    """
    client = mlflow_client()
    info = with_retries(f"reading run {run_id}", lambda: client.get_run(run_id).info)
    end = info.end_time or info.start_time
    return (
        datetime.fromtimestamp(end / 1000, UTC),
        timedelta(milliseconds=end - info.start_time),
    )


def _points(run_id: str, name: str) -> Curve:
    history = with_retries(
        f"reading {name} of run {run_id}",
        lambda: mlflow_client().get_metric_history(run_id, name),
    )
    by_step = {point.step: point.value for point in history}
    steps = sorted(by_step)
    return tuple(steps), tuple(by_step[step] for step in steps)
