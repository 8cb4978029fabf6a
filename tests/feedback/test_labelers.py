"""A tool nobody has heard of goes through push, pull and the listener by the port alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from rlhf_core.config import Section
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.feedback.labeler import Labeler
from rlhf_core.feedback.results import PushResult
from rlhf_core.schema import Comparison, Vote
from rlhf_core.stages.labels.labelers import labeler_of
from rlhf_core.stages.labels.pull import count_ready, pull_labels
from rlhf_core.stages.labels.push import push_labels
from rlhf_core.storage.records import read_records
from rlhf_flows.engine.label_listener import LabelListener

SENT = "postcards.txt"


class PostcardConfig(Section):
    kind: Literal["postcard"] = "postcard"
    inbox: Path
    """Where answers arrive, a file for each pair: ``a`` or ``b``."""


class PostcardLabeler(Labeler):
    """A pair is written on a postcard; whoever gets it writes back one letter."""

    def __init__(self, settings: PostcardConfig) -> None:
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
        before = (folder / SENT).read_text().split() if (folder / SENT).exists() else []
        names = [pair.comparison_id for pair in pairs]
        (folder / SENT).write_text("\n".join(names))
        return PushResult(
            collection_id=folder.name,
            labeler=self._settings.kind,
            pairs=len(pairs),
            before=len(before),
            asked=len(names) - len(before),
            waits=True,
            place=str(self._settings.inbox),
        )

    def pull(self, folder: Path, pairs: Sequence[Comparison]) -> None:
        if not (folder / SENT).exists():
            raise DataError(f"{folder}: no postcard was sent yet")
        BallotBox(folder, self._settings.kind).replace(
            Ballot(
                comparison_id=answer.name,
                votes=(Vote(annotator="the neighbour", choice=answer.read_text()),),
            )
            for answer in sorted(self._settings.inbox.iterdir())
        )

    def sent_collections(self, output: Path) -> Mapping[str, int]:
        return {path.parent.name: 7 for path in output.glob(f"*/{SENT}")}


@pytest.fixture(scope="module", autouse=True)
def registered():
    labeler_of.register(PostcardConfig, PostcardLabeler)


@pytest.fixture
def by_postcard(configured, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    config = configured({"kind": "file"})
    feedback = config.feedback.model_copy(update={"labeler": PostcardConfig(inbox=inbox)})
    return config.model_copy(update={"feedback": feedback}), inbox


def test_a_tool_of_ones_own_is_asked_and_its_votes_are_counted_and_written(
    collection, by_postcard, tmp_path
):
    config, inbox = by_postcard
    with pytest.raises(DataError, match="no postcard was sent yet"):
        pull_labels(config, "abc")
    pushed = push_labels(config, "abc")
    assert (pushed.labeler, pushed.asked, pushed.place) == ("postcard", 6, str(inbox))
    assert push_labels(config, "abc").asked == 0
    (inbox / "abc-00001").write_text("a")
    (inbox / "abc-00004").write_text("b")
    assert count_ready(config, "abc") == (2, 6)
    pulled = pull_labels(config, "abc", output=tmp_path / "batch.jsonl")
    assert pulled.pairs_by_votes == {0: 4, 1: 2}
    rows = read_records(tmp_path / "batch.jsonl", Comparison)
    assert [(row.comparison_id, row.votes[0].choice) for row in rows] == [
        ("abc-00001", "a"),
        ("abc-00004", "b"),
    ]


def test_the_listener_looks_at_what_such_a_tool_tells_of(collection, by_postcard):
    config, _ = by_postcard
    push_labels(config, "abc")
    listener = LabelListener(config, at_least=1.0)
    assert listener.notice(7) == ["abc"]
    assert listener.notice(8) == []


def test_a_tool_that_answers_at_once_has_nothing_to_pull_and_tells_of_nothing(
    collection, configured, tmp_path
):
    labeler = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}
    config = configured(labeler)
    push_labels(config, "abc")
    assert count_ready(config, "abc") == (6, 6)
    with pytest.raises(ConfigError, match="kind is simulated: expected a tool that tells of votes"):
        LabelListener(config, at_least=1.0)
