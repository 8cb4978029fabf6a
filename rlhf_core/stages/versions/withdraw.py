"""Withdraw a person's data: the next version is without it, and what was made of it is named."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_core.adapters.datasets import dvc_versions, versioning
from rlhf_core.adapters.registry.registry import versions_trained_on
from rlhf_core.adapters.tracking.mlflow_client import check_server
from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.dataprep.sources.containers import (
    file_names,
    is_data_file,
    is_named_as_data,
    read_rows,
    why_no_data,
)
from rlhf_core.dataprep.sources.people import names_of, stand_in, without_mentions
from rlhf_core.dataprep.sources.rewrite import rewrite_rows
from rlhf_core.dataprep.sources.rows import FilteredRow, RawRow, as_json
from rlhf_core.dataprep.sources.tables import Layout
from rlhf_core.dataprep.sources.vote_lists import without_people
from rlhf_core.errors import DataError
from rlhf_core.schema import Withdrawal, WithdrawalResult, annotator_name
from rlhf_core.stages.versions.batches import RAW
from rlhf_core.stages.versions.prepared_by import prepared_by
from rlhf_core.stages.versions.publish import publish
from rlhf_core.stages.versions.versions import LOCAL
from rlhf_core.storage.folders import exclusive

logger = logging.getLogger(__name__)

_ID_COLUMNS = ("comparison_id", "demonstration_id", "prompt_id", "id")
_PEOPLE = ("annotator", "completed_by")
_ANSWER = frozenset(("user_id", "value", "status"))
"""What an answer has that Argilla 1 exported; elsewhere a user asked, or was asked."""
_GONE = object()


def withdraw(withdrawal: Withdrawal, *, directory: Path = Path()) -> WithdrawalResult:
    """Publish a version without some rows or votes, and say what was made of them before.

    Where the newest version is without them already, nothing is published, and what was made of
    them is named again. The versions before it stay in git's history and their bytes in DVC's cache
    and remote.

    Args:
        withdrawal: what is to be taken out.
        directory: a place in the repository.

    Raises:
        DataError: nothing is named; neither the raw files nor any version holds it; or no version
            can be published.
        RegistryError: MLflow, which knows the models, does not answer.
    """
    if not (withdrawal.annotators or withdrawal.rows or withdrawal.sources):
        raise DataError("nothing to withdraw: name an annotator, a row or a source")
    check_server()  # before the work, for the models that were made of it are part of the answer
    root = versioning.repository_root(directory)
    versions = _versions_with(root, withdrawal)
    removal = Removal(withdrawal)
    newest = [tag for tag, *_ in dvc_versions.list_tags(root)][-1:]

    def change(clone: Path) -> list[str]:
        changed = removal.apply(clone)
        if not changed and not set(newest) & set(versions):
            raise _NotThereError
        return changed

    try:
        published = publish(None, min_kept_fraction=0.0, directory=directory, change=change)
    except _NotThereError:
        published = None
    if published is None and not versions:
        raise DataError(
            f"{RAW}: no row there, nor in any version, is of what is to be withdrawn; nothing was"
            " published. Ids stand in annotators.csv and in `rlhf data diff`"
        )
    logger.info("data_withdrawn version=%s", published.version.version if published else "none")
    return WithdrawalResult(
        published=published,
        changed_rows=removal.counts,
        versions=tuple(versions),
        models=_models_of(root, versions),
    )


class _NotThereError(Exception):
    """Neither the raw files nor the newest version hold what is to be withdrawn."""


class Removal:
    """Takes rows and votes out of the raw files of a clone."""

    def __init__(self, withdrawal: Withdrawal) -> None:
        self._annotators = set(map(annotator_name, withdrawal.annotators))
        self._rows = set(withdrawal.rows)
        self._sources = set(withdrawal.sources)
        self.counts: dict[str, int] = {}
        """Rows taken out, or changed, by file."""

    def apply(self, clone: Path) -> list[str]:
        """Rewrite the files that hold what is withdrawn; return what git is to keep of it.

        Raises:
            DataError: a file cannot be read.
        """
        changed: list[str] = []
        sources = _sources_of(clone)
        names = _names_of(clone)
        for file in sorted(path for path in (clone / RAW).rglob("*") if is_data_file(path)):
            source = _source_of(file, clone, sources)
            if found := self.changes(file, source, names):
                changed += self._rewrite(file, found, _layout(source), clone)
        return changed

    def changes(
        self, file: Path, source: SourceConfig | None, names: Mapping[Path, str] | None = None
    ) -> dict[int, dict[str, Any] | None]:
        """Return what is left of the rows that hold it, by their number; None: nothing.

        Args:
            file: of any kind that preparation reads.
            source: how preparation reads it; None where it is read without settings.
            names: what preparation calls the files of all sources.

        Raises:
            DataError: the file cannot be read, and would be data in a folder.
        """
        try:
            return self._changes(file, source, names)
        except DataError as error:
            if not why_no_data(file):
                raise
            if file.stat().st_size:
                logger.warning("%s: not looked into, for it cannot be read: %s", file, error)
            return {}

    def _changes(
        self, file: Path, source: SourceConfig | None, names: Mapping[Path, str] | None
    ) -> dict[int, dict[str, Any] | None]:
        found: dict[int, dict[str, Any] | None] = {}
        columns = source.columns if source and source.format != "label_studio" else {}
        people = self._annotators.intersection(source.annotators if source else ())
        named = self._lines_named(file, source, names)
        for row in read_rows(file, columns, _layout(source), names):
            if isinstance(row, FilteredRow):
                if stand_in(row.row, self._annotators | self._rows):
                    found[row.line] = None
                continue
            whole = dict(row.value if row.original is None else row.original)
            left = None if row.line in named else self._without(row, whole, people)
            if left != whole:
                found[row.line] = left
        return found

    def _lines_named(
        self, file: Path, source: SourceConfig | None, names: Mapping[Path, str] | None
    ) -> set[int]:
        """Return the lines of comparisons that are asked for by the id preparation gives them."""
        if source is None or not self._rows:
            return set()
        try:
            here = source.model_copy(update={"path": file})
            items = list(read_comparisons(here, names=names))
        except DataError:  # by itself no source; its rows have the ids they bring
            return set()
        return {
            item.line
            for item in items
            if not isinstance(item, FilteredRow) and item.comparison_id in self._rows and item.line
        }

    def _without(
        self, row: RawRow, whole: dict[str, Any], people: set[str]
    ) -> dict[str, Any] | None:
        """Return what is left of a row, under its source's own names."""
        source = str(row.value.get("source") or row.source)
        if {source, row.source} & self._sources or self._rows & set(_ids(row)):
            return None
        if annotator_name(row.value.get("annotator")) in self._annotators:
            return None
        others = without_people(
            without_mentions(whole, self._annotators), row.names, self._annotators
        )
        left = None if others is None else self._left(others)
        if not isinstance(left, dict):
            return None
        for name in people:
            if left.get(name) not in (None, ""):
                left = {**left, name: None}
        return left

    def _left(self, value: Any) -> Any:
        """Return what is left of a value without the person's entries; ``_GONE`` where nothing is.

        A list that loses all its entries is gone, and so is what it stood in.
        """
        if isinstance(value, dict):
            inner = {key: self._left(part) for key, part in value.items()}
            return _GONE if self._is_by(value) or _GONE in inner.values() else inner
        if isinstance(value, list):
            entries = [self._left(entry) for entry in value]
            kept = [entry for entry in entries if entry is not _GONE]
            is_chat = any(isinstance(entry, dict) and "role" in entry for entry in value)
            lost = len(kept) < len(value)
            return _GONE if lost and (is_chat or not kept) else kept
        if isinstance(value, str) and value.startswith(("{", "[")):
            read = structured(value)
            if read is value:  # cut, or broken
                return _GONE if stand_in(value, self._annotators) else value
            left = self._left(read)
            if left is _GONE:
                return _GONE
            return value if left == read else json.dumps(left, ensure_ascii=False)
        return value

    def _is_by(self, entry: dict[Any, Any]) -> bool:
        """Whether a vote or an annotation is the person's, an export's too."""
        keys = (*_PEOPLE, "user_id") if entry.keys() >= _ANSWER else _PEOPLE
        named = (names_of(entry.get(key)) for key in keys)
        return bool(set().union(*named) & self._annotators)

    def _rewrite(
        self, file: Path, found: dict[int, dict[str, Any] | None], layout: Layout, clone: Path
    ) -> list[str]:
        name = str(file.relative_to(clone))
        self.counts[name] = len(found)
        num_left = rewrite_rows(file, found, layout)
        pointer = file.with_name(f"{file.name}.dvc")
        if not pointer.is_file():
            return [name]
        if num_left:
            versioning.dvc("add", name, cwd=clone)
        else:
            file.unlink()
            pointer.unlink()
        return [f"{name}.dvc", str(file.parent.relative_to(clone) / ".gitignore")]


def _ids(row: RawRow) -> list[str]:
    """Names by which a row is known: those it brings, and the one a comparison is given."""
    value = row.value
    brought = [str(value[name]) for name in _ID_COLUMNS if value.get(name) is not None]
    longer = [f"{row.source}-{name}" for name in brought]
    texts = [value.get(name) for name in ("prompt", "response_a", "response_b")]
    if isinstance(texts[0], str):
        texts[0] = [{"role": "user", "content": texts[0]}]
    given = (f"{row.source}:{row.line}", content_id("row", *map(as_json, texts)))
    return [*brought, *longer, *given]


def _sources_of(clone: Path) -> list[SourceConfig]:
    """Return what the preparation of dvc.yaml reads; nothing where it says nothing."""
    found: list[SourceConfig] = []
    for data in prepared_by(clone):
        found += [data.preferences, *data.more_preferences]
        found += [
            SourceConfig(path=file.path, format="flat", columns=file.columns)
            for file in data.unpaired_files
        ]
    return found


def _source_of(file: Path, clone: Path, sources: Iterable[SourceConfig]) -> SourceConfig | None:
    """Return the source that a file is, lies in, or completes."""
    for source in sources:
        joined = [] if source.join is None else [clone / source.join.path]
        if file in (clone / source.path, *joined) or file.parent == clone / source.path:
            return source
    return None


def _names_of(clone: Path) -> dict[Path, str]:
    """Return what preparation calls the files it reads, those that are not here yet included."""
    found: dict[Path, str] = {}
    for data in prepared_by(clone):
        pairs = [source.path for source in (data.preferences, *data.more_preferences)]
        for paths in (pairs, [file.path for file in data.unpaired_files]):
            found |= file_names(file for path in paths for file in _files_of(clone / path))
    return found


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = {file.with_suffix("") if file.suffix == ".dvc" else file for file in path.iterdir()}
    return [file for file in files if is_named_as_data(file)]


def _layout(source: SourceConfig | None) -> Layout:
    if source is None:
        return Layout()
    return Layout(source.delimiter, source.sheet, source.quotes)


def _versions_with(root: Path, withdrawal: Withdrawal) -> list[str]:
    """Return the versions whose raw files hold what is withdrawn.

    Each file is looked at once, with the first version that has these bytes of it. One whose bytes
    are nowhere any more may hold it, and its versions are named too.
    """
    tags = [tag for tag, *_ in dvc_versions.list_tags(root)]
    if not tags:
        return []
    holds: dict[tuple[str, str], bool] = {}
    found = []
    target = root / LOCAL / "withdraw"
    with exclusive(target), dvc_versions.scratch_clone(root, tags[-1], target) as clone:
        for tag in tags:
            files = _raw_files(root, tag)
            unseen = [file for file in files if file not in holds]
            if unseen:
                versioning.git("checkout", "--quiet", "--force", "--detach", tag, cwd=clone)
                holds |= _look_into(unseen, clone, Removal(withdrawal))
            if any(holds[file] for file in files):
                found.append(tag)
    return found


def _raw_files(root: Path, tag: str) -> list[tuple[str, str]]:
    """Return name and digest of what git has of each raw file at a version."""
    listing = versioning.git("ls-tree", "-r", "-z", tag, "--", str(RAW), cwd=root)
    entries = (line.partition("\t") for line in listing.split("\0") if line)
    return [(name, kind.split()[2]) for kind, _, name in entries]


def _look_into(
    files: Iterable[tuple[str, str]], clone: Path, removal: Removal
) -> dict[tuple[str, str], bool]:
    sources = _sources_of(clone)
    names = _names_of(clone)
    found: dict[tuple[str, str], bool] = {}
    for name, digest in files:
        data = clone / name.removesuffix(".dvc")
        if name.endswith(".dvc"):
            try:
                versioning.dvc("pull", "--force", name, cwd=clone)
            except DataError as error:
                logger.warning("%s: may hold it, for its bytes are gone: %s", name, error)
                found[name, digest] = True
                continue
        parts = sorted(data.rglob("*")) if data.is_dir() else [data]
        found[name, digest] = any(
            removal.changes(part, _source_of(part, clone, sources), names)
            for part in parts
            if is_data_file(part)
        )
    return found


def _models_of(root: Path, versions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the registered models of each version that has any."""
    found = {tag: versions_trained_on(dvc_versions.prepared_md5(root, tag)) for tag in versions}
    return {tag: tuple(models) for tag, models in found.items() if models}
