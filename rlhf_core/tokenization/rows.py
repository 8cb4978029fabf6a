"""Rows of a data set that are made when they are asked for, and the one file they are made from."""

import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rlhf_core.storage.full_disk import writing
from rlhf_core.tokenization.examples import (
    TokenIds,
    TokenizedExample,
    TokenizedPair,
    TokenizedPrompt,
    TokenizedUnpaired,
)

MAPPED_BYTES = 64 << 20
"""Up to here a data set stays in memory; a larger one is a mapped file."""
_WORD = np.dtype(np.int32).itemsize

Row = TypeVar("Row")
TokenRow = TypeVar(
    "TokenRow", bound=TokenizedPrompt | TokenizedExample | TokenizedUnpaired | TokenizedPair
)


class Rows(Sequence[Row]):
    """Makes a row each time it is asked for, and none for a slice: few are alive at once."""

    def __init__(self, make: Callable[[int], Row], places: range) -> None:
        self._make, self._places = make, places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Row]:
        return map(self._make, self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows[Row]": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows[Row]":
        places = self._places[index]
        return Rows(self._make, places) if isinstance(places, range) else self._make(places)


def keep_rows(kind: type[TokenRow], rows: Iterable[TokenRow], folder: Path) -> Rows[TokenRow]:
    """Write tokenised records end to end as they come, and return them to be read from there.

    Up to ``MAPPED_BYTES`` they lie in memory. More lie in a file without a name in ``folder``,
    mapped into memory: its room is free again with the last row that is held, or with the process,
    however that ends.

    Raises:
        StorageError: the disk takes no more of it.
    """
    layout, size, ends = _Layout(kind), 0, array("q", [0])
    folder.mkdir(parents=True, exist_ok=True)
    with (
        writing(folder / "tokens"),
        SpooledTemporaryFile(max_size=MAPPED_BYTES, dir=str(folder)) as file,
    ):
        for row in rows:
            size += file.write(layout.written(row))
            ends.append(size // _WORD)
        file.seek(0)
        words = (
            np.frombuffer(file.read(), dtype=np.int32)
            if size <= MAPPED_BYTES
            else np.asarray(np.memmap(file, dtype=np.int32, mode="r"))
        )
    return Rows(
        lambda place: layout.read(words[ends[place] : ends[place + 1]]), range(len(ends) - 1)
    )


class _Layout(Generic[TokenRow]):
    """A row as int32 words: how long its token sequences are, these, and what else it has."""

    def __init__(self, kind: type[TokenRow]) -> None:
        self._kind = kind
        self._ids = [field.name for field in fields(kind) if field.type == TokenIds]
        self._others = [field.name for field in fields(kind) if field.name not in self._ids]

    def written(self, row: TokenRow) -> bytes:
        sequences = [getattr(row, name).astype(np.int32, copy=False) for name in self._ids]
        others = pickle.dumps([getattr(row, name) for name in self._others])
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int32)
        return b"".join(
            [
                *(part.tobytes() for part in (lengths, *sequences)),
                others,
                bytes(-len(others) % _WORD),
            ]
        )

    def read(self, words: NDArray[np.int32]) -> TokenRow:
        start = len(self._ids)
        found: dict[str, Any] = {}
        for name, length in zip(self._ids, words[:start].tolist(), strict=True):
            found[name] = words[start : start + length]
            start += length
        found |= zip(self._others, pickle.loads(words[start:].data), strict=True)
        return self._kind(**found)
