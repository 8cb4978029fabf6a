"""People vote in Label Studio: send pairs as tasks, fetch what was said about them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from rlhf_core.adapters.labelling.label_studio import LabelStudio, open_label_studio
from rlhf_core.config import FeedbackConfig, LabelStudioLabelerConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.feedback.ballots import BallotBox
from rlhf_core.feedback.collection import MANIFEST, Collection
from rlhf_core.feedback.people import FORM, ID, ballots_of, task_of
from rlhf_core.schema import Comparison, Record
from rlhf_core.storage.records import atomic_file, read_record

logger = logging.getLogger(__name__)

SENT = "label_studio.json"
_AT_ONCE = 500
"""Tasks in one request."""


class SentTasks(Record):
    """Lies in the collection's folder: where its pairs were sent."""

    url: str
    project: int
    tasks: dict[str, int] = Field(default_factory=dict)
    """Comparison to the task about it. One that was deleted on the server is not sent again."""


def send_tasks(
    folder: Path,
    pairs: Sequence[Comparison],
    feedback: FeedbackConfig,
    settings: LabelStudioLabelerConfig,
) -> tuple[int, str]:
    """Send the pairs that were not sent yet; return their number, and where people find them.

    The server is asked what it has before anything is sent: where a kill, or a lost answer, left
    open whether something had arrived, nothing is sent twice.

    Raises:
        ConfigError: the collection was sent to another server or project; or there is no token.
        LabelError: the server refuses or does not answer.
    """
    with open_label_studio(settings) as server:
        sent = _remembered(folder, settings)
        if sent is None:
            project = _project(server, folder.name, len(pairs), feedback, settings)
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
            numbers = server.add_tasks(
                sent.project, [task_of(pair, feedback.seed) for pair in part]
            )
            new = {pair.comparison_id: n for pair, n in zip(part, numbers, strict=True)}
            sent = _remember(folder, sent, sent.tasks | new)
        return len(missing), server.page_of(sent.project)


def fetch_votes(
    folder: Path, pairs: Sequence[Comparison], settings: LabelStudioLabelerConfig
) -> None:
    """Replace what is known of people's votes by what the server says now.

    Raises:
        DataError: nothing was sent yet, or an annotation cannot be read.
        LabelError: the server refuses or does not answer.
    """
    sent = _remembered(folder, settings)
    if sent is None:
        raise DataError(
            f"{folder}: its pairs were not sent to Label Studio yet; first: rlhf label push"
            f" {folder.name} CONFIG"
        )
    with open_label_studio(settings) as server:
        tasks = server.annotated_tasks(sent.project)
    place = f"Label Studio project {sent.project}"
    ballots = ballots_of(tasks, {pair.comparison_id: pair for pair in pairs}, place)
    BallotBox(folder, settings.kind).replace(ballots)


def sent_collections(output: Path, settings: LabelStudioLabelerConfig) -> dict[str, int]:
    """Return the collections that were sent to the server, each with its project's number.

    Those of answers that an evaluation judged are left out: their votes are no data.

    Args:
        output: folder of all collections.
        settings: the server, and the project where it is a fixed one.
    """
    found: dict[str, int] = {}
    for path in sorted(output.glob(f"*/{SENT}")):
        try:
            sent = read_record(path, SentTasks)
            about = read_record(path.with_name(MANIFEST), Collection)
        except DataError as error:
            logger.warning("collection_passed_over collection=%s: %s", path.parent.name, error)
            continue
        here = sent.url == settings.url.rstrip("/") and settings.project in (None, sent.project)
        if here and about.evaluation is None:
            found[path.parent.name] = sent.project
    return found


def _project(
    server: LabelStudio,
    name: str,
    num_pairs: int,
    feedback: FeedbackConfig,
    settings: LabelStudioLabelerConfig,
) -> int:
    """Return the project that was named, or that an earlier push made; else make one."""
    if settings.project is not None:
        server.require_project(settings.project)
        return settings.project
    title = f"rlhf {name}"
    found = server.find_project(title)
    if found is not None:
        return found
    description = f"{num_pairs} pairs of answers: which is better?"
    return server.make_project(title, description, FORM, feedback.votes_per_pair)


def _remembered(folder: Path, settings: LabelStudioLabelerConfig) -> SentTasks | None:
    path = folder / SENT
    if not path.is_file():
        return None
    sent = read_record(path, SentTasks)
    elsewhere = settings.project not in (None, sent.project)
    if sent.url != settings.url.rstrip("/") or elsewhere:
        raise ConfigError(
            f"feedback.labeler: {folder.name} was sent to project {sent.project} of {sent.url};"
            f" name that, or delete {path} to send it again"
        )
    return sent


def _remember(folder: Path, sent: SentTasks, tasks: Mapping[str, int]) -> SentTasks:
    sent = sent.model_copy(update={"tasks": dict(tasks)})
    with atomic_file(folder / SENT) as stream:
        stream.write(sent.model_dump_json(indent=1).encode() + b"\n")
    return sent
