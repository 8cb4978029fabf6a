"""Training stages read their rows one by one: however many there are, few are alive at once."""

import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from rlhf_core.config import DpoConfig
from rlhf_core.errors import DataError, StorageError
from rlhf_core.schema import DatasetRef, Demonstration, PreferencePair, Prompt, UnpairedExample
from rlhf_core.stages import policy
from rlhf_core.stages.evaluate import evaluate_reward
from rlhf_core.stages.models.examples import load_demonstrations, load_pairs
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.policy import _ppo_data, watched_prompts
from rlhf_core.stages.training.selection_prompts import set_apart
from rlhf_core.storage.records import write_records
from rlhf_core.tokenization import rows
from tests.disks import no_larger_files
from tests.stages.conftest import BASE, question

MANY = 120
FEW = 4
"""Who reads, who leaves out and who renders hold one each."""


class Census:
    """Counts the records that are alive."""

    def __init__(self, monkeypatch):
        self.read = self.alive = self.peak = 0
        for kind in (Demonstration, PreferencePair, Prompt, UnpairedExample):
            monkeypatch.setattr(kind, "model_validate_json", self.counted(kind.model_validate_json))

    def counted(self, validate):
        def call(text):
            record = validate(text)
            weakref.finalize(record, self.died)
            self.read, self.alive = self.read + 1, self.alive + 1
            self.peak = max(self.peak, self.alive)
            return record

        return call

    def died(self):
        self.alive -= 1


@pytest.fixture
def splits(small_splits):
    """Many rows to train on; the judge learned from dialogues that are no prompts."""
    pair = {"chosen": "It opens at nine.", "rejected": "No idea.", "agreement": 1.0}
    made = {
        "demonstrations_train": [
            Demonstration(demonstration_id=f"d{i}", prompt=question(i), response="At nine.")
            for i in range(MANY)
        ],
        "prompts_train": [Prompt(prompt_id=f"p{i}", prompt=question(i)) for i in range(MANY)],
        "prompts_heldout": [Prompt(prompt_id=f"h{i}", prompt=question(i)) for i in range(MANY)],
        "reward_train": [
            PreferencePair(comparison_id=f"c{i}", prompt=question(i), **pair) for i in range(MANY)
        ],
        "judge_train": [
            PreferencePair(comparison_id=f"j{i}", prompt=question(i + MANY), **pair)
            for i in range(MANY)
        ],
    }
    parts = {
        name: written(getattr(small_splits, name).path, records) for name, records in made.items()
    }
    unpaired = written(
        small_splits.directory / "unpaired_train.jsonl",
        [
            UnpairedExample(
                example_id=f"u{i}", prompt=question(i), response="Nine.", label=bool(i % 2)
            )
            for i in range(MANY)
        ],
    )
    return small_splits.model_copy(
        update={**parts, "unpaired_train": unpaired, "unpaired_heldout": unpaired}
    )


def written(path, records):
    write_records(path, records)
    return DatasetRef(
        path=path, sha256="0" * 64, num_rows=len(records), dvc_md5="0" * 32, git_revision=None
    )


def demonstrations(config, splits, folder):
    return load_demonstrations(config, model_renderer(BASE), folder, splits.demonstrations_train)


def pairs(config, splits, folder):
    return load_pairs(config, model_renderer(BASE), folder, splits.reward_train)


def pairs_with_margins(config, splits, folder):
    load = partial(load_pairs, margin=lambda pair: pair.agreement)
    return load(config, model_renderer(BASE), folder, splits.reward_train)


def prompts(config, splits, folder):
    return _ppo_data(config, config.policy, splits, model_renderer(BASE), folder).prompts


@pytest.mark.parametrize("load", [demonstrations, pairs, pairs_with_margins, prompts])
def test_few_records_are_alive_while_a_stage_reads_many(
    load, stage_config, splits, tmp_path, monkeypatch
):
    config, census = without_selection(stage_config()), Census(monkeypatch)
    assert len(load(config, splits, tmp_path / "stage")) == MANY
    assert census.read == MANY
    assert census.peak <= FEW
    assert census.alive <= 1


def without_selection(config):
    settings = config.policy.selection.model_copy(update={"num_prompts": 0})
    return config.model_copy(
        update={"policy": config.policy.model_copy(update={"selection": settings})}
    )


def test_few_labelled_responses_and_pairs_are_alive_while_kto_reads_both(
    stage_config, splits, tmp_path, monkeypatch
):
    settings = DpoConfig(loss="kto", selection={"num_prompts": 0})
    config = stage_config().model_copy(update={"policy": settings})
    learned = []
    monkeypatch.setattr(policy, "fit_kto", lambda model, *parts, **_: learned.extend(parts))
    job = SimpleNamespace(config=config, splits=splits, directory=tmp_path / "stage")
    followers = SimpleNamespace(training_run=lambda job: None)
    task = policy._Task(job, followers, None, model_renderer(BASE))
    census = Census(monkeypatch)
    policy.optimize(settings, task)
    assert len(learned[0]) == MANY + 2 * MANY
    assert census.peak <= FEW


def test_of_many_prompts_those_are_alive_that_may_be_set_apart_or_watched(
    stage_config, splits, monkeypatch
):
    config = stage_config()
    selection = config.policy.selection.model_copy(update={"num_prompts": 2})
    config = config.model_copy(
        update={"policy": config.policy.model_copy(update={"selection": selection})}
    )
    renderer, census = model_renderer(BASE), Census(monkeypatch)
    found = set_apart(config, splits, renderer)
    assert len(found.prompts) == 2
    assert census.read >= 2 * MANY
    assert census.peak <= 4 * 2 + FEW
    before = census.alive
    census.peak = before
    watched = watched_prompts(config, splits, renderer)
    assert len(watched) == policy.NUM_WATCHED_PROMPTS
    assert census.peak <= before + policy.NUM_WATCHED_PROMPTS + FEW


def test_a_reward_model_is_measured_with_held_out_pairs_alone_in_memory(
    four_models, stage_config, stage_context, splits, monkeypatch
):
    census = Census(monkeypatch)
    result = evaluate_reward(stage_config(), splits, four_models["reward"], stage_context)
    assert result.report.metrics["reward/heldout_accuracy"].num_samples == 12
    assert census.read > 2 * MANY
    assert census.peak <= splits.reward_heldout.num_rows + FEW


def test_pairs_that_do_not_fit_are_written_as_they_are_met(
    stage_config, splits, tmp_path, monkeypatch
):
    config = stage_config()
    model = config.model.model_copy(update={"max_length": 5})
    config, census = config.model_copy(update={"model": model}), Census(monkeypatch)
    with pytest.raises(DataError, match=f"none of {MANY} records fits"):
        pairs(config, splits, tmp_path / "stage")
    assert census.peak <= FEW
    left = (tmp_path / "stage" / "set-aside-reward_train.jsonl").read_text().splitlines()
    assert len(left) == MANY
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == [
        "rows.json",
        "set-aside-reward_train.jsonl",
    ]


def test_a_row_that_is_none_leaves_nothing_half_written(stage_config, splits, tmp_path):
    with splits.reward_train.path.open("a") as file:
        file.write('{"comparison_id": "torn"')
    with pytest.raises(DataError, match=f"line {MANY + 1}: not a PreferencePair"):
        pairs(stage_config(), splits, tmp_path / "stage")
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_disk_without_room_for_the_tokens_is_told_in_one_line(
    stage_config, splits, tmp_path, monkeypatch
):
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)
    with pytest.raises(StorageError) as refusal, no_larger_files(2_000):
        pairs(stage_config(), splits, tmp_path / "stage")
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path / 'stage' / 'tokens'} cannot be written: File too large")
    assert "\n" not in said
    assert list((tmp_path / "stage").iterdir()) == []
