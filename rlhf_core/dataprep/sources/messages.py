"""Prompts and responses in the shapes the field uses: plain text or lists of messages."""

from typing import Any

from rlhf_core.dataprep.rows import RawRow
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation, Message

_ROLES: dict[str, Any] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_FIELDS = (("role", "content"), ("from", "value"))


def parse_conversation(row: RawRow, column: str) -> Conversation:
    """Return a column that holds text (one user turn) or a list of messages."""
    row.require(column)
    value = row.value[column]
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    return parse_messages(row, column)


def parse_messages(row: RawRow, column: str) -> Conversation:
    """Return a column that holds a list of messages."""
    row.require(column)
    value = row.value[column]
    if not isinstance(value, list):
        raise DataError(
            f"{row.where}: {column}: expected a list of messages, found {type(value).__name__}"
        )
    return tuple(_message(row, f"{column}.{number}", turn) for number, turn in enumerate(value))


def _message(row: RawRow, place: str, turn: object) -> Message:
    if isinstance(turn, dict):
        for role_field, content_field in _FIELDS:
            role, content = turn.get(role_field), turn.get(content_field)
            if isinstance(role, str) and isinstance(content, str) and role.lower() in _ROLES:
                return Message(role=_ROLES[role.lower()], content=content)
    raise DataError(
        f"{row.where}: {place}: expected a message with role (one of {', '.join(_ROLES)})"
        f" and content, found {repr(turn)[:80]}"
    )
