"""People vote in Label Studio: pairs become tasks there, and their annotations ballots."""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from rlhf_core.adapters.labelling.label_studio import LabelStudio, open_label_studio
from rlhf_core.config import LabelStudioLabelerConfig
from rlhf_core.dataprep.sources.label_studio import Wording, comparison_of
from rlhf_core.dataprep.sources.rows import UNNAMED, Columns, RawRow, UnusableRow
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.feedback.ballots import Ballot, BallotBox, SetAside
from rlhf_core.feedback.collection import MANIFEST, Collection
from rlhf_core.feedback.labeler import Labeler
from rlhf_core.feedback.results import PushResult
from rlhf_core.schema import Choice, Comparison, Record, Vote
from rlhf_core.storage.records import read_record, shorten, write_record

logger = logging.getLogger(__name__)

SENT = "label_studio.json"
_Place = tuple[str, int, int]
"""When an annotation was changed, where its task stands, and where it stands in that: of two at the
same time the server lists the later one last."""
_AT_ONCE = 500
"""Tasks in one request."""


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


class SentTasks(Record):
    """Lies in the collection's folder: where its pairs were sent."""

    url: str
    project: int
    tasks: dict[str, int] = Field(default_factory=dict)
    """Comparison to the task about it. One that was deleted on the server is not sent again."""


class LabelStudioLabeler(Labeler):
    """People, in a project of a Label Studio server."""

    def __init__(self, settings: LabelStudioLabelerConfig) -> None:
        """Name the server; nothing is asked of it yet."""
        self._settings = settings

    def push(
        self,
        folder: Path,
        pairs: Sequence[Comparison],
        *,
        seed: int,
        votes_per_pair: int,
        again: bool,
    ) -> PushResult:
        """Send the pairs that were not sent yet.

        The server is asked what it has before anything is sent: where a kill, or a lost answer,
        left open whether something had arrived, nothing is sent twice.

        Raises:
            ConfigError: the collection was sent to another server or project; or there is no token.
            LabelError: the server refuses or does not answer.
        """
        with open_label_studio(self._settings) as server:
            sent = _remembered(folder, self._settings)
            if sent is None:
                about = f"{len(pairs)} pairs of answers: which is better?"
                project = self._project(server, f"rlhf {folder.name}", about, votes_per_pair)
                sent = SentTasks(url=server.place, project=project)
            else:
                server.require_project(sent.project)  # somebody may have deleted it
            ids = {pair.comparison_id for pair in pairs}
            there = {data.get(ID): number for number, data in server.tasks(sent.project)}
            known = sent.tasks | {name: there[name] for name in ids & there.keys()}
            sent = _remember(folder, sent, known)
            missing = [pair for pair in pairs if pair.comparison_id not in known]
            for start in range(0, len(missing), _AT_ONCE):
                part = missing[start : start + _AT_ONCE]
                numbers = server.add_tasks(sent.project, [task_of(pair, seed) for pair in part])
                new = {pair.comparison_id: n for pair, n in zip(part, numbers, strict=True)}
                sent = _remember(folder, sent, sent.tasks | new)
            return PushResult(
                collection_id=folder.name,
                labeler=self._settings.kind,
                pairs=len(pairs),
                before=len(pairs) - len(missing),
                asked=len(missing),
                waits=True,
                place=server.page_of(sent.project),
            )

    def pull(self, folder: Path, pairs: Sequence[Comparison]) -> None:
        """Replace what is known of people's votes by what the server says now.

        Annotations that cannot be read are kept aside with the reason.

        Raises:
            DataError: nothing was sent yet, or somebody has edited a task.
            LabelError: the server refuses or does not answer.
        """
        sent = _remembered(folder, self._settings)
        if sent is None:
            raise DataError(
                f"{folder}: its pairs were not sent to Label Studio yet; first: rlhf label push"
                f" {folder.name} CONFIG"
            )
        with open_label_studio(self._settings) as server:
            tasks = server.annotated_tasks(sent.project)
        place = f"Label Studio project {sent.project}"
        ballots, aside = ballots_of(tasks, {pair.comparison_id: pair for pair in pairs}, place)
        box = BallotBox(folder, self._settings.kind)
        box.replace(ballots, aside)
        if aside:
            logger.warning(
                "annotations_set_aside collection=%s annotations=%d kept=%s; the first: %s: %s",
                folder.name,
                len(aside),
                box.aside_path,
                aside[0].place,
                aside[0].reason,
            )

    def sent_collections(self, output: Path) -> Mapping[str, int]:
        """Return the collections that were sent to the server, each with its project's number.

        Those of answers that an evaluation judged are left out: their votes are no data.
        """
        found: dict[str, int] = {}
        for path in sorted(output.glob(f"*/{SENT}")):
            try:
                sent = read_record(path, SentTasks)
                about = read_record(path.with_name(MANIFEST), Collection)
            except DataError as error:
                logger.warning("collection_skipped collection=%s: %s", path.parent.name, error)
                continue
            if not _is_elsewhere(sent, self._settings) and about.evaluation is None:
                found[path.parent.name] = sent.project
        return found

    def _project(self, server: LabelStudio, title: str, about: str, votes_per_pair: int) -> int:
        """Return the project that was named, or that an earlier push made; else make one."""
        if self._settings.project is not None:
            server.require_project(self._settings.project)
            return self._settings.project
        found = server.find_project(title)
        return server.make_project(title, about, FORM, votes_per_pair) if found is None else found


def _remembered(folder: Path, settings: LabelStudioLabelerConfig) -> SentTasks | None:
    path = folder / SENT
    if not path.is_file():
        return None
    sent = read_record(path, SentTasks)
    if _is_elsewhere(sent, settings):
        raise ConfigError(
            f"feedback.labeler: {folder.name} was sent to project {sent.project} of {sent.url};"
            f" name that, or delete {path} to send it again"
        )
    return sent


def _is_elsewhere(sent: SentTasks, settings: LabelStudioLabelerConfig) -> bool:
    other = settings.project not in (None, sent.project)
    return other or sent.url != settings.url.rstrip("/")


def _remember(folder: Path, sent: SentTasks, tasks: Mapping[str, int]) -> SentTasks:
    sent = sent.model_copy(update={"tasks": dict(tasks)})
    write_record(folder / SENT, sent)
    return sent


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
) -> tuple[list[Ballot], list[SetAside]]:
    """Return what people said about the pairs, and what of it cannot be read.

    A pair may stand in several tasks: the votes of all of them count, and of one person the later.
    Tasks of others in the same project are passed over.

    Args:
        tasks: of Label Studio's JSON export.
        pairs: of the collection, by id.
        place: where the tasks come from, for messages.

    Raises:
        DataError: a task cannot be read, or shows other texts than the pair has.
    """
    found: dict[str, list[tuple[_Place, Vote]]] = {}
    aside: list[SetAside] = []
    known: set[tuple[str, str]] = set()
    for number, task in enumerate(tasks):
        data = task.get("data")
        pair = pairs.get(str(data.get(ID))) if isinstance(data, dict) else None
        if pair is None:
            continue
        row = RawRow(Path(place), "label_studio", int(task["id"]), Columns(dict(task)), "task")
        told = found.setdefault(pair.comparison_id, [])
        for when, place_in_task, annotation in _annotations_of(row, pair):
            try:
                shown = comparison_of(_with_only(row, annotation), _WORDING, known)
            except UnusableRow as error:
                if error.reason != "exact_duplicate":
                    about = _about(annotation)
                    where, name = f"{row.where}{about}", pair.comparison_id
                    aside.append(SetAside(comparison_id=name, place=where, reason=error.detail))
                continue
            stands = when, number, place_in_task
            told += [(stands, _as_collected(vote, shown, pair, row)) for vote in shown.votes]
    ballots = [
        Ballot(comparison_id=name, votes=_last_of_each(told)) for name, told in found.items()
    ]
    return ballots, aside


def _annotations_of(row: RawRow, pair: Comparison) -> list[tuple[str, int, Any]]:
    """Return the annotations of a task with when each was changed and its place, the last first.

    So of one that is there twice, with the same id, the last counts.
    """
    try:
        shown = comparison_of(_with_only(row), _WORDING, set())
    except UnusableRow as error:
        raise DataError(f"{row.where}: {error.detail}") from error
    _sides_as_shown(shown, pair, row)
    annotations = row.value.get("annotations")
    if not isinstance(annotations, list):
        raise DataError(f"{row.where}: annotations: expected a list, found {shorten(annotations)}")
    dated = [(_changed(one), place, one) for place, one in enumerate(annotations)]
    return sorted(dated, key=lambda one: one[:2], reverse=True)


def _changed(annotation: Any) -> str:
    """When an annotation was last changed, as ISO 8601 text, whose order is that of time."""
    if not isinstance(annotation, dict):
        return ""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _with_only(row: RawRow, *annotations: Any) -> RawRow:
    return replace(row, value=row.value.copy_with(annotations=list(annotations)))


def _about(annotation: Any) -> str:
    if not isinstance(annotation, dict) or annotation.get("id") is None:
        return ""
    return f", annotation {annotation['id']}"


def _last_of_each(told: Iterable[tuple[_Place, Vote]]) -> tuple[Vote, ...]:
    """Return the votes, of each person the last; people without a name are different ones."""
    last: dict[object, Vote] = {}
    for place, vote in sorted(told, key=lambda one: one[0]):
        key: object = place if vote.annotator == UNNAMED else vote.annotator
        last.pop(key, None)
        last[key] = vote
    return tuple(last.values())


def _sides_as_shown(shown: Comparison, pair: Comparison, row: RawRow) -> bool:
    """Whether the task shows the pair's responses on the pair's own sides."""
    sides = (shown.response_a, shown.response_b)
    if sides == (pair.response_a, pair.response_b):
        return True
    if sides != (pair.response_b, pair.response_a):
        raise DataError(
            f"{row.where}: the task shows other responses than {pair.comparison_id} of the"
            " collection; somebody has edited it, delete the task"
        )
    return False


def _as_collected(vote: Vote, shown: Comparison, pair: Comparison, row: RawRow) -> Vote:
    """Return a vote about the sides of the pair, from one about the sides as they were shown."""
    if _sides_as_shown(shown, pair, row):
        return vote
    return vote.model_copy(update={"choice": _SWAPPED[vote.choice]})
