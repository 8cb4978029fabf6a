"""Rows filtered out, kept with their reason: one Parquet file, and the counts for the report."""

from collections import Counter
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_core.dataprep.sources.rows import FileRows, FilteredRow

SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("source", pa.string()),
        ("line", pa.int64()),
        ("row_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("row", pa.string()),
    ]
)
_BATCH = 5_000


class Quarantine:
    """Collects filtered rows in a Parquet file and counts every input's rows."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for writing."""
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._pending: list[dict[str, object]] = []
        self.reasons: dict[str, Counter[str]] = {}
        self.kept: Counter[str] = Counter()
        self.source_rows: dict[str, Counter[str]] = {}
        """Rows as the files of an input have them, where one is not one comparison."""
        self.files: dict[str, dict[str, FileRows]] = {}
        """What became of the rows of each file of an input while they were read."""

    def add(self, dataset: str, row: FilteredRow) -> None:
        """Keep a row of the input ``dataset`` that was filtered out."""
        self.reasons.setdefault(dataset, Counter())[row.reason] += 1
        self._pending.append({"input": dataset, **row.as_cells()})
        if len(self._pending) >= _BATCH:
            self._flush()

    def keep(self, dataset: str) -> None:
        """Count a row of the input ``dataset`` that stays."""
        self.kept[dataset] += 1

    def num_filtered(self, dataset: str) -> int:
        """Return how many rows of ``dataset`` were filtered out so far."""
        return self.reasons.get(dataset, Counter()).total()

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA))
            self._pending.clear()
