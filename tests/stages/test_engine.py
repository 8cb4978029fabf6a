"""Evaluation, collection and the settings of an engine that samples."""

import pytest
import torch

from rlhf_core.config import GateConfig, config_digest
from rlhf_core.errors import DivergedError, MissingMetricError, RolloutError
from rlhf_core.feedback.collection import PAIRS
from rlhf_core.models import load_causal, token_logprobs
from rlhf_core.schema import Comparison, Message, ModelRef, Prompt
from rlhf_core.stages import evaluate
from rlhf_core.stages.collect import collect_pairs
from rlhf_core.stages.evaluation.compare import distances, sample_answers
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.storage.records import read_records, write_records
from rlhf_core.tokenization import pack_grouped_responses
from rlhf_flows.commands import doctor
from tests.rollout.vllm_server import serving
from tests.stages.conftest import BASE, judged

SIMULATED = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}


def asked(number):
    return (Message(role="user", content=f"Is door {number} of the old mill open?"),)


@pytest.fixture(scope="module")
def server():
    with serving(BASE) as server:
        yield server


@pytest.fixture
def config(stage_config, server, tmp_path):
    server.faults.clear()
    server.asked.clear()

    def make(**changes):
        raw = stage_config().model_dump(mode="json")
        raw["policy"]["rollouts"] = {
            "engine": "vllm",
            "url": server.url,
            "weights": str(tmp_path / "weights"),
            "patience_seconds": 0.5,
            **changes,
        }
        raw["policy"]["max_new_tokens"] = 8
        fresh = tmp_path / "fresh.jsonl"
        write_records(fresh, [Prompt(prompt_id=f"f{i}", prompt=asked(i)) for i in range(4)])
        raw["feedback"] = {
            "labeler": SIMULATED,
            "output": str(tmp_path / "collected"),
            "prompts": str(fresh),
        }
        return type(stage_config()).model_validate(raw)

    return make


def test_evaluation_asks_the_engine_about_the_weights_it_evaluates(
    config, server, saved_models, small_splits
):
    folder, _ = saved_models["policy"]
    model, renderer = load_causal(folder), model_renderer(folder)
    prompts = [row.prompt for row in read_records(small_splits.prompts_train, Prompt)[:4]]
    answers = sample_answers(
        config(), model, renderer.tokenizer, prompts, purpose="evaluate", label="answers"
    )
    assert server.asked.count("/v1/completions") == 4 + 1  # and the vocabulary
    batch = pack_grouped_responses(
        [renderer.prompt_ids(prompt) for prompt in prompts],
        [[torch.tensor(answer.token_ids, dtype=torch.int32).numpy()] for answer in answers],
    )
    with torch.no_grad():
        own = token_logprobs(model, batch, temperature=config().evaluation.temperature or 1.0)
    theirs = torch.tensor([one for answer in answers for one in answer.logprobs])
    assert float((own - theirs).abs().max()) < 1e-4


def reporting(shift):
    """Log-probabilities that are so much lower than those drawn by."""

    def fault(server, body):
        status, content = server.post_v1_completions(body)
        said = content["choices"][0]["logprobs"]
        said["token_logprobs"] = [one - shift for one in said["token_logprobs"]]
        return status, content

    return fault


def test_the_kl_is_between_the_models_whatever_the_engine_reports(
    config, server, saved_models, small_splits
):
    folder, _ = saved_models["sft"]
    model, renderer = load_causal(folder), model_renderer(folder)
    prompts = [row.prompt for row in read_records(small_splits.prompts_train, Prompt)[:4]]
    rendered = [renderer.prompt_ids(prompt) for prompt in prompts]

    def kl_from_itself():
        how = {"purpose": "evaluate", "label": "answers"}
        answers = sample_answers(config(), model, renderer.tokenizer, prompts, **how)
        return distances(config(), model, rendered, answers)[1]

    server.faults["/v1/completions"] = reporting(0.05)
    for estimate in kl_from_itself():
        assert estimate == pytest.approx(0.0, abs=1e-4)
    server.faults["/v1/completions"] = reporting(0.5)
    with pytest.raises(DivergedError, match=r"differ by 0\.5 nats .*max_logprob_difference 0\.1"):
        kl_from_itself()


def test_an_engine_answers_once_what_a_look_asks(
    config, server, proven_models, stage_context, small_splits
):
    first = judged(config(), small_splits, proven_models, stage_context)
    assert first.report.look.sampling.endswith("tokens, by vllm")
    asked = server.asked.count("/v1/completions")
    again = judged(config(), small_splits, proven_models, stage_context)
    assert server.asked.count("/v1/completions") == asked
    assert again.report.metrics == first.report.metrics
    assert again.report.look.measured_by
    gate = {"metric": "policy/win_rate", "at_least": 0.5, "confidence": 0.9, "min_samples": 5}
    stricter = config()
    gates = stricter.gates.model_copy(update={"policy": (GateConfig.model_validate(gate),)})
    with pytest.raises(MissingMetricError, match="an engine elsewhere does not draw the same"):
        judged(
            stricter.model_copy(update={"gates": gates}), small_splits, proven_models, stage_context
        )


@pytest.mark.nightly
def test_an_evaluation_that_was_killed_goes_on_from_the_answers_it_drew(
    config, server, proven_models, stage_context, small_splits, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    settings = config()
    best_of_two = settings.evaluation.model_copy(update={"best_of_n": 2})
    settings = settings.model_copy(update={"evaluation": best_of_two})
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "write_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            judged(settings, small_splits, proven_models, stage_context)
    asked = server.asked.count("/v1/completions")
    assert asked
    judged(settings, small_splits, proven_models, stage_context)
    assert server.asked.count("/v1/completions") == asked


def test_collection_asks_the_engine_and_bears_its_name(config, server, saved_models, small_splits):
    path, sha256 = saved_models["policy"]
    policy = ModelRef(
        name="policy", version="1", uri="models:/policy/1", path=path, sha256=sha256,
        kind="causal", run_id="r",
    )  # fmt: skip
    found = collect_pairs(config(), small_splits, [policy])
    assert server.asked.count("/v1/completions") > 2 * found.collection.counts.pairs
    assert read_records(found.folder / PAIRS, Comparison)
    so_far = len(server.asked)
    assert collect_pairs(config(requests_at_once=2), small_splits, [policy]) == found
    assert len(server.asked) == so_far
    server.faults["/v1/completions"] = lambda *_: (None, None)
    other = policy.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(RolloutError, match=r"policy\.rollouts: http.*repeat the command"):
        collect_pairs(config(), small_splits, [other])
    assert len([one for one in found.folder.parent.iterdir() if one.is_dir()]) == 1


def test_where_the_engine_is_decides_nothing_and_which_it_is_does(config, stage_config):
    first = config_digest(config())
    assert config_digest(config(url="http://elsewhere:9000", timeout_seconds=1)) == first
    assert config_digest(config(max_importance_weight=3)) != first
    assert config_digest(stage_config()) != first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "sglang"}, "policy.*rollouts.*'transformers', 'vllm'"),
        ({"url": "localhost:8000"}, "String should match pattern"),
        ({"requests_at_once": 0}, "greater than or equal to 1"),
        ({"max_importance_weight": 0}, "greater than 0"),
    ],
)
def test_bad_settings_are_refused(config, changes, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        config(**changes)


def test_several_processes_are_refused(config):
    raw = config().model_dump(mode="json")
    raw["distributed"] = {"processes": 2}
    with pytest.raises(ValueError, match=r"rollouts.engine vllm needs .* in one process"):
        type(config()).model_validate(raw)


def test_doctor_looks_at_the_server(config, server, tmp_path):
    settings = tmp_path / "pipeline.json"
    settings.write_text(config().model_dump_json(exclude_none=True))
    (found,) = doctor._engine(settings)
    assert found.healthy, found.found
    assert found.found.startswith("vLLM 0.33.0 with policy at http://127.0.0.1")
    server.faults["/weight_info"] = lambda *_: (404, {"detail": "Not Found"})
    (found,) = doctor._engine(settings)
    assert not found.healthy
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in found.found
