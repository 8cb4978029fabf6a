"""A policy learns from functions, models from elsewhere and a scorer over HTTP together."""

import json
from types import SimpleNamespace

import pytest

from rlhf_core.adapters import http_client
from rlhf_core.adapters.endpoints.reward_endpoint import RewardEndpoint
from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import EndpointTermConfig, PpoConfig
from rlhf_core.errors import ConfigError, ModelError, RegistryError, RewardError
from rlhf_core.models import load_scalar, save_model, sequence_scores, set_reward_shift
from rlhf_core.models.classifier import Classifier
from rlhf_core.schema import Demonstration, Prompt
from rlhf_core.stages import policy
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.reward_terms import find_scorers, open_reward_terms, rewards_digest
from rlhf_core.storage.records import read_records, write_records
from rlhf_core.tokenization import pack_examples
from tests.feedback.servers import serving
from tests.stages.conftest import BASE, question

FUNCTION = """
def right(prompt, response, reference, conversation):
    assert conversation[-1]["content"] == prompt
    return float(reference in response)
"""


@pytest.fixture
def function(tmp_path, monkeypatch, stage_config):
    path = tmp_path / "rewards.py"
    path.write_text(FUNCTION)
    spec = f"{path}:right"
    monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", f"house_rater:rate,{spec}")
    return spec


@pytest.fixture
def scorer(monkeypatch):
    """Scores by the length; ``app.trouble`` comes first."""
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.01)

    def app(method, path, query, body, headers):
        app.asked.append((method, path, body, headers.get("Authorization")))
        if app.trouble:
            return app.trouble.pop(0)
        return 200, {"scores": [len(text) for text in body["responses"]]}

    app.asked, app.trouble = [], []
    with serving(app) as app.url:
        yield app


def ours(saved_models, shift, folder):
    model = load_scalar(saved_models["judge"][0])
    set_reward_shift(model, shift)
    save_model(model, model_renderer(BASE).tokenizer, folder)
    return model


def test_all_kinds_train_a_policy_together_and_each_is_logged(
    function,
    scorer,
    registered,
    saved_models,
    stage_config,
    stage_context,
    small_splits,
    tmp_path,
):
    models = registered(("sft", "reward", "judge"), run_id="earlier")
    ours(saved_models, 2.0, tmp_path / "theirs")
    rows = read_records(small_splits.prompts_train, Prompt)
    rows = [row.model_copy(update={"reference": "nine"}) for row in rows]
    write_records(small_splits.prompts_train.path, rows)
    config = stage_config()
    terms = [
        {"kind": "model"},
        {
            "kind": "model",
            "models": ["run", "models:/rlhf-reward/1", str(tmp_path / "theirs")],
            "combine": "worst",
        },
        {"kind": "function", "function": function, "weight": 0.5},
        {"kind": "endpoint", "url": f"{scorer.url}/score", "scale": True, "batch_size": 3},
    ]
    settings = PpoConfig.model_validate(
        {
            "rewards": terms, "num_iterations": 2, "rollout_batch_size": 4, "num_minibatches": 1,
            "critic_warmup_iterations": 0, "num_epochs": 1, "max_new_tokens": 8,
            "checkpoint_every": 5, "selection": {"num_prompts": 0},
        }
    )  # fmt: skip
    config = config.model_copy(update={"policy": settings})
    scorers = find_scorers(settings.rewards, lambda uri: models["reward"])
    result = policy.train_policy(
        config, small_splits, models["sft"], models["reward"], stage_context, scorers=scorers
    )
    client = mlflow_client()
    run = client.get_run(result.model.run_id)
    names = ["0_model", "1_model", "2_function_right", "3_endpoint"]
    logged = {name: run.data.metrics[f"policy/reward_term_{name}"] for name in names}
    assert logged["0_model"] == run.data.metrics["policy/reward_model_score"]
    assert logged["1_model"] <= logged["0_model"]
    assert 0 <= logged["2_function_right"] <= 1
    assert run.data.tags["rlhf.rewards_sha256"] == rewards_digest(settings.rewards, scorers)
    assert trace_lineage(result.model.uri).upstream["scorer_0"].model == "models:/rlhf-reward/1"
    assert len(scorer.asked) == 2 * 3
    method, path, body, _ = scorer.asked[0]
    assert (method, path, len(body["responses"])) == ("POST", "/score", 3)
    assert set(body["references"]) == {"nine"}
    assert body["conversations"][0][0] == {"role": "user", "content": body["prompts"][0]}


@pytest.mark.parametrize("says_shift", [True, False])
def test_a_model_is_asked_by_its_own_template(says_shift, saved_models, tmp_path, caplog):
    model = ours(saved_models, 2.0, tmp_path / "model")
    renderer = model_renderer(BASE)
    prompt, answer = question(0), "At nine."
    example = renderer.demonstration(
        Demonstration(demonstration_id="", prompt=prompt, response=answer)
    )
    expected = float(sequence_scores(model, pack_examples([example])).detach())
    path = tmp_path / "model" / "config.json"
    if not says_shift:
        settings = json.loads(path.read_text())
        del settings["reward_shift"]
        path.write_text(json.dumps(settings))
    terms = PpoConfig.model_validate(
        {"rewards": [{"kind": "model", "models": [str(path.parent)]}]}
    ).rewards
    prompts = [Prompt(prompt_id="a", prompt=prompt)]
    scorers = find_scorers(terms, None)
    with (
        caplog.at_level("INFO"),
        open_reward_terms(terms, scorers, prompts, renderer, device="cpu") as opened,
    ):
        (score,) = opened.terms[0].scorers
        (found,) = score(type("Answers", (), {"prompts": prompts, "texts": [answer]}))
    assert found == pytest.approx(expected + (0.0 if says_shift else 2.0), abs=1e-5)
    assert ("says no reward_shift: taken as 0" in caplog.text) != says_shift


def test_a_text_longer_than_the_model_reads_ends_the_run(saved_models, tmp_path):
    ours(saved_models, 0.0, tmp_path / "model")
    terms = PpoConfig.model_validate(
        {"rewards": [{"kind": "model", "models": [str(tmp_path / "model")], "max_length": 5}]}
    ).rewards
    prompts = [Prompt(prompt_id="a", prompt=question(0))]
    renderer = model_renderer(BASE)
    scorers = find_scorers(terms, None)
    with open_reward_terms(terms, scorers, prompts, renderer, device="cpu") as opened:
        (score,) = opened.terms[0].scorers
        with pytest.raises(RewardError, match=r"longer than 5 tokens \(max_length\)"):
            score(type("Answers", (), {"prompts": prompts, "texts": ["At nine."]}))


def test_what_is_no_reward_model_is_refused(tmp_path, four_models):
    def terms(name):
        return PpoConfig.model_validate({"rewards": [{"kind": "model", "models": [name]}]}).rewards

    with pytest.raises(RegistryError, match=r"judge.*policy.rewards.0.models names it"):
        find_scorers(terms("models:/rlhf-judge/1"), None)
    empty = tmp_path / "empty"
    empty.mkdir()
    for missing in (r"no config\.json in it", "no weights in it"):
        with pytest.raises(ModelError, match=missing):
            find_scorers(terms(str(empty)), None)
        (empty / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"score\.weight"):
        Classifier(BASE, max_length=None)


def test_another_text_of_a_function_is_another_reward(function, tmp_path):
    settings = PpoConfig.model_validate({"rewards": [{"kind": "function", "function": function}]})
    before = rewards_digest(settings.rewards, {})
    (tmp_path / "rewards.py").write_text(FUNCTION.replace("reference in", "not reference in"))
    assert rewards_digest(settings.rewards, {}) != before
    (tmp_path / "rewards.py").unlink()
    with pytest.raises(ConfigError, match=r"policy.rewards.0.*No such file"):
        rewards_digest(settings.rewards, {})


def test_a_judge_may_be_no_term_of_the_reward(stage_config, tmp_path):
    raw = stage_config().model_dump(mode="json")
    model = str(tmp_path / "rm")
    raw["policy"]["rewards"] = [{"kind": "model", "models": [model]}]
    raw["evaluation"]["judge"] = {"kind": "reward_model", "model": model}
    with pytest.raises(ValueError, match=r"policy.rewards.*judge"):
        type(stage_config()).model_validate(raw)


@pytest.mark.parametrize("answer", [{"scores": [1.0]}, {"scores": [1.0, "x"]}, [1.0, 2.0], {}])
def test_an_endpoint_that_gives_no_score_for_each_is_named(answer, scorer):
    scorer.trouble = [(200, answer)]
    endpoint = RewardEndpoint(
        "policy.rewards.0", EndpointTermConfig(kind="endpoint", url=scorer.url)
    )
    prompts = [Prompt(prompt_id="a", prompt=question(0))] * 2
    with pytest.raises(RewardError, match=r'rewards.0: http.*expected {"scores": \[2 finite'):
        endpoint.scores(prompts, ["a", "bc"])
    endpoint.close()


def test_a_busy_endpoint_is_asked_again_with_its_key_and_a_lost_one_named(scorer, monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_API_KEY", "secret\n")
    settings = EndpointTermConfig(kind="endpoint", url=scorer.url, patience_seconds=5)
    endpoint = RewardEndpoint("policy.rewards.0", settings)
    prompts = [Prompt(prompt_id="a", prompt=question(0))] * 2
    scorer.trouble = [(503, "busy"), (429, "slow down")]
    assert endpoint.scores(prompts, ["a", "bc"]) == [1.0, 2.0]
    assert {key for *_, key in scorer.asked} == {"Bearer secret"}
    scorer.trouble = [(403, "no")]
    with pytest.raises(RewardError, match=r"rewards.0: .* answers 403: .*key"):
        endpoint.scores(prompts, ["a", "bc"])
    endpoint.close()


def test_memory_counts_the_models_of_the_terms(
    stage_config, small_splits, saved_models, tmp_path, monkeypatch
):
    sft = SimpleNamespace(path=saved_models["sft"][0])
    job = TrainingJob.model_construct(
        role="policy", config=stage_config(), splits=small_splits, sft=sft, reward=sft,
        directory=tmp_path, checkpoints=tmp_path, scorers={"theirs": sft},
    )  # fmt: skip
    asked = []
    monkeypatch.setattr(policy, "require_memory", lambda *_, **models: asked.append(models))
    policy._require_memory(job)
    assert asked[0]["read"]["reward theirs"] == sft.path
