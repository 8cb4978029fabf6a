"""Rows that quote a benchmark: training on them would make its score meaningless."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.word_hashes import text_hashes, word_hashes
from rlhf_core.dataprep.keys import UNSPACED, bare, normalise
from rlhf_core.dataprep.sources.containers import read_rows
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.errors import DataError
from rlhf_core.storage.records import read_lines

NUM_WORDS = 8
"""A run of this many equal words counts as a quotation (Brown et al. 2020 use 13, GLaM 8)."""
_NUM_CHARACTERS = 2 * NUM_WORDS
"""So many in scripts that put no spaces between words, where a word has about two."""
_FACTORS = {1: 0x9E3779B97F4A7C15, 2: 0xC2B2AE3D27D4EB4F, 4: 0x165667B19E3779F9}
"""Odd numbers that mix the hash of a run of so many words with that of the run behind it."""
_FEWEST_BITS, _MOST_BITS, _SPARSE = 10, 24, 32
"""Of a hash, by which most runs are told from all of ours: a table with one place in 32 taken."""


class Benchmark:
    """The word runs of benchmark texts, ready to be looked for."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index ``texts``; those shorter than ``NUM_WORDS`` words must match as a whole."""
        self._runs: set[str] = set()
        self._short: set[str] = set()
        self._characters: set[str] = set()
        for text in texts:
            words = _words(text)
            if len(words) < NUM_WORDS:
                self._short.add(" ".join(words))
            self._runs.update(_runs(words))
            self._characters.update(_character_runs(text))
        self._short.discard("")
        hashes = word_hashes([word for run in self._runs for word in run.split()])
        self._hashes = np.unique(_run_hashes(hashes.reshape(-1, NUM_WORDS)))
        bits = min(_MOST_BITS, max(_FEWEST_BITS, (_SPARSE * len(self._hashes)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._begins = np.zeros(1 << bits, dtype=np.bool_)
        self._begins[self._hashes >> self._shift] = True

    def may_be_quoted_by(self, texts: Sequence[str]) -> list[bool]:
        """Say which texts ``quoted_by`` has to be asked about: it gives None for the others.

        The runs of all texts are looked for at once. One that lies across two texts, or has the
        hash of another, asks for a look too many.
        """
        parts = text_hashes(texts)
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        asked = sizes < NUM_WORDS
        if self._characters:
            asked |= np.array([not text.isascii() for text in texts], dtype=np.bool_)
        if sizes.sum() >= NUM_WORDS:
            found = self._places_of(_run_hashes(np.concatenate(parts)))
            asked[np.searchsorted(np.cumsum(sizes), found, side="right")] = True
        return [bool(one) for one in asked]

    def _places_of(self, runs: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Places of the runs that have the hash of one of ours."""
        likely = np.flatnonzero(self._begins[runs >> self._shift])
        return likely[_are_in(runs[likely], self._hashes)]

    def quoted_by(self, text: str) -> str | None:
        """Return the run of words that ``text`` shares with a benchmark text, if any."""
        if self._characters and not text.isascii():
            for run in _character_runs(text):
                if run in self._characters:
                    return run
        [hashes] = text_hashes([text])
        if len(hashes) < NUM_WORDS:
            whole = " ".join(_words(text))
            return whole if whole in self._short else None
        # Equal runs have equal hashes; those of other runs may be equal too.
        starts = self._places_of(_run_hashes(hashes)).tolist()
        words = _words(text) if starts else []
        for start in starts:
            run = " ".join(words[start : start + NUM_WORDS])
            if run in self._runs:
                return run
        return None


def read_benchmark(paths: Iterable[Path], columns: Collection[str] = ()) -> Benchmark:
    """Read benchmark files: ``.txt`` has one text a line, other containers have rows.

    Args:
        paths: the files.
        columns: columns of the rows that count, whatever their length. Without any, every text of
            ``NUM_WORDS`` words or more counts: a column of answers ("yes", "4") would match rows
            that know nothing of the benchmark.

    Raises:
        DataError: a file is missing, damaged or holds no text.
    """
    texts: list[str] = []
    for path in paths:
        found = list(_texts(path, columns))
        if not found:
            raise DataError(
                f"{path}: no text to look for; expected benchmark questions, one a line or row;"
                " name short ones in data.cleaning.contamination_columns"
            )
        texts += found
    return Benchmark(texts)


def _texts(path: Path, columns: Collection[str]) -> Iterator[str]:
    if path.suffix.lower() == ".txt":
        yield from (text for _, text in read_lines(path))
        return
    for row in read_rows(path):
        if isinstance(row, FilteredRow):
            raise DataError(f"{row.where}: {row.detail}")
        for name, value in row.value.items():
            if isinstance(value, str) and (name in columns if columns else _is_long(value)):
                yield value


def _is_long(text: str) -> bool:
    return len(text.split()) >= NUM_WORDS or next(_character_runs(text), None) is not None


def _words(text: str) -> list[str]:
    return list(map(bare, normalise(text).split()))


def _character_runs(text: str) -> Iterator[str]:
    """Runs of characters of unspaced scripts, whatever stands between them."""
    if text.isascii():
        return
    characters = "".join(UNSPACED.findall(normalise(text)))
    for start in range(len(characters) - _NUM_CHARACTERS + 1):
        yield characters[start : start + _NUM_CHARACTERS]


def _run_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[..., N - NUM_WORDS + 1] hash of each run of words, from the hashes of the words [..., N]."""
    for size, factor in _FACTORS.items():
        hashes = hashes[..., :-size] + hashes[..., size:] * np.uint64(factor)
    return hashes


def _are_in(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[N] whether each value is among ``ordered``."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[places] == values
    return found


def _runs(words: list[str]) -> Iterator[str]:
    return (" ".join(words[i : i + NUM_WORDS]) for i in range(len(words) - NUM_WORDS + 1))
