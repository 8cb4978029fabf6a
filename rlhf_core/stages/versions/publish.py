"""Publish a dataset version: batch, prepare, commit, push and tag, all of it or none."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_core.adapters.datasets import dvc_versions, versioning
from rlhf_core.config import SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.schema import BatchResult, DatasetSplits, DataVersion
from rlhf_core.stages.preparation.dataset import FAILURES, read_splits
from rlhf_core.stages.versions import batches as data_batches
from rlhf_core.stages.versions.batches import AddedBatch
from rlhf_core.stages.versions.diff import compare_datasets
from rlhf_core.stages.versions.versions import (
    LOCAL,
    fetch_version,
    find_version,
    keep_dataset,
    list_versions,
)
from rlhf_core.storage.folders import exclusive
from rlhf_core.storage.own_folders import require_replaceable

logger = logging.getLogger(__name__)

_STAGE = "prepare"
_FAILED = f"{dvc_versions.PREPARED}-failed"


def publish(
    batch: SourceConfig | None,
    *,
    min_kept_fraction: float = 1.0,
    directory: Path = Path(),
    change: Callable[[Path], list[str]] | None = None,
) -> BatchResult:
    """Prepare, commit, push and tag the next version, with a new annotation batch or without.

    Works in a scratch clone of the checked-out commit, with that commit's own code; one at a
    time. A kill leaves either no new version or a whole one.

    Args:
        batch: the new annotations in any source format; None publishes what is committed.
        min_kept_fraction: refuse a version with fewer rows than this share of the last one's;
            below one, a batch may be missing as well.
        directory: a place in the repository.
        change: changes the raw files of the clone it gets; returns what git is to keep of that.

    Raises:
        DataError: the batch cannot be read, preparation refuses or passes over a batch, rows or a
            batch went missing, or the storage does not answer. Nothing is published then; what
            preparation kept of its refusal is in ``data/prepared-failed`` of the repository.
    """
    root = versioning.repository_root(directory)
    scratch = root / LOCAL / "publish"
    require_replaceable(root / _FAILED, FAILURES)
    with exclusive(scratch):
        base = dvc_versions.publishing_base(root)
        dvc_versions.require_remote(root)
        with dvc_versions.scratch_clone(root, base, scratch) as clone:
            versions = list_versions(root)
            added = _fill(root, clone, batch, versions, min_kept_fraction)
            kept = change(clone) if change else []
            _prepare(root, clone)
            prepared = read_splits(clone / dvc_versions.PREPARED)
            _require_read(prepared, clone, added, min_kept_fraction)
            summary = _summarise(root, prepared, added.name, versions)
            _require_rows(summary, versions, min_kept_fraction)
            changed = ["dvc.lock", *added.files, *kept]
            tag = dvc_versions.tag_version(clone, root, changed, summary)
            folder = keep_dataset(root, prepared)
        moved = dvc_versions.advance_branch(root, tag)
        if moved and added.name:
            data_batches.check_out_batch(root, added.name)
        if moved and kept:
            data_batches.check_out(root, kept, f"{tag}^")
    logger.info("data_published version=%s pairs=%s", tag, summary["pairs"])
    return BatchResult(
        version=find_version(tag, directory),
        directory=folder,
        set_aside=added.set_aside,
        branch_moved=moved,
    )


def _fill(
    root: Path,
    clone: Path,
    batch: SourceConfig | None,
    versions: Sequence[DataVersion],
    min_kept_fraction: float,
) -> AddedBatch:
    """Bring all raw files into the clone, the new batch with them."""
    data_batches.pull_raw(clone)
    if versions and min_kept_fraction == 1.0:
        data_batches.require_batches(root, versions[-1].version, clone)
    if batch is None:
        return AddedBatch()
    taken = (f"{version.batch}.dvc" for version in versions)
    return data_batches.add_batch(batch, clone, taken)


def _prepare(root: Path, clone: Path) -> None:
    """Run preparation in the clone; what it says of a refusal is kept before the clone goes."""
    own_code = clone if (clone / "rlhf_core").is_dir() else None
    try:
        versioning.dvc("repro", _STAGE, cwd=clone, code=own_code)
    except DataError:
        if (clone / _FAILED).is_dir():
            with exclusive(root / dvc_versions.PREPARED):
                shutil.rmtree(root / _FAILED, ignore_errors=True)
                shutil.copytree(clone / _FAILED, root / _FAILED)
        raise


def _require_read(
    prepared: DatasetSplits, clone: Path, added: AddedBatch, min_kept_fraction: float
) -> None:
    """Refuse a dataset that leaves out a batch: the settings that dvc.yaml prepares decide."""
    if min_kept_fraction == 1.0:
        expected = data_batches.batch_names(clone)
    else:
        expected = [added.name] if added.name else []
    files = json.loads(prepared.report.read_text(encoding="utf-8")).get("files", ())
    read = {Path(file).name for file in files}
    for name in expected:
        if name not in read:
            raise DataError(
                f"{data_batches.BATCHES / name} would not be part of the version: preparation did"
                f" not read it; in the configuration that dvc.yaml prepares set data.batches:"
                f" {data_batches.BATCHES}, and commit that"
            )


def _summarise(
    root: Path, prepared: DatasetSplits, batch: str | None, versions: Sequence[DataVersion]
) -> dict[str, object]:
    """Return what the version's tag says of it."""
    report = json.loads(prepared.report.read_text(encoding="utf-8"))
    alpha = report["agreement"]["krippendorff_alpha"]
    previous = fetch_version(versions[-1].version, root) if versions else None
    diff = compare_datasets(previous, prepared, limit=0)
    return {
        "batch": batch,
        "rows": report["inputs"]["preferences"]["rows"],
        "pairs": report["inputs"]["preferences"]["kept"],
        "alpha": None if alpha is None else round(alpha["value"], 4),
        "came": diff.num_came,
        "went": diff.num_went,
        "relabelled": diff.num_relabelled,
        "sha256": prepared.sha256,
        "dvc_md5": prepared.dvc_md5,
    }


def _require_rows(
    summary: dict[str, object], versions: Sequence[DataVersion], min_kept_fraction: float
) -> None:
    rows = summary["rows"]
    if versions and isinstance(rows, int) and rows < min_kept_fraction * versions[-1].rows:
        raise DataError(
            f"the new version would have {rows} rows, {versions[-1].version} has"
            f" {versions[-1].rows}; if rows are meant to go, allow it with --min-kept-fraction"
        )
