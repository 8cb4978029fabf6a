"""How prepared rows fall into dialogues, each of which lies whole on one side of the split."""

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_core.dataprep.assemble import PAIR_FILES
from rlhf_core.dataprep.keys import first_turn
from rlhf_core.schema import Message
from rlhf_core.storage.records import parse_object, read_lines

_EXCERPT = 60
"""Characters of an opening that a message shows."""


@dataclass(frozen=True, slots=True)
class DialogueFacts:
    """The dialogues of one kind of rows: pairs, demonstrations or prompts."""

    rows: int
    dialogues: int
    largest: int
    """Rows of the largest dialogue."""
    opening: str
    """Begin of its first user turn."""

    def as_json(self) -> dict[str, Any]:
        """Return the report's entry."""
        return asdict(self)


def dialogue_facts(frame: pd.DataFrame, directory: Path) -> dict[str, DialogueFacts]:
    """Return the facts of each kind of rows that there are.

    Args:
        frame: all prepared rows, with the columns of ``outputs.PROMPT_COLUMNS``, file by file in
            the order of their lines.
        directory: where the prepared files lie.
    """
    found = {}
    for kind, rows in frame.groupby(frame["file"].map(_kind_of), observed=True):
        sizes = rows.groupby("dialogue_key", sort=True).size()
        example = rows[rows["dialogue_key"] == sizes.idxmax()].iloc[0]
        found[str(kind)] = DialogueFacts(
            rows=len(rows),
            dialogues=len(sizes),
            largest=int(sizes.max()),
            opening=_opening_of(example, frame, directory),
        )
    return found


def _kind_of(file: str) -> str:
    if file in PAIR_FILES:
        return "pairs"
    return file.removesuffix("_train").removesuffix("_heldout")


def _opening_of(row: "pd.Series[Any]", frame: pd.DataFrame, directory: Path) -> str:
    """Return how the prompt of a prepared row opens, from its file."""
    before = frame["file"].iloc[: row.name] == row["file"]
    path = directory / f"{row['file']}.jsonl"
    number, line = next(islice(read_lines(path), int(before.sum()), None))
    record = parse_object(line, where=f"{path}, line {number}")
    prompt = tuple(Message.model_validate(turn) for turn in record["prompt"])
    text = " ".join(first_turn(prompt)[-1].content.split())
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."
