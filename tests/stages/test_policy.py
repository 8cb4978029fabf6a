"""What the policy stage does around training."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from rlhf_core.config import ComputeConfig, DpoConfig, KlWatchConfig, LoraConfig
from rlhf_core.config.policy import PolicyConfig
from rlhf_core.errors import DataError
from rlhf_core.models import load_causal, load_scalar
from rlhf_core.schema import DatasetRef, Message, Prompt, UnpairedExample
from rlhf_core.stages import policy
from rlhf_core.stages.models.renderers import base_renderer
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.run import Followers
from rlhf_core.storage.records import md5_of, read_records, sha256_of, write_records
from rlhf_core.tokenization import Rows
from tests.trainers.toys import ListTracker


def test_a_watched_prompt_that_leaves_no_room_for_an_answer_is_passed_over(
    stage_config, small_splits, tmp_path, monkeypatch
):
    config = stage_config()
    words = (Message(role="user", content="When does the library open? " * 60),)
    rows = read_records(small_splits.prompts_heldout, Prompt)
    rows.insert(0, Prompt(prompt_id="long", prompt=words, tags={"style": "endless"}))
    monkeypatch.setattr(policy, "NUM_WATCHED_PROMPTS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "iterate_records", lambda *_: iter(rows))
        renderer = base_renderer(config.model)
        watched = policy.watched_prompts(config, small_splits, renderer)
    assert len(watched) == 3
    assert all(prompt.prompt != words for prompt in watched)
    model = load_causal(config.model.base)
    watcher = policy.AnswerWatcher(config, watched, model, renderer, tmp_path)
    watcher.look(0)
    watcher.look(2)
    answers = read_records(watcher.path, policy.WatchedAnswer)
    assert [answer.step for answer in answers] == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(("max_prompt_length", "longest"), [(None, 176), (100, 100)])
def test_the_longest_prompt_leaves_room_for_the_longest_answer(
    max_prompt_length, longest, stage_config
):
    config = stage_config()
    model = config.model.model_copy(update={"max_prompt_length": max_prompt_length})
    assert config.model_copy(update={"model": model}).longest_prompt() == longest


class Begun(Exception):
    """Training would begin here."""


@pytest.mark.parametrize(
    ("lora", "advantages"), [(False, "gae"), (True, "gae"), (False, "rloo"), (True, "grpo")]
)
def test_ppo_starts_from_sft_and_its_value_model_if_any_from_the_reward_model(
    lora, advantages, stage_config, small_splits, saved_models, tmp_path, monkeypatch
):
    seen = []

    def begin(models, data, **_kwargs):
        seen.append((models, data))
        raise Begun

    monkeypatch.setattr(policy, "fit_ppo", begin)
    config = stage_config()
    compute = ComputeConfig(lora=LoraConfig(rank=2) if lora else None)
    changes = {"compute": compute, "advantages": advantages, "responses_per_prompt": 4}
    settings = config.policy.model_copy(update=changes)
    (sft, _), (reward, _) = saved_models["sft"], saved_models["reward"]
    job = TrainingJob.model_construct(
        role="policy", config=config.model_copy(update={"policy": settings}), splits=small_splits,
        sft=SimpleNamespace(path=sft), reward=SimpleNamespace(path=reward), directory=tmp_path,
        checkpoints=tmp_path / "checkpoints",
    )  # fmt: skip
    renderer = base_renderer(config.model)
    task = policy._Task(job, Followers(ListTracker()), load_causal(sft), renderer)
    with pytest.raises(Begun):
        policy.optimize(settings, task)
    ((models, data),) = seen
    assert (data.end_ids, data.turn_end_id) == (renderer.end_ids, renderer.turn_end_id)
    if advantages == "gae":
        assert models.value_model is not models.reward_model
        assert equal(models.value_model, models.reward_model)
    else:
        assert models.value_model is None
    assert equal(models.reward_model, load_scalar(reward))
    assert equal(models.policy, load_causal(sft))
    assert models.reference is None if lora else equal(models.reference, models.policy)


def test_every_algorithm_of_the_settings_has_its_trainer():
    union, *_ = get_args(PolicyConfig)
    others = policy.optimize.dispatch(object)
    assert all(policy.optimize.dispatch(kind) is not others for kind in get_args(union))
    with pytest.raises(NotImplementedError, match="no trainer is registered for KlWatchConfig"):
        policy.optimize(KlWatchConfig(), None)


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({}, {"policy", "reward", "reference", "value"}),
        ({"advantages": "rloo", "responses_per_prompt": 4}, {"policy", "reward", "reference"}),
        ({"compute": ComputeConfig(lora=LoraConfig(rank=2))}, {"policy", "reward", "value"}),
        (None, {"policy"}),
    ],
)
def test_memory_is_asked_for_the_models_that_the_settings_need(
    changes, roles, stage_config, monkeypatch
):
    found = set()
    monkeypatch.setattr(
        policy, "require_memory", lambda *_, trained, read, **_sizes: found.update(trained, read)
    )
    config = stage_config()
    settings = DpoConfig() if changes is None else config.policy.model_copy(update=changes)
    model = SimpleNamespace(path="somewhere")
    config = config.model_copy(update={"policy": settings})
    policy._require_memory(TrainingJob.model_construct(config=config, sft=model, reward=model))
    assert found == roles


def equal(one, other):
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(("train_on", "rows"), [("unpaired", 12), (None, 36), ("pairs", 12)])
def test_kto_learns_from_the_rows_it_is_told_to(
    train_on, rows, stage_config, small_splits, saved_models, tmp_path, monkeypatch
):
    learned = {}

    def note(name):
        def fit(*arguments, settings, run):
            learned[name] = [part for part in arguments if isinstance(part, Rows)]
            raise Begun

        return fit

    monkeypatch.setattr(policy, "fit_kto", note("kto"))
    monkeypatch.setattr(policy, "fit_dpo", note("dpo"))
    examples = [
        UnpairedExample(
            example_id=f"u{i}",
            prompt=(Message(role="user", content=f"When does shop {i} open?"),),
            response="At nine." if i % 2 else "No idea.",
            label=bool(i % 2),
        )
        for i in range(12)
    ]
    path = tmp_path / "unpaired.jsonl"
    write_records(path, examples)
    ref = DatasetRef(
        path=path, sha256=sha256_of(path), num_rows=12, dvc_md5=md5_of(path), git_revision=None
    )
    splits = small_splits.model_copy(update={"unpaired_train": ref, "unpaired_heldout": ref})
    settings = DpoConfig(loss="kto", train_on=train_on)
    config = stage_config().model_copy(update={"policy": settings})

    def begin(splits):
        job = SimpleNamespace(
            config=config,
            splits=splits,
            directory=tmp_path,
            start=SimpleNamespace(path=saved_models["sft"][0]),
        )
        followers = SimpleNamespace(training_run=lambda job: None)
        with pytest.raises(Begun):
            policy.fit(job, followers)

    begin(splits)
    [(name, parts)] = learned.items()
    assert name == ("dpo" if train_on == "pairs" else "kto")
    assert [len(part) for part in parts] == [rows, rows]
    if name == "kto":
        labels = [row.desirable for row in parts[0]]
        assert labels[:12] == [row.label for row in examples]
        assert sum(labels) == rows // 2
    if train_on == "unpaired":
        with pytest.raises(DataError, match=r"data\.unpaired"):
            begin(small_splits)
