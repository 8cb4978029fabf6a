"""Where people stand in raw rows besides the votes: in exports of Label Studio, in broken lines."""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

from rlhf_core.schema import annotator_name

_KNOWN_BY = ("id", "user_id", "email", "username")
_MENTIONS = (
    "annotators",
    "comment_authors",
    "created_by",
    "last_created_by",
    "reviewed_by",
    "reviewers",
    "updated_by",
)
"""Columns of a task and of its annotations that say who else was there."""

_ENDS = r"""["'\[\]{}:,;|\t\\]"""
"""What ends a cell, in JSON and in tables."""


def names_of(person: Any) -> set[str]:
    """Return the names of a person, whom exports give by the id or by an object with several."""
    if isinstance(person, dict):
        return {annotator_name(person[key]) for key in _KNOWN_BY if person.get(key) is not None}
    return {annotator_name(person)}


def stand_in(text: str, names: Iterable[str]) -> bool:
    """Tell whether a text that cannot be read as a row has one of the names as a whole cell.

    A cell ends where JSON or a table ends one; a 3 between two words is no person.
    """
    return any(
        re.search(rf"(?:^|{_ENDS})\s*{re.escape(name)}\s*(?:$|{_ENDS})", text) for name in names
    )


def without_mentions(row: Mapping[str, Any], people: Set[str]) -> dict[str, Any]:
    """Return a task of Label Studio without people's drafts and without word of them.

    What others did stays: of their annotation that one of ``people`` changed, who changed it goes.
    Rows of other shapes come back as they are.
    """
    is_task = isinstance(row.get("annotations"), list) and isinstance(row.get("data"), dict)
    is_annotation = isinstance(row.get("result"), list) and isinstance(row.get("task"), dict)
    if not (is_task or is_annotation):
        return dict(row)
    known = people | _other_names(row, people)
    return {name: _without(name, value, known) for name, value in row.items()}


def _other_names(row: Mapping[str, Any], people: Set[str]) -> set[str]:
    """Return what else the people are called in a row that says several names of one."""
    task = row.get("task") or row
    annotations = [row, *(task.get("annotations") or ())]
    persons = [names_of(one.get("completed_by")) for one in annotations if isinstance(one, dict)]
    persons += map(_drafted_by, task.get("drafts") or ())
    return set().union(*(names for names in persons if names & people))


def _without(name: str, value: Any, people: Set[str]) -> Any:
    if name in ("data", "result"):  # what was shown and what was said
        return value
    if name == "drafts" and isinstance(value, list):
        value = [draft for draft in value if not _drafted_by(draft) & people]
    if name in _MENTIONS:
        if isinstance(value, list):
            return [one for one in value if not names_of(one) & people]
        return None if names_of(value) & people else value
    if isinstance(value, dict):
        return {key: _without(key, part, people) for key, part in value.items()}
    if isinstance(value, list):
        return [_without("", part, people) for part in value]
    return value


def _drafted_by(draft: Any) -> set[str]:
    """Return the names behind a draft: ``"ann@example.org, 3"`` gives address and id."""
    user = draft.get("user") if isinstance(draft, dict) else None
    names = names_of(user)
    return names.union(*(map(annotator_name, name.split(",")) for name in names))
