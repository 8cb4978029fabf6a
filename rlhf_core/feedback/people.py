"""Pairs as tasks for people in Label Studio, and their annotations as ballots."""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_core.dataprep.sources.label_studio import Wording, comparison_of
from rlhf_core.dataprep.sources.rows import Columns, RawRow, UnusableRow
from rlhf_core.errors import DataError
from rlhf_core.feedback.ballots import Ballot
from rlhf_core.schema import Choice, Comparison, Vote

FORM = """\
<View>
  <Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" textKey="content"/>
  <View style="display: flex; gap: 2em">
    <View style="flex: 1">
      <Header value="Left"/><Text name="response_a" value="$response_a"/>
    </View>
    <View style="flex: 1">
      <Header value="Right"/><Text name="response_b" value="$response_b"/>
    </View>
  </View>
  <Header value="Which response is better?"/>
  <Choices name="choice" toName="prompt" choice="single-radio" required="true" showInline="true">
    <Choice value="left" hotkey="1"/><Choice value="tie" hotkey="2"/>
    <Choice value="right" hotkey="3"/>
  </Choices>
</View>
"""
"""Labelling configuration; the reader of exports knows its words."""

ID = "comparison_id"
_WORDING = Wording(columns={"choice": "choice"}, choices={}, strengths={})
_SWAPPED: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie"}


def task_of(pair: Comparison, seed: int) -> dict[str, Any]:
    """Return what a person is shown: the responses on sides drawn by seed and pair."""
    sides = [pair.response_a, pair.response_b]
    random.Random(f"{seed}:sides:{pair.comparison_id}").shuffle(sides)
    return {
        ID: pair.comparison_id,
        "prompt": [turn.model_dump() for turn in pair.prompt],
        "response_a": sides[0],
        "response_b": sides[1],
    }


def ballots_of(
    tasks: Iterable[Mapping[str, Any]], pairs: Mapping[str, Comparison], place: str
) -> list[Ballot]:
    """Return what people said about the pairs; tasks of others in the same project are passed over.

    Args:
        tasks: of Label Studio's JSON export.
        pairs: of the collection, by id.
        place: where the tasks come from, for messages.

    Raises:
        DataError: an annotation cannot be read, or a task shows other texts than the pair has.
    """
    found = []
    for task in tasks:
        data = task.get("data")
        pair = pairs.get(str(data.get(ID))) if isinstance(data, dict) else None
        if pair is None:
            continue
        row = RawRow(Path(place), "label_studio", int(task["id"]), Columns(dict(task)), "task")
        try:
            shown = comparison_of(row, _WORDING, set())
        except UnusableRow as error:
            raise DataError(f"{row.where}: {error.detail}") from error
        votes = tuple(_as_collected(vote, shown, pair, row) for vote in shown.votes)
        found.append(Ballot(comparison_id=pair.comparison_id, votes=votes))
    return found


def _as_collected(vote: Vote, shown: Comparison, pair: Comparison, row: RawRow) -> Vote:
    """Return a vote about the sides of the pair, from one about the sides as they were shown."""
    sides = (shown.response_a, shown.response_b)
    if sides == (pair.response_a, pair.response_b):
        return vote
    if sides != (pair.response_b, pair.response_a):
        raise DataError(
            f"{row.where}: the task shows other responses than {pair.comparison_id} of the"
            " collection; somebody has edited it, delete the task"
        )
    return vote.model_copy(update={"choice": _SWAPPED[vote.choice]})
