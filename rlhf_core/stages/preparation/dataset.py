"""The folder of a prepared dataset: what lies in it, whose it is, how it is read."""

from pathlib import Path
from typing import Any

from rlhf_core.adapters.datasets import versioning
from rlhf_core.adapters.datasets.data_docs import FOLDER as DOCS
from rlhf_core.dataprep.assemble import FILE_NAMES, UNPAIRED_FILES
from rlhf_core.dataprep.manifest import NAME, find_manifest, read_manifest
from rlhf_core.errors import DataError
from rlhf_core.schema import DatasetRef, DatasetSplits
from rlhf_core.stages.preparation import build, checks
from rlhf_core.stages.preparation.report import ANNOTATORS
from rlhf_core.storage.own_folders import OwnFolder

_KEPT_OF_FAILURE = (build.QUARANTINE, build.REPORT, DOCS, checks.FAILING)
DATASET = OwnFolder(
    what="the prepared dataset",
    is_ours=lambda folder: find_manifest(folder) is not None,
    names=(
        *(f"{name}.jsonl" for name in (*FILE_NAMES, *UNPAIRED_FILES)),
        *(NAME, build.REPORT, build.QUARANTINE, DOCS),
        *(build.PICTURES, ANNOTATORS),
    ),
)
FAILURES = OwnFolder(
    what="the rows and reports of a preparation that fails",
    is_ours=checks.is_marked_failed,
    names=(*_KEPT_OF_FAILURE, checks.MARK),
)


def failures_of(output: Path) -> Path:
    """Return the folder where a failed preparation of ``output`` keeps what it is about."""
    return output.with_name(f"{output.name}-failed")


def read_splits(directory: Path, revision: str | None = None) -> DatasetSplits:
    """Return the references of a prepared directory.

    Args:
        directory: what preparation made.
        revision: git commit the data belongs to; None takes the one checked out around it.

    Raises:
        DataError: there is no complete dataset in ``directory``.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise DataError(f"{directory}: no complete prepared dataset; run `rlhf prepare` first")
    revision = revision or versioning.git_revision(directory)
    references: dict[str, Any] = {
        name: DatasetRef(
            path=directory / f"{name}.jsonl",
            sha256=facts.sha256,
            num_rows=facts.num_rows,
            dvc_md5=facts.md5,
            git_revision=revision,
        )
        for name, facts in manifest.files.items()
    }
    return DatasetSplits(
        directory=directory,
        sha256=manifest.sha256,
        # Their sha256 has just been compared, so their md5 is that of the manifest as well.
        dvc_md5=versioning.directory_md5(
            directory, {f"{name}.jsonl": facts.md5 for name, facts in manifest.files.items()}
        ),
        git_revision=revision,
        split=manifest.split,
        template_date=manifest.template_date,
        report=directory / build.REPORT,
        **references,
    )
