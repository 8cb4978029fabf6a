"""Rows of signatures by reference: many rows may have the same one, and none is copied."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class SignatureRows:
    """Reads like the array of each row's signature, and holds where it stands in a table."""

    def __init__(self, table: NDArray[np.uint32], places: ArrayLike) -> None:
        """Let row i be ``table[places[i]]``.

        Args:
            table: [M, NUM_PERMUTATIONS] signatures.
            places: [N] rows of it.
        """
        self._table = table
        self._places = np.asarray(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> NDArray[np.uint32]:
        """Return a copy of some rows, or with a slice of the columns as well of that part."""
        rows, *columns = key if isinstance(key, tuple) else (key,)
        found: NDArray[np.uint32] = self._table[(self._places[rows], *columns)]
        return found

    def only(self, rows: ArrayLike) -> "SignatureRows":
        """Return some of the rows."""
        return SignatureRows(self._table, self._places[np.asarray(rows, dtype=np.int64)])
