"""Rows that quote a benchmark: training on them would make its score meaningless."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_core.dataprep.files import read_lines
from rlhf_core.dataprep.keys import normalise
from rlhf_core.dataprep.sources.containers import read_rows
from rlhf_core.errors import DataError

NUM_WORDS = 8
"""A run of this many equal words counts as a quotation (Brown et al. 2020 use 13, GLaM 8)."""


class Benchmark:
    """The word runs of benchmark texts, ready to be looked for."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index ``texts``; those shorter than ``NUM_WORDS`` words must match as a whole."""
        self._runs: set[str] = set()
        self._short: set[str] = set()
        for text in texts:
            words = normalise(text).split()
            if len(words) < NUM_WORDS:
                self._short.add(" ".join(words))
            self._runs.update(_runs(words))
        self._short.discard("")

    def quoted_by(self, text: str) -> str | None:
        """Return the run of words that ``text`` shares with a benchmark text, if any."""
        words = normalise(text).split()
        if len(words) < NUM_WORDS:
            whole = " ".join(words)
            return whole if whole in self._short else None
        return next((run for run in _runs(words) if run in self._runs), None)


def read_benchmark(paths: Iterable[Path]) -> Benchmark:
    """Read benchmark files: ``.txt`` has one text a line; of other rows every text column counts.

    Raises:
        DataError: a file is missing, damaged or holds no text.
    """
    texts: list[str] = []
    for path in paths:
        found = list(_texts(path))
        if not found:
            raise DataError(f"{path}: no text; expected benchmark questions, one a line or row")
        texts += found
    return Benchmark(texts)


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".txt":
        yield from (text for _, text in read_lines(path))
        return
    for row in read_rows(path):
        yield from (value for value in row.value.values() if isinstance(value, str))


def _runs(words: list[str]) -> Iterator[str]:
    return (" ".join(words[i : i + NUM_WORDS]) for i in range(len(words) - NUM_WORDS + 1))
