"""Dataset versions: publish a batch, list, bring back, and compare."""

import json
import logging
import shutil
from pathlib import Path

from pydantic import Field

from rlhf_core.adapters import dvc_versions, versioning
from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.files import sha256_of, write_records
from rlhf_core.dataprep.publish import exclusive
from rlhf_core.dataprep.rows import SetAside
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, DatasetSplits, Record
from rlhf_core.stages.data_diff import DatasetDiff, compare_datasets
from rlhf_core.stages.prepare import read_splits

logger = logging.getLogger(__name__)

BATCHES = Path("data/raw/preferences")
"""Where annotation batches lie; ``data.batches`` of the configuration must name it."""
_STAGE = "prepare"
_LOCAL = Path(".rlhf/data")


class DataVersion(Record):
    """One published dataset version."""

    version: str
    commit: str
    date: str
    batch: str | None
    """The annotation batch that came with it."""
    rows: int = Field(ge=0)
    """Comparisons read."""
    pairs: int = Field(ge=0)
    """Preference pairs prepared."""
    alpha: float | None
    """Krippendorff's alpha over all votes."""
    came: int = Field(ge=0)
    """Pairs that the version before did not have."""
    went: int = Field(ge=0)
    relabelled: int = Field(ge=0)
    """Pairs whose winner changed."""
    sha256: str
    dvc_md5: str


class BatchResult(Record):
    """What ``publish`` did."""

    version: DataVersion
    set_aside: dict[str, int]
    """Rows of the batch that its reader could not use, by reason."""
    branch_moved: bool
    """False where local changes kept the checked-out branch from moving to the new commit."""


def publish(
    batch: SourceConfig | None, *, min_kept_fraction: float = 1.0, directory: Path = Path()
) -> BatchResult:
    """Prepare, commit, push and tag the next version, with a new annotation batch or without.

    Works in a scratch clone of the checked-out commit; one at a time.

    Args:
        batch: the new annotations in any source format; None publishes what is committed.
        min_kept_fraction: refuse a version with fewer rows than this share of the last one's.
        directory: a place in the repository.

    Raises:
        DataError: the batch cannot be read, preparation refuses, rows went missing, or the
            storage does not answer. Nothing is published then.
    """
    root = versioning.repository_root(directory)
    with exclusive(root / _LOCAL / "publish"), dvc_versions.scratch_clone(root, "HEAD") as clone:
        _pull_batches(clone)
        name, set_aside = (None, {}) if batch is None else _add_batch(batch, clone)
        versioning.dvc("repro", "--quiet", _STAGE, cwd=clone)
        prepared = read_splits(clone / dvc_versions.PREPARED)
        summary = _summarise(root, prepared, name)
        _require_rows(root, summary, min_kept_fraction)
        changed = ["dvc.lock", *([str(BATCHES)] if name else [])]
        tag = dvc_versions.tag_version(clone, root, changed, summary)
        moved = dvc_versions.advance_branch(root, tag)
        if moved and name:
            versioning.dvc("checkout", "--quiet", f"{BATCHES}/{name}.dvc", cwd=root)
    logger.info("data_published version=%s pairs=%s", tag, summary["pairs"])
    return BatchResult(
        version=find_version(tag, directory), set_aside=set_aside, branch_moved=moved
    )


def list_versions(directory: Path = Path()) -> list[DataVersion]:
    """Return all versions, oldest first."""
    root = versioning.repository_root(directory)
    return [
        DataVersion(version=tag, commit=commit, date=date, **_summary_of(message))
        for tag, commit, date, message in dvc_versions.list_tags(root)
    ]


def find_version(version: str, directory: Path = Path()) -> DataVersion:
    """Return one version.

    Raises:
        DataError: there is no such version.
    """
    dvc_versions.require_tag(versioning.repository_root(directory), version)
    return next(found for found in list_versions(directory) if found.version == version)


def bring_back(version: str, directory: Path = Path()) -> DatasetSplits:
    """Return the dataset of a version, from its own folder; the working tree stays as it is.

    Raises:
        DataError: no such version, or its bytes are neither in the cache nor on the remote.
    """
    root = versioning.repository_root(directory)
    commit = dvc_versions.require_tag(root, version)
    return _materialise(root, commit, dvc_versions.prepared_md5(root, commit))


def restore(dvc_md5: str, directory: Path = Path()) -> DatasetSplits:
    """Return the dataset with this DVC md5, as a model's tags name it, byte for byte.

    Raises:
        DataError: it was never published, or its bytes are gone.
    """
    root = versioning.repository_root(directory)
    return _materialise(root, dvc_versions.commit_of(root, dvc_md5), dvc_md5)


def compare(first: str, second: str, directory: Path = Path()) -> DatasetDiff:
    """Return which pairs came, went and changed their winner between two versions."""
    return compare_datasets(bring_back(first, directory), bring_back(second, directory))


def _materialise(root: Path, commit: str, dvc_md5: str) -> DatasetSplits:
    folder = root / _LOCAL / dvc_md5.removesuffix(".dir")
    with exclusive(folder):
        if not folder.is_dir() or versioning.directory_md5(folder) != dvc_md5:
            shutil.rmtree(folder, ignore_errors=True)
            incoming = folder.with_name(f".{folder.name}.incoming.tmp")
            dvc_versions.fetch_prepared(root, commit, incoming)
            found = versioning.directory_md5(incoming)
            if found != dvc_md5:
                raise DataError(f"commit {commit[:12]}: dataset is {found}, expected {dvc_md5}")
            incoming.rename(folder)
    return read_splits(folder, revision=commit)


def _pull_batches(clone: Path) -> None:
    """Every batch must be there before the next one is numbered, or it would be lost silently."""
    known = sorted(str(path.relative_to(clone)) for path in (clone / BATCHES).glob("*.dvc"))
    if known:
        versioning.dvc("pull", "--quiet", *known, cwd=clone)


def _add_batch(source: SourceConfig, clone: Path) -> tuple[str, dict[str, int]]:
    """Write the batch in canonical form under the next number; return its name and losses."""
    folder = clone / BATCHES
    numbers = [int(path.name[6:10]) for path in folder.glob("batch-[0-9][0-9][0-9][0-9].jsonl.dvc")]
    name = f"batch-{max(numbers, default=0) + 1:04d}.jsonl"
    set_aside: dict[str, int] = {}
    kept: list[Comparison] = []
    for item in read_comparisons(source):
        if isinstance(item, SetAside):
            set_aside[item.reason] = set_aside.get(item.reason, 0) + 1
        else:
            kept.append(item.model_copy(update={"line": None}))
    if not kept:
        raise DataError(f"{source.path}: no comparison to add; set aside: {set_aside or 'none'}")
    write_records(folder / name, kept)
    digest = sha256_of(folder / name)
    for other in sorted(folder.glob("batch-*.jsonl")):
        if other.name != name and sha256_of(other) == digest:
            raise DataError(f"{source.path}: these rows are already there as {other.name}")
    versioning.dvc("add", "--quiet", str(BATCHES / name), cwd=clone)
    return name, set_aside


def _summarise(root: Path, prepared: DatasetSplits, batch: str | None) -> dict[str, object]:
    """Return what the version's tag says of it."""
    report = json.loads(prepared.report.read_text(encoding="utf-8"))
    alpha = report["agreement"]["krippendorff_alpha"]
    versions = list_versions(root)
    previous = bring_back(versions[-1].version, root) if versions else None
    diff = compare_datasets(previous, prepared)
    return {
        "batch": batch,
        "rows": report["inputs"]["preferences"]["rows"],
        "pairs": report["inputs"]["preferences"]["kept"],
        "alpha": None if alpha is None else round(alpha["value"], 4),
        "came": len(diff.came),
        "went": len(diff.went),
        "relabelled": len(diff.relabelled),
        "sha256": prepared.sha256,
        "dvc_md5": prepared.dvc_md5,
    }


def _require_rows(root: Path, summary: dict[str, object], min_kept_fraction: float) -> None:
    versions = list_versions(root)
    rows = summary["rows"]
    if versions and isinstance(rows, int) and rows < min_kept_fraction * versions[-1].rows:
        raise DataError(
            f"the new version would have {rows} rows, {versions[-1].version} has"
            f" {versions[-1].rows}; if rows are meant to go, allow it with --min-kept-fraction"
        )


def _summary_of(message: str) -> dict[str, object]:
    _, _, body = message.partition("\n\n")
    try:
        summary: dict[str, object] = json.loads(body)
    except ValueError as error:
        raise DataError(
            f"tag {message.splitlines()[0] if message else ''!r}: not made by `rlhf data`;"
            " tags named data-vN are its own"
        ) from error
    return summary
