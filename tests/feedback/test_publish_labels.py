"""Pulling into a real repository under git and DVC, and a pull that was killed on the way."""

import pytest

from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.schema import Vote
from rlhf_core.stages.labels import pull as label_pull
from rlhf_core.stages.versions.versions import fetch_version, list_versions
from tests.stages.data_helpers import make_repository

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("data_versions"),
    pytest.mark.usefixtures("forked_tools"),
]

SIMULATED = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}


def test_a_pull_that_was_killed_after_publishing_adds_nothing_twice(
    collection, configured, tmp_path, monkeypatch
):
    root = make_repository(tmp_path / "repository")
    monkeypatch.chdir(root)
    config = configured(SIMULATED)
    box = BallotBox(collection, "ann")

    def vote(*numbers):
        with box.opened({}) as keep:
            for number in numbers:
                votes = (Vote(annotator="ann", choice="b"),)
                keep(Ballot(comparison_id=f"abc-0000{number}", votes=votes))

    def killed(*_):
        raise KeyboardInterrupt

    vote(1, 2, 3, 4)
    with monkeypatch.context() as patched:
        patched.setattr(label_pull, "_mark", killed)
        with pytest.raises(KeyboardInterrupt):
            label_pull.pull_labels(config, "abc")
    assert [version.version for version in list_versions(root)] == ["data-v1"]

    result = label_pull.pull_labels(config, "abc")
    assert result.published.version.version == "data-v1"
    assert (result.ready, result.published_before) == (0, 4)
    assert result.published.directory == fetch_version("data-v1").directory
    assert len(list_versions(root)) == 1

    vote(5)
    result = label_pull.pull_labels(config, "abc")
    assert (result.ready, result.published.version.version) == (1, "data-v2")
    assert [(v.rows, v.batch) for v in list_versions(root)] == [
        (64, "batch-0001.jsonl"),
        (65, "batch-0002.jsonl"),
    ]
