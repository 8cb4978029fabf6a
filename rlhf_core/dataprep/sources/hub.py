"""Datasets by name, through the Hugging Face ``datasets`` library."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_core.config.data import SourceConfig
from rlhf_core.dataprep.sources.rows import Columns, RawRow
from rlhf_core.errors import DataError

_PREFIX = "hf:/datasets/"
"""``hf://datasets/`` as a ``Path`` writes it."""


def hub_name(path: Path) -> str:
    """Return the dataset's name in ``hf://datasets/<name>``.

    Raises:
        DataError: the address is another one.
    """
    text = path.as_posix()
    name = text.removeprefix(_PREFIX)
    if name == text or not name:
        raise DataError(
            f"{text}: expected hf://datasets/<name>, e.g. hf://datasets/Anthropic/hh-rlhf"
        )
    return name


def read_hub_rows(source: SourceConfig) -> Iterator[RawRow]:
    """Yield the rows of one split."""
    name = hub_name(source.path).rsplit("/", 1)[-1]
    for number, row in enumerate(_dataset(source), 1):
        yield RawRow(source.path, name, number, Columns(row), "row")


def hub_fingerprint(source: SourceConfig) -> str:
    """Return the digest ``datasets`` keeps of the very files and code behind a split."""
    return str(_dataset(source)._fingerprint)


def _dataset(source: SourceConfig) -> Any:
    return _load(hub_name(source.path), source.subset, source.split, source.revision)


@cache
def _load(name: str, subset: str | None, split: str, revision: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # What follows shows a call of Python.
        said = " ".join(str(error).partition("Example of usage")[0].split())
        hint = "; name one as subset" if subset is None and "available config" in said else ""
        part = f"split {split!r}" if subset is None else f"subset {subset!r}, split {split!r}"
        raise DataError(
            f"hf://datasets/{name}: {part} cannot be loaded: {said or type(error).__name__}{hint}"
        ) from error
