"""Datasets by name, through the Hugging Face ``datasets`` library."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_core.dataprep.rows import RawRow
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


def read_hub_rows(path: Path, split: str, revision: str | None) -> Iterator[RawRow]:
    """Yield the rows of one split."""
    name = hub_name(path)
    source = name.rsplit("/", 1)[-1]
    for number, row in enumerate(_load(name, split, revision), 1):
        yield RawRow(path, source, number, dict(row))


def hub_fingerprint(path: Path, split: str, revision: str | None) -> str:
    """Return the digest ``datasets`` keeps of the very files and code behind a split."""
    return str(_load(hub_name(path), split, revision)._fingerprint)


@cache
def _load(name: str, split: str, revision: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"hf://datasets/{name}: split {split!r} cannot be loaded: {lines[0]}"
        ) from error
