"""Columns of many rows, held compactly, for the validation suites."""

import hashlib
from typing import Any

import pandas as pd
import pyarrow as pa

FEW = pa.dictionary(pa.int32(), pa.string())
"""Type of a column of few different texts, each of which is held once."""
_CHUNK = 10_000
_EXCERPT = 40
"""Characters of a text that a validation suite sees."""


def excerpt(text: str) -> str:
    """Return what stands for a text in a suite: blank where it is blank, equal where it is equal.

    A long text is its begin and a digest of the whole, white space at the ends aside.
    """
    if len(text) <= _EXCERPT:
        return text
    text = text.strip()
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 20]}... [{digest}]"


class FrameBuilder:
    """Gathers rows into Arrow chunks: about the size of the text itself."""

    def __init__(self, schema: pa.Schema) -> None:
        """Gather rows with the columns of ``schema``."""
        self._schema = schema
        self._chunks: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *values: Any) -> None:
        """Add one row, values in the schema's order."""
        self._rows.append(values)
        if len(self._rows) >= _CHUNK:
            self._flush()

    def take_frame(self) -> pd.DataFrame:
        """Return all rows as a frame with Arrow-backed text columns, and forget them."""
        self._flush()
        table = pa.Table.from_batches(self._chunks, schema=self._schema).unify_dictionaries()
        self._chunks = []
        # Column by column, so that none is there twice.
        return table.to_pandas(split_blocks=True, self_destruct=True)

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(column, kind)
                for column, kind in zip(columns, self._schema.types, strict=True)
            ]
            self._chunks.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._rows.clear()
