"""Dataset versions: list, fetch, restore from a model's tags, and compare."""

import json
import shutil
from pathlib import Path

from rlhf_core.adapters.datasets import dvc_versions, versioning
from rlhf_core.adapters.registry.versions import find_version as find_model_version
from rlhf_core.errors import DataError
from rlhf_core.schema import DatasetSplits, DataVersion
from rlhf_core.stages.preparation.dataset import DATASET, read_splits
from rlhf_core.stages.versions.diff import DatasetDiff, compare_datasets
from rlhf_core.storage.folders import exclusive
from rlhf_core.storage.own_folders import require_replaceable

LOCAL = Path(".rlhf/data")
"""Below the repository's root: datasets of versions, each in a folder named by its digest."""


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


def fetch_version(version: str, directory: Path = Path()) -> DatasetSplits:
    """Return the dataset of a version, from its own folder; the working tree stays as it is.

    Raises:
        DataError: no such version, or its bytes are neither in the cache nor on the remote.
    """
    root = versioning.repository_root(directory)
    commit = dvc_versions.require_tag(root, version)
    return _materialise(root, commit, dvc_versions.prepared_md5(root, commit))


def find_fetched(version: str, directory: Path = Path()) -> DatasetSplits | None:
    """Return the dataset of a version if it was fetched before; look only.

    Raises:
        DataError: there is no such version.
    """
    root = versioning.repository_root(directory)
    commit = dvc_versions.require_tag(root, version)
    folder = _folder(root, dvc_versions.prepared_md5(root, commit))
    return read_splits(folder, revision=commit) if folder.is_dir() else None


def restore(dvc_md5: str, directory: Path = Path()) -> DatasetSplits:
    """Return the dataset with this DVC md5, as a model's tags name it, byte for byte.

    Raises:
        DataError: it was never published, or its bytes are gone.
    """
    root = versioning.repository_root(directory)
    return _materialise(root, dvc_versions.commit_of(root, dvc_md5), dvc_md5)


def restore_for_model(reference: str, directory: Path = Path()) -> DatasetSplits:
    """Return the dataset a registered model was trained on, from that version's tags alone.

    Args:
        reference: ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
        directory: a place in the repository.

    Raises:
        RegistryError: there is no such model.
        DataError: its dataset was never published, or its bytes are gone or not the same.
    """
    tags = find_model_version(reference).tags
    dvc_md5, sha256 = tags.get("rlhf.dataset_dvc_md5"), tags.get("rlhf.dataset_sha256")
    if not dvc_md5:
        raise DataError(f"{reference}: its tags name no dataset")
    splits = restore(dvc_md5, directory)
    if splits.sha256 != sha256:
        raise DataError(f"{reference}: dataset {splits.sha256[:12]}, its tags say {sha256}")
    return splits


def compare(
    first: str, second: str, directory: Path = Path(), *, limit: int | None = None
) -> DatasetDiff:
    """Return which pairs came, went and changed their winner between two versions.

    Args:
        first: earlier version.
        second: later version.
        directory: a place in the repository.
        limit: most pairs named of each kind of change; None names all.
    """
    earlier, later = fetch_version(first, directory), fetch_version(second, directory)
    return compare_datasets(earlier, later, limit=limit)


def _folder(root: Path, dvc_md5: str) -> Path:
    return root / LOCAL / dvc_md5.removesuffix(".dir")


def _materialise(root: Path, commit: str, dvc_md5: str) -> DatasetSplits:
    folder = _folder(root, dvc_md5)
    require_replaceable(folder, DATASET)
    with exclusive(folder):
        if not folder.is_dir() or versioning.directory_md5(folder) != dvc_md5:
            shutil.rmtree(folder, ignore_errors=True)
            incoming = dvc_versions.fetch_prepared(root, commit, folder)
            found = versioning.directory_md5(incoming)
            if found != dvc_md5:
                raise DataError(f"commit {commit[:12]}: dataset is {found}, expected {dvc_md5}")
            incoming.rename(folder)
    return read_splits(folder, revision=commit)


def keep_dataset(root: Path, prepared: DatasetSplits) -> Path:
    """Keep the dataset just published where ``fetch_version`` looks for it."""
    folder = _folder(root, prepared.dvc_md5)
    with exclusive(folder):
        if not folder.is_dir():
            incoming = folder.with_name(f".{folder.name}.incoming.tmp")
            shutil.copytree(prepared.directory, incoming)
            incoming.rename(folder)
    return folder


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
