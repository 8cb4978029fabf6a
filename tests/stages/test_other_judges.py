"""Judges from elsewhere decide: a chat endpoint, a foreign reward model, several together."""

import shutil

import numpy as np
import pytest
import torch

from rlhf_core.adapters.registry.champions import parts_of, release_of
from rlhf_core.adapters.registry.versions import upstream_uris
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import EvaluationConfig
from rlhf_core.dataprep.keys import conversation_key
from rlhf_core.errors import ConfigError, LabelError, ModelError, RegistryError
from rlhf_core.evaluation.judges import (
    OVER_CHAMPION,
    OVER_SFT,
    Opinion,
    judge_metrics,
    liked_as_much,
    other_prompts,
)
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import ModelRef
from rlhf_core.stages.evaluate import evaluate_policy, evaluate_reward, evaluate_sft
from rlhf_core.stages.evaluation.independence import require_independent_judge
from rlhf_core.stages.evaluation.judging import Panel, judges_together, outside_judge
from rlhf_core.stages.evaluation.verdict import metric_plans
from rlhf_core.stages.models import scoring
from rlhf_core.storage.records import read_records
from tests.feedback.servers import Chat, prefers_longer, serving, shown
from tests.stages.conftest import question

pytestmark = pytest.mark.usefixtures("mlflow_home")  # a project's gates are asked for

PROMPTS = [question(index) for index in range(6)]
POLICY = [
    "It opens at nine, every day.",
    "Nine.",
    "No idea.",
    "At ten, I think so.",
    "Yes.",
    "At 9",
]
SFT = ["It opens at nine.", "Nine, I think.", "No idea.", "At ten.", "It does not.", "At 10."]
CHAMPION = ["Nine.", "At nine o'clock sharp.", "No.", "At ten, I think so.", "It is open.", "So."]
TEXTS = [POLICY, SFT, CHAMPION]


def longer(first, second):
    return [
        0.5 if a == b or len(a) == len(b) else float(len(a) > len(b))
        for a, b in zip(first, second, strict=True)
    ]


@pytest.fixture
def chat(monkeypatch):
    monkeypatch.delenv("RLHF_JUDGE_API_KEY", raising=False)
    chat = Chat(prefers_longer)
    with serving(chat) as url:
        chat.seat = {"kind": "ai", "url": f"{url}/v1", "model": "m", "principles": ["Say more."]}
        chat.seat |= {"patience_seconds": 0}
        yield chat


@pytest.fixture(scope="module")
def reward_model(saved_models, tmp_path_factory):
    """Our SFT's trunk with another head, as anybody's tools would have saved it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, folder = saved_models["sft"][0], tmp_path_factory.mktemp("theirs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def with_judges(config, seats):
    evaluation = {**config.evaluation.model_dump(), "judge": seats}
    evaluation = EvaluationConfig.model_validate(evaluation)
    return config.model_copy(update={"evaluation": evaluation})


def refs_of(config, own=None):
    seats = config.evaluation.judge
    seats = seats if isinstance(seats, tuple) else (seats,)
    return judges_together([own if seat == "run" else outside_judge(seat) for seat in seats])


@pytest.fixture
def panel(stage_config, tmp_path, saved_models):
    """Seat judges."""
    path, sha256 = saved_models["judge"]
    own = ModelRef(
        name="j", version="1", uri="models:/j/1", path=path, sha256=sha256, kind="scalar", run_id=""
    )

    def seated(seats):
        config = with_judges(stage_config(), seats)
        return Panel(config, refs_of(config, own), tmp_path / "votes")

    return seated


@pytest.fixture
def decide(panel):
    """Let the seats decide on six prompts."""
    return lambda seats, texts=TEXTS: panel(seats).decide(PROMPTS, texts)


def measured(decided, stage_config):
    return judge_metrics(decided, metric_plans(stage_config(), "policy"))


def test_an_ai_judge_is_asked_in_both_orders_and_compares_all_three(chat, decide, stage_config):
    scores, decided = decide(chat.seat)
    assert decided.over_sft.tolist() == longer(POLICY, SFT)
    assert decided.over_champion.tolist() == longer(POLICY, CHAMPION)
    assert decided.champion_over_sft.tolist() == longer(CHAMPION, SFT)
    assert (scores[0] + scores[1]).tolist() == [1.0] * 6
    # Two pairs are of equal answers, and two are asked about already, for another pair of models.
    assert len(chat.asked) == 2 * (3 * 6 - 4)
    metrics = measured(decided, stage_config)
    assert metrics["policy/judge_order_dependence"].value == 0.0
    assert metrics["policy/judge_position_bias"].value == 0.0
    assert metrics["policy/judge_unjudged"].value == 0.0
    assert metrics["policy/judge_order_dependence"].num_samples == 5


def test_a_judge_that_prefers_a_place_ties_and_its_bias_is_measured(chat, decide, stage_config):
    chat.say = lambda messages: "[[B]]"
    _, decided = decide(chat.seat)
    metrics = measured(decided, stage_config)
    assert decided.over_sft.tolist() == [0.5] * 6
    assert metrics["policy/judge_order_dependence"].value == 1.0
    assert metrics["policy/judge_position_bias"].value == -1.0


def test_what_a_judge_does_not_say_is_a_tie_with_the_reason(chat, decide, stage_config):
    chat.say = lambda messages: (
        "I cannot say." if "number 4 " in messages[1]["content"] else prefers_longer(messages)
    )
    _, decided = decide(chat.seat | {"max_attempts": 1})
    assert [bool(reason) for reason in decided.unjudged] == [False] * 4 + [True, False]
    assert "no verdict in order A, B after 1" in decided.unjudged[4]
    assert decided.over_sft[4] == 0.5
    assert measured(decided, stage_config)["policy/judge_unjudged"].value == pytest.approx(1 / 6)


def test_ties_with_a_champion_that_nobody_could_judge_are_no_evidence(chat, decide, stage_config):
    """A judge that refused the champion's answers alone promoted whatever was worse than it."""
    texts = [POLICY, SFT, [f"{answer} (of the champion)" for answer in POLICY]]
    chat.say = lambda messages: (
        "I cannot say." if "champion" in messages[1]["content"] else prefers_longer(messages)
    )
    _, decided = decide(chat.seat | {"max_attempts": 1}, texts)
    assert decided.over_champion.tolist() == [0.5] * 6
    metrics = measured(decided, stage_config)
    assert metrics["policy/judge_unjudged"].value == 1.0
    # Of a comparison with another model, best-of-n say, likewise.
    alone = decide(chat.seat, [POLICY, SFT])[1]
    plans = metric_plans(stage_config(), "policy")
    assert judge_metrics(alone, plans)["policy/judge_unjudged"].value == 0.0
    others = judge_metrics(alone, plans, of_others=decided.unjudged_most(OVER_CHAMPION))
    assert others["policy/judge_unjudged"].value == 1.0


def test_an_evaluation_that_was_stopped_asks_nothing_twice(chat, decide):
    seen = []

    def say(messages):
        seen.append(shown(messages))
        if len(seen) == 11:
            chat.trouble = [(500, {"error": "gone"})] * 50
        return prefers_longer(messages)

    chat.say, seat = say, chat.seat | {"concurrency": 1}
    with pytest.raises(LabelError):
        decide(seat)
    chat.trouble = []
    first = decide(seat)[1]
    # Of the pair that the server went away on, one order had been asked about.
    assert len(seen) == len(set(seen)) + 1
    assert decide(seat)[1].over_sft.tolist() == first.over_sft.tolist()
    assert len(seen) == 2 * (3 * 6 - 4) + 1


def test_a_foreign_reward_model_scores_with_its_own_template(decide, reward_model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    scores, decided = decide({"kind": "reward_model", "model": str(reward_model)})
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    for column, answers in zip(scores, TEXTS, strict=True):
        for prompt, answer, score in zip(PROMPTS, answers, column, strict=True):
            turns = [turn.model_dump() for turn in prompt]
            turns.append({"role": "assistant", "content": answer})
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                assert score == pytest.approx(float(model(**ids).logits[0, 0]), abs=1e-4)
    expected = np.where(scores[0] == scores[1], 0.5, scores[0] > scores[1])
    assert decided.over_sft.tolist() == expected.tolist()


def test_judges_with_scores_are_asked_after_other_prompts_too_and_loaded_once(
    panel, chat, reward_model, monkeypatch
):
    loaded = []
    for module, name in ((scoring, "load_scalar"), (scoring, "Classifier")):
        load = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, load=load, **k: loaded.append(a[0]) or load(*a, **k)
        )
    theirs = {"kind": "reward_model", "model": str(reward_model)}
    both = panel(["run", theirs, chat.seat])
    opinions = both.opinions(PROMPTS, TEXTS, after_others=True)
    assert len(loaded) == 2
    assert len(chat.asked) == 2 * (3 * 6 - 4)  # of the answers after their own prompts
    others = other_prompts([conversation_key(prompt) for prompt in PROMPTS], both.seed)
    assert all(other != own for own, other in enumerate(others))
    shuffled = [PROMPTS[other] for other in others]
    again = [panel([seat]).opinions(shuffled, TEXTS)[0].scores for seat in ("run", theirs)]
    found = liked_as_much(opinions)
    for model in (0, 1):
        higher = [
            scores[model] > one.scores[model] for one, scores in zip(opinions, again, strict=False)
        ]
        assert found[model].tolist() == np.mean(higher, axis=0).tolist()
    words = panel(chat.seat)
    assert liked_as_much(words.opinions(PROMPTS, TEXTS, after_others=True)) is None


def test_what_is_not_read_and_a_prompt_without_others_are_half():
    scores = [np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4)]
    after = [np.array([2.0, 2.0, 9.0, np.nan]), np.array([-1.0, 0.0, 1.0, 1.0])]
    opinion = Opinion("j", scores, {}, ("", "", "too long", ""), after_another=after)
    policy, sft = liked_as_much([opinion])
    assert policy.tolist() == [1.0, 0.5, 0.5, 0.5]
    assert sft.tolist() == [0.0, 0.5, 0.5, 1.0]
    assert other_prompts([b"a", b"a", b"a"], 0).tolist() == [0, 1, 2]


def test_a_reward_model_without_a_template_reads_two_texts(decide, reward_model, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = shutil.copytree(reward_model, tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    scores, _ = decide({"kind": "reward_model", "model": str(folder)})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(PROMPTS[0][0].content, POLICY[0], return_tensors="pt")
    with torch.no_grad():
        expected = float(model(**inputs).logits[0, 0])
    assert scores[0][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["two scores", "no head", "no model"])
def test_what_is_no_reward_model_is_refused_in_one_line(kind, saved_models, tmp_path, decide):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, source = tmp_path / "other", saved_models["sft"][0]
    told = {
        "two scores": "gives 2 scores",
        "no head": "no weights for score.weight",
        "no model": "the hub gives no model of that name",
    }
    if kind == "two scores":
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    elif kind == "no head":
        shutil.copytree(source, folder)
    with pytest.raises(ModelError, match=told[kind]) as raised:
        decide({"kind": "reward_model", "model": str(folder)})
    assert "\n" not in str(raised.value)


def test_several_judges_decide_by_their_mean_and_show_where_they_differ(
    chat, decide, reward_model, stage_config
):
    theirs = {"kind": "reward_model", "model": str(reward_model)}
    _, decided = decide(["run", theirs, chat.seat])
    won = np.stack([one.won[OVER_SFT] for one in decided.opinions])
    assert [one.name for one in decided.opinions] == ["models:/j/1", str(reward_model), "ai:m"]
    assert decided.over_sft == pytest.approx(won.mean(axis=0))
    champion = np.stack([one.won[OVER_CHAMPION] for one in decided.opinions])
    assert decided.over_champion == pytest.approx(champion.mean(axis=0))
    differ = np.mean([won[0] != won[1], won[0] != won[2], won[1] != won[2]], axis=0)
    assert differ.any()
    metrics = measured(decided, stage_config)
    assert metrics["policy/judge_disagreement"].value == pytest.approx(differ.mean())


def test_what_is_too_long_for_one_judge_is_left_to_the_others(chat, decide, reward_model):
    short = {"kind": "reward_model", "model": str(reward_model), "max_length": 1}
    alone = decide(short)[1]
    assert alone.over_sft.tolist() == [0.5] * 6
    assert [bool(reason) for reason in alone.unjudged] == [True, True, False, True, True, True]
    both = decide([short, chat.seat])[1]
    assert both.over_sft.tolist() == longer(POLICY, SFT)
    assert set(both.unjudged) == {""}


def test_a_judge_is_named_once(chat):
    config = EvaluationConfig.model_validate({"judge": [chat.seat, chat.seat]})
    with pytest.raises(ConfigError, match="ai:m is named twice"):
        judges_together([outside_judge(seat) for seat in config.judge])


@pytest.mark.parametrize("kind", ["reward_model", "ai"])
def test_what_the_policy_was_optimised_against_is_no_judge(
    kind, chat, stage_config, saved_models, tmp_path, small_splits
):
    path, sha256 = saved_models["reward"]
    reward = ModelRef(
        name="r", version="", uri=str(path), path=path, sha256=sha256, kind="scalar", run_id=""
    )
    policy = reward.model_copy(update={"uri": "elsewhere", "kind": "causal", "sha256": "b" * 64})
    copy = shutil.copytree(path, tmp_path / "copy")
    seat = chat.seat if kind == "ai" else {"kind": "reward_model", "model": str(copy)}
    (small_splits.directory / "annotators.csv").write_text("annotator,num_votes\nann,3\nai:m,9\n")
    told = {"ai": r"ai:m voted on pairs .*data.votes.exclude", "reward_model": "optimised against"}
    own = reward.model_copy(update={"sha256": "a" * 64, "uri": "judge"})
    judge = refs_of(with_judges(stage_config(), ["run", seat]), own)
    with pytest.raises(RegistryError, match=told[kind]):
        require_independent_judge(judge, policy, reward, small_splits)


def test_an_ai_judge_promotes_and_its_identity_and_votes_are_on_record(
    chat, four_models, stage_config, stage_context, small_splits
):
    config = with_judges(stage_config(), chat.seat)
    evaluate_sft(config, small_splits, four_models["sft"], stage_context)
    evaluate_reward(config, small_splits, four_models["reward"], stage_context)
    judge = refs_of(config)
    champion = four_models["sft"].model_copy(update={"uri": "models:/rlhf-policy/9"})
    models = {**four_models, "judge": judge, "champion": champion}
    result = evaluate_policy(config, small_splits, context=stage_context, **models)
    rows = read_records(result.report.samples, ComparedAnswer)
    for row in rows:
        assert row.won == longer([row.policy], [row.sft])[0] == row.judges["ai:m"]
        assert row.champion_won == 0.5
        assert row.won_over_champion == row.won
    # Eight of the twelve held-out pairs are won by the longer answer.
    assert result.report.judge_accuracy.value == pytest.approx(8 / 12)
    assert (result.report.judge, result.report.metrics["policy/judge_gain"].num_samples) == (
        "ai:m", 12,
    )  # fmt: skip
    assert "policy/win_rate_over_champion" in result.report.breakdown["style=terse"]
    tags = mlflow_client().get_model_version("rlhf-policy", "1").tags
    assert tags["rlhf.judge"] == "ai:m"
    assert "judge" not in upstream_uris("models:/rlhf-policy/1")
    release = release_of("models:/rlhf-policy/1", tags, parts_of("rlhf", tags))
    assert (release.judge, release.judged_by) == (None, "ai:m")
    run_id = tags["rlhf.verdict_run"]
    kept = mlflow_client().list_artifacts(run_id, "evaluation/votes")
    assert len(kept) == 1

    asked = len(chat.asked)
    gate = {"metric": "judge/heldout_accuracy", "at_least": 0.9, "min_samples": 5}
    stricter = with_judges(stage_config(judge=[gate]), chat.seat)
    held = evaluate_policy(stricter, small_splits, context=stage_context, **models)
    assert len(chat.asked) == asked
    assert held.decision.verdict == "HOLD"
    assert "the judge ai:m does not pass its gate" in " ".join(held.decision.reasons)
