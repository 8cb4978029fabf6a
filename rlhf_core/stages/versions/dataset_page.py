"""A dataset where people look: its Data Docs and report as files of an MLflow run."""

from rlhf_core.adapters.datasets.data_docs import find_docs
from rlhf_core.adapters.tracking.dataset_input import DATA_DOCS
from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import DatasetSplits, RunContext
from rlhf_core.storage.records import write_text

ADDRESS = "mlflow-address.txt"


def show_dataset(config: PipelineConfig, splits: DatasetSplits, context: RunContext) -> str | None:
    """Keep a dataset's Data Docs and report with an MLflow run, once for a preparation.

    Args:
        config: settings of the run.
        splits: of the preparation.
        context: of the run that prepared.

    Returns:
        Where a browser finds the Data Docs, or the run where there are none (a dataset version
        that was brought back); None where MLflow is a local database that nobody serves.

    Raises:
        RegistryError: MLflow does not answer.
    """
    known = context.stage_directory("prepare") / ADDRESS
    if known.is_file():
        return known.read_text(encoding="utf-8") or None
    with open_run(config, context, "prepare", inputs=stage_inputs(splits)) as run:
        run.log_dataset(splits)
    page = f"{run.url}/artifacts/{DATA_DOCS}/index.html"
    address = page if find_docs(splits.directory) else run.url
    address = address if run.url.startswith("http") else ""
    write_text(known, address)
    return address or None
