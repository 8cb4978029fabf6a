"""Python's search for cyclic garbage, seldom while many rows pass."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MORE = 200_000
"""Objects more than after the last search, at which one begins: those of some thousand rows."""


@contextmanager
def gc_threshold_raised() -> Iterator[None]:
    """Search for cyclic garbage when many objects are left over, and not whenever rows passed.

    Rows form no cycles and go when nobody needs them any more. But as there are many, they make
    Python search through all objects of all libraries after every few thousand rows.
    """
    before, *others = gc.get_threshold()
    # Of two that pass rows at once the first one sets it, and takes it back.
    is_ours = 0 < before < _MORE
    if is_ours:
        gc.set_threshold(_MORE, *others)
    try:
        yield
    finally:
        if is_ours:
            gc.set_threshold(before, *others)
