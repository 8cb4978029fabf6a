"""The best of several answers as demonstrations: which is chosen, what is left out, what stays."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_core.adapters.registry.registry import local_model, resolve_model
from rlhf_core.config.data import DemonstrationsConfig
from rlhf_core.dataprep.sources import read_demonstrations
from rlhf_core.errors import ConfigError, DataError, RegistryError, RlhfError
from rlhf_core.models import load_causal
from rlhf_core.models.classifier import Classifier
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import Demonstration, Message, Prompt
from rlhf_core.stages import rejection_sampling
from rlhf_core.stages.evaluation.best_of_n import answer_several_times
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import score_texts
from rlhf_core.stages.rejection_sampling import BestOf, best_of, find_scorer, sample_best

HOW = BestOf(num_answers=4, temperature=2.0, max_new_tokens=16, seed=3)


def asked(count, text="When does the pool {} open?"):
    return [
        Prompt(prompt_id=f"p{i}", prompt=(Message(role="user", content=text.format(i)),))
        for i in range(count)
    ]


@pytest.fixture
def models(saved_models, monkeypatch):
    monkeypatch.setattr(rejection_sampling, "_AT_ONCE", 6)  # so that a few are several parts
    return [local_model(saved_models[role][0]) for role in ("sft", "reward")]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_answer_that_scores_highest_of_those_that_ended_is_written(models, tmp_path):
    policy, scorer = models
    prompts = asked(10)
    written = sample_best(policy, scorer, prompts, HOW, tmp_path / "best.jsonl")
    drawn = answer_several_times(
        load_causal(policy.path), model_renderer(policy.path).tokenizer,
        [one.prompt for one in prompts], **HOW.model_dump(),
    )  # fmt: skip
    texts = [[answer.text for answer in column] for column in drawn]
    ended = np.array([[a.finished and bool(a.text.strip()) for a in column] for column in drawn])
    scores = np.stack(score_texts(scorer.path, [one.prompt for one in prompts], texts, budget=500))
    assert 0 < ended.sum() < ended.size
    scores[~ended] = -np.inf
    expected = {
        prompt.prompt_id: texts[place][row]
        for row, (prompt, place) in enumerate(zip(prompts, scores.argmax(axis=0), strict=True))
        if ended[:, row].any()
    }
    rows = rows_of(written.output)
    assert {row["prompt_id"]: row["response"] for row in rows} == expected
    for row in rows:
        column = scores[:, int(row["prompt_id"][1:])]
        assert row["score"] == pytest.approx(column.max(), abs=1e-5)
        assert row["mean_score"] == pytest.approx(column[np.isfinite(column)].mean(), abs=1e-5)
        assert row["candidates"] == np.isfinite(column).sum()
        assert (row["best_of"], row["seed"], row["policy"]) == (4, 3, policy.uri)
        assert (row["scorer"], row["scorer_sha256"]) == (scorer.uri, scorer.sha256)
    assert written.demonstrations == len(rows)
    assert written.score > written.mean_score
    assert written.kl_bound == pytest.approx(np.log(4) - 3 / 4)


def test_sft_reads_what_is_written_as_it_is(models, tmp_path):
    path = sample_best(*models, asked(8), HOW, tmp_path / "best.jsonl").output
    read = [item for _, item in read_demonstrations(DemonstrationsConfig(path=path))]
    assert all(isinstance(item, Demonstration) for item in read)
    assert [item.response for item in read] == [row["response"] for row in rows_of(path)]


def test_what_is_left_out_is_kept_with_the_reason(models, tmp_path):
    odd = [
        *asked(1, "x " * 600),
        Prompt(prompt_id="s", prompt=(Message(role="tool", content="7"),)),
    ]
    written = sample_best(*models, [*odd, *asked(8)], HOW, tmp_path / "best.jsonl")
    left = rows_of(tmp_path / "best.left_out.jsonl")
    assert [row["reason"] for row in left[:2]] == ["too_long", "not_renderable"]
    assert "less 16 for the answer" in left[0]["detail"]
    assert sum(written.left_out.values()) == len(left) == 10 - written.demonstrations


def test_answers_that_were_cut_are_never_chosen(models, tmp_path):
    short = HOW.model_copy(update={"max_new_tokens": 1})
    with pytest.raises(DataError, match=r"can be chosen \(8 unfinished\); nothing is written"):
        sample_best(*models, asked(8), short, tmp_path / "best.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == [".best.jsonl.lock"]


def test_a_classifier_from_elsewhere_chooses_where_it_gives_one_score(saved_models, tmp_path):
    policy = local_model(saved_models["sft"][0])
    for labels in (1, 2):
        config = AutoConfig.from_pretrained(policy.path, num_labels=labels)
        torch.manual_seed(0)
        folder = tmp_path / f"scores-{labels}"
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        model_renderer(policy.path).tokenizer.save_pretrained(folder)
    one, two = (find_scorer(str(tmp_path / f"scores-{n}"), local_model) for n in (1, 2))
    rows = rows_of(sample_best(policy, one, asked(3), HOW, tmp_path / "best.jsonl").output)
    best, prompts = [row["response"] for row in rows], [row["prompt"] for row in rows]
    turns = [tuple(Message(**turn) for turn in prompt) for prompt in prompts]
    scores = Classifier(one.path, max_length=None).scores(turns, best)
    assert [row["score"] for row in rows] == pytest.approx(list(scores), abs=1e-5)
    assert any(row["score"] > row["mean_score"] for row in rows)
    with pytest.raises(RlhfError, match="gives 2 scores"):
        sample_best(policy, two, asked(3), HOW, tmp_path / "two.jsonl")


def test_a_scorer_that_gives_no_score_chooses_nothing(models, tmp_path, monkeypatch):
    def deaf(prompts, texts):
        return np.full(len(prompts), np.nan)

    monkeypatch.setattr(rejection_sampling, "open_scorer", lambda *_: deaf)
    with pytest.raises(DataError, match="not_scored"):
        sample_best(*models, asked(4), HOW, tmp_path / "best.jsonl")


def test_a_killed_call_goes_on_and_writes_the_same(models, tmp_path, monkeypatch):
    whole = sample_best(*models, asked(10), HOW, tmp_path / "whole.jsonl").output
    calls = []

    def killed(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sample_responses(*args, **options)

    monkeypatch.setattr(rejection_sampling, "sample_responses", killed)
    part = tmp_path / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sample_best(*models, asked(10), HOW, part)
    assert not part.exists()
    sample_best(*models, asked(10), HOW, part)
    assert len(calls) == 4 + 5  # two parts, four answers each; three were kept
    assert part.read_bytes() == whole.read_bytes()
    names = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert names <= {"whole.jsonl", "part.jsonl", "whole.left_out.jsonl", "part.left_out.jsonl"}


def test_answers_kept_for_one_scorer_are_not_taken_for_other_prompts(models, tmp_path, monkeypatch):
    """A scorer that reads fewer prompts shifts the others; their answers must not shift too."""
    policy, scorer = models
    whole = sample_best(policy, scorer, asked(10), HOW, tmp_path / "whole.jsonl").output
    readable, calls = rejection_sampling._readable, []

    def without_first(policy, scorer, prompts, settings):
        found, left = readable(policy, scorer, prompts, settings)
        detail = {"prompt_id": "p0", "prompt": found[0].prompt, "detail": ""}
        gone = rejection_sampling.LeftOut(reason="not_renderable", **detail)
        return found[1:], [*left, gone]

    def killed(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sample_responses(*args, **options)

    part = tmp_path / "part.jsonl"
    with monkeypatch.context() as other:
        other.setattr(rejection_sampling, "_readable", without_first)
        other.setattr(rejection_sampling, "sample_responses", killed)
        with pytest.raises(KeyboardInterrupt):
            sample_best(policy, scorer, asked(10), HOW, part)
    sample_best(policy, scorer, asked(10), HOW, part)
    assert part.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["best.jsonl", "best.left_out.jsonl"])
def test_a_file_that_is_there_stays(models, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name} is there already"):
        sample_best(*models, asked(2), HOW, tmp_path / "best.jsonl")
    assert (tmp_path / name).read_text() == "mine"


def test_a_name_that_would_not_be_read_again_is_refused(models, tmp_path):
    with pytest.raises(DataError, match=r"ends in \.jsonl"):
        sample_best(*models, asked(2), HOW, tmp_path / "best.jsonl.gz")


@pytest.mark.parametrize(
    ("number", "temperature", "told"),
    [(1, 1.0, "expected 2 or more"), (-3, 1.0, "2 or more"), (4, 0.0, "all the same")],
)
def test_there_has_to_be_a_choice(number, temperature, told):
    with pytest.raises(ConfigError, match=told):
        best_of(number, temperature=temperature, max_new_tokens=8, seed=0)


def test_the_scorer_is_a_reward_model(four_models, saved_models, tmp_path):
    def resolve(reference):
        return resolve_model(reference, cache=tmp_path)

    assert find_scorer("models:/rlhf-reward/1", resolve).version == "1"
    assert find_scorer(str(saved_models["reward"][0]), resolve).kind == "scalar"
    for reference, told in {
        "models:/rlhf-sft/1": "was trained as sft, expected reward: --scorer",
        "models:/rlhf-judge/1": "was trained as judge, expected reward",
        "models:/rlhf-reward/9": "rlhf-reward/9",
    }.items():
        with pytest.raises(RegistryError, match=told):
            find_scorer(reference, resolve)
    text = find_scorer(str(saved_models["sft"][0]), resolve)
    with pytest.raises(RlhfError, match="no reward model"):
        sample_best(local_model(saved_models["sft"][0]), text, asked(2), HOW, tmp_path / "b.jsonl")
