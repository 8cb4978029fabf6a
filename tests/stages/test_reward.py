"""The reward stage: what its pairs are asked for, before any model is trained."""

import pytest

from rlhf_core.config import RewardConfig
from rlhf_core.errors import DataError
from rlhf_core.schema import DatasetRef, PreferencePair
from rlhf_core.stages.models.examples import load_pairs
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.reward import margin_by
from rlhf_core.storage.records import write_records
from tests.stages.conftest import BASE, question


def pair(index, **changes):
    return PreferencePair(
        comparison_id=f"c{index}",
        prompt=question(index),
        chosen="It opens at nine.",
        rejected="No.",
        **{"agreement": 1.0, **changes},
    )


def test_margins_come_from_what_the_source_says_or_from_the_votes():
    assert margin_by(RewardConfig()) is None
    said = margin_by(RewardConfig(margin_scale=0.5))
    assert [said(pair(0, strength=strength)) for strength in (3.0, 0.0, None)] == [1.5, 0.0, 0.0]
    voted = margin_by(RewardConfig(margin_scale=0.5, margin_of="votes"))
    found = [voted(pair(0, agreement=share)) for share in (1.0, 0.75, 0.5, 0.4)]
    assert found == [0.5, 0.25, 0.0, 0.0]


@pytest.fixture
def loaded(tmp_path, stage_config):
    def load(rows, margin):
        path = tmp_path / "pairs.jsonl"
        write_records(path, rows)
        source = DatasetRef(
            path=path, sha256="0" * 64, num_rows=len(rows), dvc_md5="0" * 32, git_revision=None
        )
        return load_pairs(stage_config(), model_renderer(BASE), tmp_path, source, margin=margin)

    return load


def test_a_pair_carries_its_margin_to_the_trainer(loaded):
    margin = margin_by(RewardConfig(margin_scale=1 / 3))
    found = loaded([pair(0, strength=3.0), pair(1)], margin)
    assert [one.margin for one in found] == [1.0, 0.0]
    assert [one.margin for one in loaded([pair(0, strength=3.0)], None)] == [0.0]


def test_margins_that_no_pair_has_are_refused(loaded):
    with pytest.raises(DataError, match=r"no pair has a strength above 0.*margin_of: votes"):
        loaded([pair(0), pair(1)], margin_by(RewardConfig(margin_scale=1.0)))


def test_what_margins_are_of_is_refused_without_margins():
    with pytest.raises(ValueError, match="margin_scale"):
        RewardConfig(margin_of="votes")
