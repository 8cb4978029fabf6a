"""Trees of ranked replies, as OpenAssistant publishes them: every set of ranked answers is a list.

    {"message_tree_id": "t1", "prompt": {"text": ..., "role": "prompter", "replies": [
        {"text": ..., "role": "assistant", "rank": 0, "replies": [...]}, ...]}}

Rank 0 is best. The row may also be the first message itself. Answers without a rank take part in no
comparison, but what follows them is read.

The same trees with one message a row (format ``tree_messages``), in any order of rows:

    {"message_id": "m1", "parent_id": null, "role": "prompter", "text": ...}
    {"message_id": "m2", "parent_id": "m1", "role": "assistant", "text": ..., "rank": 0}

What its publisher marks as deleted, or reviewers rejected (``deleted``, ``review_result``), is in
no tree, nor is what answers it.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from rlhf_core.config.data import word_of
from rlhf_core.dataprep.sources.choices import finite_number, is_blank, truth_of
from rlhf_core.dataprep.sources.messages import messages_of, readable
from rlhf_core.dataprep.sources.ranked import ANNOTATOR, all_pairs
from rlhf_core.dataprep.sources.rows import FilteredRow, RawRow, UnusableRow, attempt
from rlhf_core.schema import Comparison, Conversation

REPLIES = "replies"
_TURN = ("role", "text", "content", "value", "from")


def comparisons_of(row: RawRow) -> Iterator[Comparison]:
    """Yield the comparisons of every set of ranked answers, those to one message as one group."""
    yield from _below(*_root(row), (row.source, row.line))


def message_comparisons(
    rows: Iterable[RawRow | FilteredRow],
) -> Iterator[tuple[int, Comparison | FilteredRow]]:
    """Yield ``(number of rows, item)`` of trees whose messages are rows of their own.

    The first comparison of a tree stands for all of its rows. Rows of a tree without ranked
    answers, rows whose parent is in no tree and those that are deleted are filtered out one by one.
    All rows are held in memory, for a message may stand before the one that it answers.
    """
    trees = _Trees()
    for row in rows:
        item = attempt(row, partial(trees.add, row)) if isinstance(row, RawRow) else row
        if isinstance(item, FilteredRow):
            yield 1, item
    yield from trees.items()


def _below(root: Any, name: str, where: tuple[str, int]) -> Iterator[Comparison]:
    """Yield the comparisons of a tree; ``where`` is the source and the line of its beginning."""
    found = False
    waiting: list[tuple[Conversation, Any, str]] = [((), root, name)]
    while waiting:
        earlier, node, place = waiting.pop()
        prompt = (*earlier, *messages_of(node, place))
        replies = node.get(REPLIES) or []
        if not isinstance(replies, list):
            raise UnusableRow("unusable_value", f"{place}.{REPLIES}: expected a list")
        ranked = _ranked(replies, f"{place}.{REPLIES}")
        if len(ranked) > 1:
            found = True
            rankings = [(ANNOTATOR, [rank for _, rank in ranked])]
            texts = [text for text, _ in ranked]
            yield from all_pairs(prompt, texts, rankings, where)
        below = [(prompt, reply, f"{place}.{REPLIES}.{n}") for n, reply in enumerate(replies)]
        waiting += reversed(below)
    if not found:
        raise UnusableRow("too_few_responses", "no message has two ranked answers")


class _Trees:
    """Messages by id, as the rows of a file give them."""

    def __init__(self) -> None:
        self._rows: dict[str, RawRow] = {}
        self._parents: dict[str, str] = {}
        self._messages: dict[str, dict[str, Any]] = {}
        self._gone: set[str] = set()

    def add(self, row: RawRow) -> None:
        """Take a message over; one that cannot be used is gone, and with it what answers it."""
        row.require("message_id")
        number, parent = row.value["message_id"], row.value.get("parent_id")
        if is_blank(number):
            raise UnusableRow("missing_column", "message_id: expected an id, found none")
        own = word_of(number)
        if own in self._rows or own in self._gone:
            raise UnusableRow("conflicting_id", f"message_id {own!r} is an earlier message's")
        self._gone.add(own)
        if truth_of(row.value.get("deleted")) or truth_of(row.value.get("review_result")) is False:
            raise UnusableRow("deleted_message", "deleted, or rejected by reviewers")
        message = {name: readable(row, row.value.get(name)) for name in _TURN}
        messages_of(message, "message")
        self._gone.discard(own)
        self._rows[own] = row
        self._messages[own] = {**message, "rank": row.value.get("rank"), REPLIES: []}
        self._parents[own] = "" if is_blank(parent) else word_of(parent)

    def items(self) -> Iterator[tuple[int, Comparison | FilteredRow]]:
        """Yield what the trees come to; of all rows that were taken over."""
        if not any(self._parents.values()):
            for row in self._rows.values():
                detail = f"{row.called('parent_id')}: no row names a parent; found {row.found()}"
                yield 1, FilteredRow.of(row, "missing_column", detail)
            return
        roots: list[str] = []
        for own, parent in self._parents.items():
            if not parent:
                roots.append(own)
            elif parent in self._messages:
                self._messages[parent][REPLIES].append(self._messages[own])
        ids = {id(message): own for own, message in self._messages.items()}
        for root in roots:
            members = [ids.pop(id(message)) for message in _family(self._messages[root])]
            yield from self._tree(members)
        for own in ids.values():
            detail = f"its parent {self._parents[own]!r} is in no tree"
            yield 1, FilteredRow.of(self._rows[own], "unmatched", detail)

    def _tree(self, members: list[str]) -> Iterator[tuple[int, Comparison | FilteredRow]]:
        row, root = self._rows[members[0]], self._messages[members[0]]
        try:
            comparisons = list(_below(root, "message", (row.source, row.line)))
        except UnusableRow as error:
            for own in members:
                yield 1, FilteredRow.of(self._rows[own], error.reason, error.detail)
            return
        for number, item in enumerate(comparisons):
            yield len(members) if number == 0 else 0, item


def _family(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a message and all below it."""
    family = [root]
    for message in family:
        family += message[REPLIES]
    return family


def _root(row: RawRow) -> tuple[Any, str]:
    if REPLIES in row.value:
        for name in row.value:
            row.value[name]
        return row.value, "message"
    for name, value in row.value.items():
        if isinstance(value, dict) and REPLIES in value:
            return row.value[name], name
    raise UnusableRow(
        "missing_column", f"missing column {REPLIES!r}, or one that holds it; found {row.found()}"
    )


def _ranked(replies: list[Any], place: str) -> list[tuple[str, float]]:
    """Return text and rank of the assistant's replies that have one."""
    ranked = []
    for number, reply in enumerate(replies):
        rank = finite_number(reply.get("rank")) if isinstance(reply, dict) else None
        (turn,) = messages_of(reply, f"{place}.{number}") if isinstance(reply, dict) else (None,)
        if turn is None:
            raise UnusableRow("unusable_message", f"{place}.{number}: expected a message")
        if rank is not None and turn.role == "assistant":
            ranked.append((turn.content, rank))
    return ranked
