"""A dataset as MLflow shows it: named by its version, found by its digest, with its pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.adapters.datasets.data_docs import find_docs
from rlhf_core.schema import DatasetRef, DatasetSplits

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

FOLDER = "dataset"
"""Artifact folder of a run that keeps what there is to see of its dataset."""
DATA_DOCS = f"{FOLDER}/data-docs"
_PICTURES = "pictures"


def dataset_input(splits: DatasetSplits, version: str | None) -> "DatasetInput":
    """Return the MLflow entity; its source says all that ``rlhf data get`` needs.

    Args:
        splits: the dataset.
        version: ``data-vN``; None where it was not published, and the folder's name stands in.
    """
    from mlflow.entities import Dataset, DatasetInput

    source = {
        "version": version,
        "dvc_md5": splits.dvc_md5,
        "sha256": splits.sha256,
        "git_revision": splits.git_revision,
        "path": str(splits.directory),
    }
    rows = {
        name: part.num_rows
        for name in DatasetSplits.model_fields
        if isinstance(part := getattr(splits, name), DatasetRef)
    }
    return DatasetInput(
        Dataset(
            name=version or splits.directory.name,
            digest=splits.dvc_md5.removesuffix(".dir"),
            source_type="dvc",
            source=json.dumps(source),
            profile=json.dumps(rows),
        )
    )


def dataset_files(splits: DatasetSplits) -> Iterator[tuple[Path, str]]:
    """Yield ``(file or folder, artifact folder)`` of report, pictures and Data Docs."""
    if splits.report.is_file():
        yield splits.report, FOLDER
    for picture in sorted((splits.directory / _PICTURES).glob("*.png")):
        yield picture, f"{FOLDER}/{_PICTURES}"
    docs = find_docs(splits.directory)
    if docs is not None:
        yield docs, DATA_DOCS
