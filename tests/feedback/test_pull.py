"""`rlhf label pull`: every pair is published once, when it has its votes."""

import pytest

from rlhf_core.errors import DataError
from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.schema import BatchResult, Comparison, DataVersion, Vote
from rlhf_core.stages.labels import pull as label_pull
from rlhf_core.stages.labels.pull import count_ready, pairs_needed, pull_labels
from rlhf_core.stages.labels.push import push_labels
from rlhf_core.storage.records import read_records
from tests.feedback.conftest import make_collection
from tests.feedback.servers import LabelStudio, serving

SIMULATED = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}


@pytest.fixture
def batches(monkeypatch, tmp_path):
    """The batches that would have been published, in place of a repository."""
    seen = []

    def publish(source, *, min_kept_fraction):
        seen.append(read_records(source.path, Comparison))
        version = DataVersion(
            version=f"data-v{len(seen)}", commit="c", date="2026-01-02", batch="b", rows=9, pairs=8,
            alpha=None, came=3, went=0, relabelled=0, sha256="a" * 64, dvc_md5="b" * 32,
        )  # fmt: skip
        return BatchResult(version=version, directory=tmp_path, set_aside={}, branch_moved=True)

    monkeypatch.setattr(label_pull, "publish", publish)
    return seen


def vote(folder, labeler, **choices):
    """Let ``labeler`` vote: p3="a" is a vote for the first answer of pair 3."""
    box = BallotBox(folder, labeler)
    with box.opened({}) as keep:
        for name, choice in choices.items():
            one = Vote(annotator=labeler, choice=choice)
            keep(Ballot(comparison_id=f"abc-0000{name[1:]}", votes=(one,)))


def ids(batch):
    return [int(pair.comparison_id[-1]) for pair in batch]


def test_pairs_are_published_once_each_when_they_have_their_votes(collection, configured, batches):
    config = configured(SIMULATED, votes_per_pair=2)
    vote(collection, "ann", p1="a", p2="b", p3="a")
    vote(collection, "bob", p1="a", p2="a")
    first = pull_labels(config, "abc")
    assert ids(batches[0]) == [1, 2]
    assert [v.choice for v in batches[0][1].votes] == ["b", "a"]
    assert first.pairs_by_votes == {0: 3, 1: 1, 2: 2}
    assert (first.ready, first.published_before) == (2, 0)
    assert first.published.version.version == "data-v1"

    again = pull_labels(config, "abc")
    assert (again.ready, again.published_before, again.published) == (0, 2, None)

    vote(collection, "cyn", p1="b", p3="b", p4="b")
    third = pull_labels(config, "abc")
    assert ids(batches[1]) == [3]
    assert third.late_votes == 1
    assert len(batches) == 2


def test_a_batch_keeps_source_and_line_of_its_pairs(collection, configured, batches):
    vote(collection, "ann", p2="a")
    pull_labels(configured(SIMULATED), "abc")
    (pair,) = batches[0]
    assert (pair.source, pair.line) == ("collected-abc", 2)


def test_with_output_the_batch_is_only_written(collection, configured, batches, tmp_path):
    config = configured(SIMULATED)
    vote(collection, "ann", p1="a", p5="tie")
    for _ in range(2):
        result = pull_labels(config, "abc", output=tmp_path / "out.jsonl")
        assert ids(read_records(tmp_path / "out.jsonl", Comparison)) == [1, 5]
        assert (result.ready, result.published) == (2, None)
    assert not batches
    pull_labels(config, "abc")
    assert ids(batches[0]) == [1, 5]


def test_a_publication_that_was_refused_is_tried_again_with_all_votes(
    collection, configured, batches, monkeypatch
):
    config = configured(SIMULATED)
    vote(collection, "ann", p1="a")

    def refused(source, **_):
        raise DataError("60 pairs left, expected 100")

    with monkeypatch.context() as patched:
        patched.setattr(label_pull, "publish", refused)
        with pytest.raises(DataError, match="expected 100"):
            pull_labels(config, "abc")
    vote(collection, "bob", p1="b", p2="b")
    monkeypatch.setattr(label_pull.versioning, "repository_root", lambda directory: directory)
    monkeypatch.setattr(label_pull, "list_versions", lambda root: [])
    pull_labels(config, "abc")
    assert ids(batches[0]) == [1, 2]
    assert len(batches[0][0].votes) == 2


def test_agreement_and_that_of_judges_with_people_are_told(collection, configured, batches):
    vote(collection, "ann", p1="a", p2="b", p3="a", p4="b")
    vote(collection, "ai:tiny", p1="a", p2="b", p3="a", p4="b", p5="a")
    result = pull_labels(configured(SIMULATED), "abc")
    assert result.alpha.value == pytest.approx(1.0)
    assert result.judges["ai:tiny"].value == pytest.approx(1.0)
    assert result.judges["ai:tiny"].num_samples == 4
    assert result.preferred == {}


def test_votes_for_each_of_two_models_are_counted(configured, batches, tmp_path):
    folder = make_collection(tmp_path / "collected", models=("models:/p/1", "models:/p/2"))
    vote(folder, "ann", p1="a", p2="b", p3="b", p4="tie")
    result = pull_labels(configured(SIMULATED), "abc")
    assert result.preferred == {"models:/p/1": 1, "models:/p/2": 2, "tie": 1}


def test_votes_of_people_come_as_label_studio_has_them_now(collection, configured, batches):
    app = LabelStudio()
    with serving(app) as url:
        config = configured({"kind": "label_studio", "url": url}, votes_per_pair=2)
        with pytest.raises(DataError, match="first: rlhf label push abc CONFIG"):
            pull_labels(config, "abc")
        push_labels(config, "abc")
        assert pull_labels(config, "abc").pairs_by_votes == {0: 6}
        for person in (1, 2):
            app.annotate(4, person, "left")
        app.annotate(5, 1, "left")
        result = pull_labels(config, "abc")
        assert result.pairs_by_votes == {0: 4, 1: 1, 2: 1}
        (pair,) = batches[0]
        left = app.tasks[4]["data"]["response_a"]
        side = "a" if pair.response_a == left else "b"
        assert [(v.annotator, v.choice) for v in pair.votes] == [("1", side), ("2", side)]
        app.tasks[5]["annotations"].clear()
        assert pull_labels(config, "abc").pairs_by_votes == {0: 5, 2: 1}


def test_nothing_is_published_before_the_share_that_was_asked_for_is_ready(
    collection, configured, batches, tmp_path
):
    config = configured(SIMULATED)
    vote(collection, "ann", p1="a", p2="b")
    early = pull_labels(config, "abc", at_least=0.5)
    assert (early.ready, early.needed, early.published, batches) == (2, 3, None, [])
    output = tmp_path / "out.jsonl"
    assert pull_labels(config, "abc", at_least=0.5, output=output).output is None
    assert not output.exists()
    assert count_ready(config, "abc") == (2, 6)

    vote(collection, "ann", p3="tie")
    assert pull_labels(config, "abc", at_least=0.5).published.version.version == "data-v1"
    assert ids(batches[0]) == [1, 2, 3]
    vote(collection, "ann", p4="a", p5="a")
    assert pull_labels(config, "abc", at_least=0.5).published is None  # 2 new ones of 6
    assert pull_labels(config, "abc").published.version.version == "data-v2"


@pytest.mark.parametrize(
    ("share", "pairs", "needed"),
    [(0.55, 100, 55), (0.07, 100, 7), (0.9, 6, 6), (0.5, 5, 3), (1.0, 7, 7), (0.0, 9, 1)],
)
def test_a_share_is_what_people_write(share, pairs, needed):
    assert pairs_needed(share, pairs) == needed
