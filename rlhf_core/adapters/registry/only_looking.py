"""Whether a command only looks: a dry run moves no alias and writes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ONLY_LOOKING = ContextVar("only_looking", default=False)


@contextmanager
def only_looking() -> Iterator[None]:
    """Move and write nothing in the block; of a move that is half done it sees the end.

    So a dry run reads what the command would, which completes the move first.
    """
    before = _ONLY_LOOKING.set(True)
    try:
        yield
    finally:
        _ONLY_LOOKING.reset(before)


def is_only_looking() -> bool:
    """Return whether this is within ``only_looking``."""
    return _ONLY_LOOKING.get()
