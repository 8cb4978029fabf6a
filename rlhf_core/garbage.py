"""Python's search for cyclic garbage: seldom while libraries load or many rows pass.

It begins when some hundred objects are left over, and now and then goes through all there are.
Where hundreds of thousands come to stay, that finds nothing and takes a quarter of the time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MORE = 200_000
"""Objects more than after the last search, at which one begins: those of some thousand rows."""

_usual: list[int] = []
"""The threshold before libraries were loaded, while they are."""
_ended: list[bool] = []
"""Not empty once they are: a second time would keep what a stage left over. (Python tells how much
is kept from its search, but counts it for that, a twentieth of a second.)"""


def loading_begins() -> None:
    """Search seldom until ``loading_ends``, or to the end of a process that never calls it."""
    usual, *others = gc.get_threshold()
    if not _usual and not _ended and 0 < usual < _MORE:
        _usual.append(usual)
        gc.set_threshold(_MORE, *others)


def loading_ends() -> None:
    """Search as usual from here on, but no more through what was loaded: it stays.

    What trains or serves may hold tensors in cycles, which must go soon.
    """
    if _usual:
        gc.freeze()
        gc.set_threshold(_usual.pop(), *gc.get_threshold()[1:])
        _ended.append(True)


@contextmanager
def gc_threshold_raised() -> Iterator[None]:
    """Search for cyclic garbage when many objects are left over, and not whenever rows passed.

    Rows form no cycles and go when nobody needs them any more. But as there are many, they make
    Python search through all objects of all libraries after every few thousand rows; and so does a
    library that is loaded between them.
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
