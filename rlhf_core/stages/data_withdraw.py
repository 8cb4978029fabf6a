"""Withdraw a person's data: the next version is without it, and what was made of it is named."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_core.adapters import dvc_versions, versioning
from rlhf_core.adapters.mlflow_client import check_server
from rlhf_core.adapters.registry import versions_trained_on
from rlhf_core.dataprep.files import atomic_file
from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.rows import RawRow, SetAside, as_json
from rlhf_core.dataprep.sources.containers import is_data_file, read_rows
from rlhf_core.errors import DataError
from rlhf_core.schema import Withdrawal, WithdrawalResult, annotator_name
from rlhf_core.stages.data_batches import RAW
from rlhf_core.stages.data_publish import publish

logger = logging.getLogger(__name__)

_ID_COLUMNS = ("comparison_id", "demonstration_id", "prompt_id", "id")
_VOTE_COLUMNS = ("votes", "rankings")
_LINES = (".jsonl", ".ndjson")


def withdraw(withdrawal: Withdrawal, *, directory: Path = Path()) -> WithdrawalResult:
    """Publish a version without some rows or votes, and say what was made of them before.

    The versions before it stay in git's history and their bytes in DVC's cache and remote.

    Args:
        withdrawal: what is to be taken out.
        directory: a place in the repository.

    Raises:
        DataError: nothing is named or found, a file that holds it cannot be rewritten, or no
            version can be published.
        RegistryError: MLflow, which knows the models, does not answer.
    """
    if not (withdrawal.annotators or withdrawal.rows or withdrawal.sources):
        raise DataError("nothing to withdraw: name an annotator, a row or a source")
    check_server()  # before the work, for the models that were made of it are part of the answer
    removal = Removal(withdrawal)
    published = publish(None, min_kept_fraction=0.0, directory=directory, change=removal.apply)
    root = versioning.repository_root(directory)
    versions = _versions_with(root, removal.counts, published.version.version)
    logger.info("data_withdrawn version=%s", published.version.version)
    return WithdrawalResult(
        published=published,
        changed_rows=removal.counts,
        versions=tuple(versions),
        models=_models_of(root, versions),
    )


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
            DataError: a file holds it and cannot be rewritten, or no file holds it.
        """
        changed: list[str] = []
        for file in sorted(path for path in (clone / RAW).rglob("*") if is_data_file(path)):
            lines = self._changed_lines(file, clone)
            if lines:
                changed += self._rewrite(file, lines, clone)
        if not changed:
            raise DataError(
                f"{RAW}: no row there is of what is to be withdrawn; nothing was published."
                " Ids stand in annotators.csv and in `rlhf data diff`"
            )
        return changed

    def _changed_lines(self, file: Path, clone: Path) -> dict[int, dict[str, Any] | None]:
        """Line to the row that is left, None where nothing is."""
        found: dict[int, dict[str, Any] | None] = {}
        is_lines = file.suffix.lower() in _LINES
        for row in read_rows(file):
            is_lines = is_lines and row.unit == "line"
            if isinstance(row, SetAside):
                if any(name in row.row for name in self._annotators | self._rows):
                    found[row.line] = None
                continue
            left = self._without(row)
            if left != dict(row.value):
                found[row.line] = left
        if found and not is_lines:
            name = file.relative_to(clone)
            raise DataError(
                f"{name}, row {min(found)}: holds what is to be withdrawn, and only JSON lines"
                f" ({', '.join(_LINES)}) are rewritten; take these rows out of the file, commit it,"
                " and repeat the command, or `rlhf data publish --min-kept-fraction 0`"
            )
        return found

    def _without(self, row: RawRow) -> dict[str, Any] | None:
        """Return what is left of a row."""
        source = str(row.value.get("source") or row.source)
        if source in self._sources or self._rows & set(_ids(row)):
            return None
        if annotator_name(row.value.get("annotator")) in self._annotators:
            return None
        left = dict(row.value)
        for column in _VOTE_COLUMNS:
            votes = left.get(column)
            if isinstance(votes, list):
                kept = [vote for vote in votes if not self._is_by(vote)]
                if votes and not kept:
                    return None
                left[column] = kept
        unread = {name: value for name, value in left.items() if name not in _VOTE_COLUMNS}
        return None if self._mentions(unread) else left

    def _is_by(self, vote: object) -> bool:
        return isinstance(vote, dict) and annotator_name(vote.get("annotator")) in self._annotators

    def _mentions(self, value: object) -> bool:
        """Whether votes by the person lie deeper: an export, or a row that was set aside."""
        if isinstance(value, dict):
            named = (value.get("annotator"), value.get("completed_by"))
            people = {
                annotator_name(one.get("id", one.get("email")) if isinstance(one, dict) else one)
                for one in named
            }
            return bool(people & self._annotators) or any(map(self._mentions, value.values()))
        if isinstance(value, list):
            return any(map(self._mentions, value))
        if isinstance(value, str) and value.startswith(("{", "[")):
            try:
                return self._mentions(json.loads(value))
            except (ValueError, RecursionError):
                return any(f'"{name}"' in value for name in self._annotators)
        return False

    def _rewrite(
        self, file: Path, lines: dict[int, dict[str, Any] | None], clone: Path
    ) -> list[str]:
        name = str(file.relative_to(clone))
        self.counts[name] = len(lines)
        pointer = file.with_name(f"{file.name}.dvc")
        is_empty = True
        with file.open("rb") as old, atomic_file(file) as new:
            for number, line in enumerate(old, 1):
                if number in lines:
                    row = lines[number]
                    line = b"" if row is None else _as_line(row)
                is_empty = is_empty and not line.strip()
                new.write(line)
        if not pointer.is_file():
            return [name]
        if is_empty:
            file.unlink()
            pointer.unlink()
        else:
            versioning.dvc("add", "--quiet", name, cwd=clone)
        return [f"{name}.dvc", str(file.parent.relative_to(clone) / ".gitignore")]


def _as_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _ids(row: RawRow) -> list[str]:
    """Names by which a row is known: those it brings, and the one a comparison is given."""
    value = row.value
    brought = [str(value[name]) for name in _ID_COLUMNS if name in value]
    texts = [value.get(name) for name in ("prompt", "response_a", "response_b")]
    if isinstance(texts[0], str):
        texts[0] = [{"role": "user", "content": texts[0]}]
    return [*brought, content_id("row", *map(as_json, texts))]


def _versions_with(root: Path, files: Iterable[str], new: str) -> list[str]:
    """Return the versions before this one that hold any of the files that were changed.

    A version holds what is withdrawn if it has such a file as it was; one that had it in another
    state may hold it, and is named too.
    """
    changed = set(files)
    found = []
    for tag, *_ in dvc_versions.list_tags(root):
        tree = versioning.git("ls-tree", "-r", "--name-only", tag, "--", str(RAW), cwd=root)
        there = {line.removesuffix(".dvc") for line in tree.splitlines()}
        if tag != new and there & changed:
            found.append(tag)
    return found


def _models_of(root: Path, versions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the registered models of each version that has any."""
    found = {tag: versions_trained_on(dvc_versions.prepared_md5(root, tag)) for tag in versions}
    return {tag: tuple(models) for tag, models in found.items() if models}
