"""Columns of many rows, held compactly, for the validation suites."""

from typing import Any

import pandas as pd
import pyarrow as pa

_CHUNK = 10_000


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

    def frame(self) -> pd.DataFrame:
        """Return all rows as a frame with Arrow-backed text columns."""
        self._flush()
        return pa.Table.from_batches(self._chunks, schema=self._schema).to_pandas()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(column, kind)
                for column, kind in zip(columns, self._schema.types, strict=True)
            ]
            self._chunks.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._rows.clear()
