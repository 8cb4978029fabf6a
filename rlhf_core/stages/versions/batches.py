"""Annotation batches under DVC: numbered files that only ever grow in number."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from rlhf_core.adapters.datasets import dvc_versions, versioning
from rlhf_core.config import DataConfig, SourceConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.containers import file_names, is_hub, source_files
from rlhf_core.dataprep.sources.rows import FileRows, FilteredRow
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Record
from rlhf_core.stages.preparation.checks import require_readable_files
from rlhf_core.stages.versions.prepared_by import prepared_by
from rlhf_core.storage.records import (
    atomic_file,
    iterate_fields,
    md5_of,
    read_raw_lines,
    write_records,
)

logger = logging.getLogger(__name__)

RAW = Path("data/raw")
BATCHES = RAW / "preferences"
"""Where annotation batches lie; ``data.batches`` of the configuration must name it."""
SET_ASIDE = RAW / "set-aside"
"""Under the batch's name, the rows of a batch that its reader could not use, as they came."""


class AddedBatch(Record):
    """What ``add_batch`` put into the repository."""

    name: str | None = None
    """File name of the batch; None where there was none."""
    set_aside: dict[str, int] = Field(default_factory=dict)
    """Rows its reader could not use, by reason."""
    files: tuple[str, ...] = ()
    """What git is to keep of it."""


_NAMES_FILE = ("comparison_id", "source", "group")
_BATCH = re.compile(r"batch-(\d{4,})\.jsonl\.dvc")


def pull_raw(clone: Path) -> None:
    """Bring every raw file under DVC: one that is missing would be left out silently."""
    known = sorted(str(path.relative_to(clone)) for path in (clone / RAW).rglob("*.dvc"))
    if known:
        versioning.dvc("pull", *known, cwd=clone)


def add_batch(source: SourceConfig, clone: Path, taken: Iterable[str]) -> AddedBatch:
    """Write the batch in canonical form under the next number, and put it under DVC.

    Args:
        source: the new annotations. Rows keep the name of their file and their line in it.
        clone: repository to add to, its raw files present.
        taken: names of batch files whose numbers are not free, the repository's own aside.

    Raises:
        DataError: it cannot be read, more of it than preparation allows cannot be used, it holds
            no comparison, or is there already.
    """
    folder = clone / BATCHES
    present = (path.name for path in folder.glob("*.dvc"))
    numbers = [int(found[1]) for name in (*taken, *present) if (found := _BATCH.fullmatch(name))]
    name = f"batch-{max(numbers, default=0) + 1:04d}.jsonl"
    reasons: Counter[str] = Counter()
    files: dict[str, FileRows] = {}
    names = _free_names(source, folder, name)
    with atomic_file(clone / SET_ASIDE / name) as aside:
        num_rows = write_records(folder / name, _usable(source, names, files, aside, reasons))
    require_readable_files(files, _most_unusable(clone), "nothing was added")
    if not num_rows:
        raise DataError(
            f"{source.path}: no comparison to add; filtered out: {dict(reasons) or 'none'}"
        )
    for other in batch_names(clone):
        if other != name and _say_the_same(folder / name, folder / other):
            raise DataError(f"{source.path}: these rows are already there as {other}")
    paths = [BATCHES / name]
    if reasons:
        paths.append(SET_ASIDE / name)
    else:
        (clone / SET_ASIDE / name).unlink()
    versioning.dvc("add", *map(str, paths), cwd=clone)
    kept = [f for path in paths for f in (f"{path}.dvc", str(path.parent / ".gitignore"))]
    return AddedBatch(name=name, set_aside=reasons, files=tuple(kept))


def batch_names(clone: Path) -> list[str]:
    """Return the names of the batch files in a repository, in order."""
    return sorted(path.name for path in (clone / BATCHES).glob("batch-*.jsonl"))


def version_with(batch: Path, root: Path, versions: Iterable[tuple[str, str]]) -> str | None:
    """Return the version that came with exactly these rows, if there is one.

    Args:
        batch: rows in canonical form.
        root: of the repository.
        versions: name and file name of the batch of each version.
    """
    digest = md5_of(batch)
    for version, name in versions:
        if digest in versioning.git("show", f"{version}:{BATCHES / name}.dvc", cwd=root):
            return version
    return None


def check_out_batch(root: Path, name: str) -> None:
    """Bring the files of a batch into the working tree, where its commit is checked out."""
    check_out(root, [str(folder / f"{name}.dvc") for folder in (BATCHES, SET_ASIDE)])


def check_out(root: Path, files: Iterable[str], base: str = "HEAD") -> None:
    """Make the working tree's data what DVC's files in it say.

    Args:
        root: of the repository.
        files: DVC's files; the data of one that is gone goes too, unless somebody changed it.
        base: a commit that still has those that are gone.
    """
    names = [name for name in files if name.endswith(".dvc")]
    there = [name for name in names if (root / name).is_file()]
    if there:
        versioning.dvc("checkout", *there, cwd=root)
    for name in names:
        data = (root / name).with_suffix("")
        if name in there or not data.is_file():
            continue
        if md5_of(data) in versioning.git("show", f"{base}:{name}", cwd=root):
            data.unlink()
        else:
            logger.warning("%s: stays, for it was changed here; the version is without it", data)


def require_batches(root: Path, latest: str, clone: Path) -> None:
    """Refuse a version that lacks a batch of the latest one.

    Raises:
        DataError: names the batch.
    """
    for name in dvc_versions.list_files(root, latest, BATCHES):
        if _BATCH.fullmatch(name) and not (clone / BATCHES / name).is_file():
            raise DataError(
                f"{latest} has {name.removesuffix('.dvc')}, the checked-out branch does not; if it"
                " is meant to go, allow it with --min-kept-fraction"
            )


def _most_unusable(clone: Path) -> float:
    """Return the share of unusable rows that preparation allows, by default where none is named."""
    default = DataConfig.model_fields["max_unusable_fraction"].default
    return min((data.max_unusable_fraction for data in prepared_by(clone)), default=default)


def _free_names(source: SourceConfig, folder: Path, batch: str) -> dict[Path, str]:
    """Return what rows say of their files; where earlier batches say it, the batch's number too."""
    if is_hub(source.path):
        return {}
    names = file_names(source_files(source.path))
    sayings = {json.dumps(name, ensure_ascii=False).encode(): name for name in names.values()}
    taken: set[str] = set()
    for other in sorted(folder.glob("batch-*.jsonl")):
        for line in read_raw_lines(other):
            taken |= {name for said, name in sayings.items() if b'"source":' + said in line}
    number = batch.removesuffix(".jsonl")
    return {file: f"{name}-{number}" if name in taken else name for file, name in names.items()}


def _say_the_same(one: Path, other: Path) -> bool:
    """Whether two batches have the same votes on the same texts, line by line.

    What a file is called stands in ids and sources, and tells nothing apart.
    """
    rows = zip_longest(_contents(one), _contents(other))
    return all(left == right for left, right in rows)


def _contents(batch: Path) -> Iterator[dict[str, Any]]:
    for _, row in iterate_fields(batch):
        yield {name: value for name, value in row.items() if name not in _NAMES_FILE}


def _usable(
    source: SourceConfig,
    names: Mapping[Path, str],
    files: dict[str, FileRows],
    aside: IO[bytes],
    reasons: Counter[str],
) -> Iterator[Comparison]:
    """Yield the comparisons of a source; write the other rows to ``aside`` and count them."""
    for item in read_comparisons(source, files=files, names=names):
        if isinstance(item, FilteredRow):
            reasons[item.reason] += 1
            aside.write(json.dumps(item.as_cells(), ensure_ascii=False).encode() + b"\n")
        else:
            yield item
