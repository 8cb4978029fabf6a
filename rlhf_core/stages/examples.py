"""Prepared records to token sequences; what does not fit the model is set aside with its reason."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rlhf_core.dataprep.files import write_records
from rlhf_core.dataprep.keys import DialogueKey
from rlhf_core.errors import DataError
from rlhf_core.schema import Record

logger = logging.getLogger(__name__)

AnyRecord = TypeVar("AnyRecord", bound=Record)
Tokenized = TypeVar("Tokenized")


@dataclass(frozen=True, slots=True)
class TurnOf(Generic[Tokenized]):
    """A record as tokens, with its dialogue: rows of one dialogue are no independent samples."""

    dialogue: DialogueKey
    tokens: Tokenized


class SetAside(Record):
    """A record the model cannot take."""

    reason: str
    record: dict[str, object]


def tokenize_records(
    records: Iterable[AnyRecord],
    render: Callable[[AnyRecord], Tokenized],
    *,
    length: Callable[[Tokenized], int],
    max_length: int,
    set_aside: Path,
) -> list[Tokenized]:
    """Render ``records``; those too long or not renderable go to ``set_aside`` with the reason.

    Args:
        records: prepared records.
        render: record to token sequences; ``DataError`` says why it cannot.
        length: tokens of a rendered record.
        max_length: most tokens that are kept.
        set_aside: JSON lines of what was left out; written only if there is something.

    Raises:
        DataError: nothing is left.
    """
    kept: list[Tokenized] = []
    left: list[SetAside] = []
    for record in records:
        try:
            tokens = render(record)
        except DataError as error:
            left.append(SetAside(reason=str(error), record=record.model_dump(mode="json")))
            continue
        if length(tokens) > max_length:
            reason = f"{length(tokens)} tokens, at most {max_length} fit"
            left.append(SetAside(reason=reason, record=record.model_dump(mode="json")))
            continue
        kept.append(tokens)
    if left:
        write_records(set_aside, left)
        logger.info("rows_set_aside=%d kept=%d file=%s", len(left), len(kept), set_aside)
    if not kept:
        raise DataError(
            f"none of {len(left)} records fits the model; reasons in {set_aside}. "
            "Raise model.max_length or give shorter texts"
        )
    return kept
