"""Votes in one list, and beside it lists of who gave each and of what became of it.

Argilla exports them so: ``preference.responses``, ``preference.responses.users`` and
``preference.responses.status``, which ``columns`` names ``votes``, ``vote_annotators`` and
``vote_statuses``.
"""

import json
from collections.abc import Mapping, Set
from typing import Any

from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.dataprep.sources.rows import RawRow, UnusableRow, annotator_name
from rlhf_core.storage.records import shorten

_SUBMITTED = "submitted"
_BESIDE = {"vote_annotators": None, "vote_statuses": _SUBMITTED}
"""Our names, and what of each vote is the same as no such list."""
_USERS, _STATUS = ".users", ".status"


def has_lists_beside(row: RawRow) -> bool:
    """Tell whether a row says apart from its votes who gave them, or what became of them."""
    return any(name in row.value for name in _BESIDE)


def submitted(row: RawRow, votes: Any) -> Any:
    """Return the votes that people submitted, each with who gave it.

    Args:
        row: has the lists beside.
        votes: as records have them; what is no list is returned as it is.

    Raises:
        UnusableRow: the lists do not fit each other.
    """
    given = [] if votes is None else votes
    if not isinstance(given, list):
        return votes
    names, statuses = (_list_beside(row, name, len(given)) for name in _BESIDE)
    return [
        {**vote, "annotator": name} if isinstance(vote, dict) and name is not None else vote
        for vote, name, status in zip(given, names, statuses, strict=True)
        if status == _SUBMITTED and vote is not None
    ]


def _list_beside(row: RawRow, column: str, length: int) -> list[Any]:
    """Return what a column says of each vote; of one that is not there what changes nothing."""
    value = structured(row.value.get(column))
    entries = value or ([] if column in row.value else [_BESIDE[column]] * length)
    if not isinstance(entries, list) or len(entries) != length:
        raise UnusableRow(
            "unusable_value",
            f"{row.called(column)}: expected a list of {length}, one a vote, found"
            f" {shorten(value)}",
        )
    return entries


def without_people(
    whole: Mapping[str, Any], names: Mapping[str, str], people: Set[str]
) -> dict[str, Any] | None:
    """Return what is left of a row without the entries of some people; None where nothing is.

    Args:
        whole: a row under its source's names.
        names: our name of a column to the source's, where they differ.
        people: names, as ``annotator_name`` gives them.
    """
    left = dict(whole)
    mapped = tuple(names.get(name, name) for name in ("vote_annotators", "votes", "vote_statuses"))
    exported = [
        (name, base, base + _STATUS)
        for name in whole
        if name.endswith(_USERS) and (base := name.removesuffix(_USERS)) in whole
    ]
    for columns in dict.fromkeys((mapped, *exported)):
        users = structured(whole.get(columns[0]))
        if not isinstance(users, list):
            continue
        kept = [n for n, user in enumerate(users) if annotator_name(user) not in people]
        if users and not kept:
            return None
        for column in columns:
            entries = structured(whole.get(column))
            if len(kept) < len(users) and isinstance(entries, list) and len(entries) == len(users):
                entries = [entries[n] for n in kept]
                is_text = isinstance(whole[column], str)
                left[column] = json.dumps(entries, ensure_ascii=False) if is_text else entries
    return left
