"""A vLLM server's answers against this product's own pass over the same tokens."""

import math
import re
import threading
from socket import gethostname

import numpy as np
import pytest
import torch

from rlhf_core.adapters.endpoints import vllm_sampler
from rlhf_core.adapters.endpoints.vllm_sampler import VllmSampler, open_sampler, row_seed
from rlhf_core.config import VllmRolloutsConfig
from rlhf_core.errors import ModelError, RolloutError
from rlhf_core.models import known_ids, load_causal, token_logprobs
from rlhf_core.rollout.decode import Sampling
from rlhf_core.rollout.sampler import Draws
from rlhf_core.tokenization import pack_grouped_responses
from tests.rollout.conftest import VOCAB, save_random_model
from tests.rollout.vllm_server import hang, once, serving

EOS = 2
SAMPLING = Sampling(0.9, [EOS])
DRAWS = Draws(5, range(8), 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random_model("llama", tmp_path_factory.mktemp("engine") / "llama")


@pytest.fixture(scope="module")
def running(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture
def server(running):
    running.restart()
    running.faults.clear()
    running.asked.clear()
    running.versions.clear()
    return running


@pytest.fixture
def model(folder):
    """A policy that has moved from where the server began."""
    model = load_causal(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


@pytest.fixture
def settings(server, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_sampler, "FIRST_PATIENCE_SECONDS", 0.1)
    return VllmRolloutsConfig(
        engine="vllm",
        url=server.url,
        weights=tmp_path / "weights",
        timeout_seconds=60.0,
        patience_seconds=3.0,
    )


def sampled(settings, model, prompts, draws=DRAWS, sampling=SAMPLING):
    with open_sampler(settings) as sampler:
        return sampler.sample(model, prompts, draws=draws, sampling=sampling, budget=1_000)


def own_logprobs(model, prompts, decoded, temperature):
    lengths = decoded.lengths.tolist()
    answers = [
        row[:length].numpy().astype(np.int32)
        for row, length in zip(decoded.tokens, lengths, strict=True)
    ]
    batch = pack_grouped_responses(list(prompts), [[answer] for answer in answers])
    with torch.no_grad():
        return token_logprobs(model, batch, temperature=temperature)


def reported(decoded):
    mask = torch.arange(decoded.tokens.shape[1]) < decoded.lengths[:, None]
    return decoded.logprobs[mask]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_engines_logprobs_are_those_of_the_trained_weights(
    temperature, settings, model, prompts
):
    decoded = sampled(settings, model, prompts, sampling=Sampling(temperature, [EOS]))
    own = own_logprobs(model, prompts, decoded, temperature or 1.0)
    assert float((own - reported(decoded)).abs().max()) < 1e-4
    ended = decoded.tokens[torch.arange(8), decoded.lengths - 1] == EOS
    assert torch.equal(decoded.finished, ended)


def test_responses_do_not_depend_on_what_else_is_asked(settings, model, prompts, server):
    alone = sampled(settings.model_copy(update={"requests_at_once": 1}), model, prompts)
    everyone = threading.Barrier(len(prompts))  # it answers none before it has been asked all

    def wait(_, body):
        if body["max_tokens"] > 1:
            everyone.wait(5.0)

    server.faults["/v1/completions"] = wait
    together = sampled(settings, model, prompts)
    server.faults.clear()
    part = sampled(settings, model, prompts[3:5], draws=Draws(5, range(3, 5), 10))
    assert torch.equal(alone.tokens, together.tokens)
    assert torch.equal(alone.tokens[3:5], part.tokens)
    assert len({row_seed(seed, stream) for seed in range(9) for stream in range(9)}) == 81


def test_weights_are_sent_once_and_again_when_they_move(settings, model, prompts, server):
    with open_sampler(settings) as sampler:
        ask = {"draws": DRAWS, "sampling": SAMPLING, "budget": 1_000}
        sampler.sample(model, prompts, **ask)
        sampler.sample(model, prompts, **ask)
        assert server.asked.count("/collective_rpc") == 1
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)
        decoded = sampler.sample(model, prompts, **ask)
        assert server.asked.count("/collective_rpc") == 2
        assert len(list(settings.weights.glob("*/*"))) == 1  # the earlier ones are gone
    own = own_logprobs(model, prompts, decoded, 0.9)
    assert float((own - reported(decoded)).abs().max()) < 1e-4
    assert not list(settings.weights.iterdir())
    assert [version.partition(" ")[0] for version in server.versions[::2]] == ["loading"] * 2


def killed_while_it_wrote(weights):
    name = f"rollouts-{gethostname()}-0123456789abcdef"
    (weights / name / "version").mkdir(parents=True)
    (weights / f".{name}.lock").touch()


def test_each_process_deletes_its_own_weights_and_those_of_killed_ones(settings, model, prompts):
    killed_while_it_wrote(settings.weights)
    (settings.weights / "somebody-elses").mkdir()
    with open_sampler(settings) as one:
        one.sample(model, prompts, draws=DRAWS, sampling=SAMPLING, budget=1_000)
        (ours,) = settings.weights.glob("rollouts-*")
        assert ours.name != f"rollouts-{gethostname()}-0123456789abcdef"
        with open_sampler(settings) as other:  # of a process that was given other weights between
            one._server.request("POST", "update_weight_version", json={"new_version": "none"})
            other.sample(model, prompts, draws=DRAWS, sampling=SAMPLING, budget=1_000)
            assert len(list(settings.weights.glob("rollouts-*"))) == 2
        assert [path.name for path in ours.iterdir()]
    assert [path.name for path in settings.weights.iterdir()] == ["somebody-elses"]


def test_a_server_that_was_left_paused_goes_on(settings, model, prompts, server):
    expected = sampled(settings, model, prompts)
    server.restart()
    server.version, server.paused = "loading 0123456789abcdef", True
    assert torch.equal(sampled(settings, model, prompts).tokens, expected.tokens)


def test_adapters_are_merged_for_the_server_and_stay_adapters_here(settings, folder, prompts):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    adapted = peft.PeftModel(load_causal(folder), peft.LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    decoded = sampled(settings, adapted, prompts)
    own = own_logprobs(adapted, prompts, decoded, 0.9)
    assert float((own - reported(decoded)).abs().max()) < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def forgets(server, _):
    """It died and was started again, while it was asked."""
    server.restart()


def drops(_, __):
    return None, None


@pytest.mark.parametrize(
    ("path", "fault", "patience"),
    [
        ("/v1/completions", forgets, {}),
        ("/v1/completions", drops, {}),
        ("/v1/completions", lambda *_: (503, {"error": "busy"}), {}),
        ("/collective_rpc", drops, {}),
        ("/v1/completions", hang(3.0), {"timeout_seconds": 2.0}),
    ],
    ids=["restarted", "dropped", "busy", "dropped-while-reading", "hangs"],
)
def test_a_lost_batch_is_asked_for_again(path, fault, patience, settings, model, prompts, server):
    expected = sampled(settings, model, prompts)
    server.restart()
    server.faults[path] = once(fault)
    found = sampled(settings.model_copy(update=patience), model, prompts)
    assert torch.equal(found.tokens, expected.tokens)
    assert float((reported(found) - reported(expected)).abs().max()) < 1e-6


def without_logprobs(server, body):
    return changed(logprobs=None)(server, body)


def changed(**changes):
    def fault(server, body):
        status, content = server.post_v1_completions(body)
        if status == 200:
            content["choices"][0].update(changes)
        return status, content

    return fault


def strange_version(server, _):
    return 200, {"weight_version": "of somebody else"}


REFUSED = {
    "no-logprobs": ("/v1/completions", without_logprobs, "gives no log-probabilities"),
    "no-token-ids": ("/v1/completions", changed(token_ids=None), "expected 1 to 10 tokens"),
    "other-prompt": ("/v1/completions", changed(prompt_token_ids=[7]), "other tokens than those"),
    "other-end": (
        "/v1/completions",
        changed(token_ids=[5], finish_reason="stop"),
        r"ends responses elsewhere than at \[2\]",
    ),
    "nan": (
        "/v1/completions",
        changed(token_ids=[EOS], logprobs={"token_logprobs": [math.nan]}),
        "not finite",
    ),
    "no-token": (
        "/v1/completions",
        changed(token_ids=[10**9, EOS], logprobs={"token_logprobs": [-1.0, -1.0]}),
        f"a token is none of the {VOCAB} of the model",
    ),
    "strange-logprobs": ("/v1/completions", changed(logprobs=[-1.0]), "gives no log-probabilities"),
    "key": (
        "/v1/completions",
        lambda *_: (401, {"error": "Unauthorized"}),
        "answers 401: Unauthorized. No key is sent to an engine: start it without --api-key",
    ),
    "broken": ("/v1/completions", lambda *_: (500, {"error": "bad"}), r"answers 500: bad \(pati"),
    "refused": (
        "/v1/completions",
        lambda *_: (400, {"error": {"message": "no such model"}}),
        "answers 400: .*no such model",
    ),
    "other-weights": ("/weight_info", strange_version, "expected [0-9a-f]{16}, found of somebody"),
    "no-dev-mode": (
        "/weight_info",
        lambda *_: (404, {"detail": "Not Found"}),
        "answers 404: Not Found.*VLLM_SERVER_DEV_MODE=1 vllm serve",
    ),
    "other-disk": (
        "/collective_rpc",
        lambda *_: (500, {"error": {"message": "no such folder"}}),
        "answers 500.*could not read .*policy.rollouts.weights",
    ),
    "hangs": ("/v1/completions", hang(1.0), "ReadTimeout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_in_one_line(case, settings, model, prompts, server):
    path, fault, said = REFUSED[case]
    server.faults[path] = fault
    patience = {"patience_seconds": 0.8, "timeout_seconds": 0.3 if case == "hangs" else 60.0}
    with pytest.raises(RolloutError, match=said) as refused:
        sampled(settings.model_copy(update=patience), model, prompts)
    assert "\n" not in str(refused.value)
    assert "no key was sent" not in str(refused.value)
    assert re.match(r"policy\.rollouts: http://127\.0\.0\.1:\d+", str(refused.value))


def test_a_server_that_is_not_there_is_told_soon(settings, model, prompts):
    lost = settings.model_copy(update={"url": "http://127.0.0.1:9"})
    with pytest.raises(RolloutError, match=r"Connect.*A server is started with: .*--port 9 "):
        sampled(lost, model, prompts)


def test_a_smaller_vocabulary_is_refused(settings):
    sampler = VllmSampler(settings)
    sampler.require_vocabulary(VOCAB)
    with pytest.raises(RolloutError, match=f"another model .* fewer than the {VOCAB + 1} tokens"):
        sampler.require_vocabulary(VOCAB + 1)
    sampler.close()


def test_rows_that_embeddings_are_padded_with_are_never_drawn(settings, model, prompts, server):
    """As in Qwen's and Phi's models: the server's vocabulary is larger than the tokenizer's."""
    free = sampled(settings, model, prompts, sampling=Sampling(2.0, [EOS]))
    known, gap = 31, 7
    assert (free.tokens >= known).any()
    setattr(model, known_ids._KNOWN, known)
    setattr(model, known_ids._GAPS, (gap,))
    short = [prompt % known for prompt in prompts]
    decoded = sampled(settings, model, short, sampling=Sampling(2.0, [EOS]))
    assert decoded.tokens.max() < known
    assert not (decoded.tokens == gap).any()
    own = own_logprobs(model, short, decoded, 2.0)
    assert float((own - reported(decoded)).abs().max()) < 1e-4
    answer = {"token_ids": [gap, EOS], "logprobs": {"token_logprobs": [-1.0, -1.0]}}
    server.faults["/v1/completions"] = changed(**answer)
    with pytest.raises(RolloutError, match=f"a token is none of the {known - 1} of the model"):
        sampled(settings, model, short)


def test_what_does_not_fit_the_server_is_not_asked(settings, model, prompts):
    with pytest.raises(ModelError, match=r"11 tokens and 60 new ones need 71 .* server has 64"):
        sampled(settings, model, prompts, draws=Draws(5, range(8), 60))


def test_no_password_and_no_path_in_the_address():
    with pytest.raises(ValueError, match="no user and password"):
        VllmRolloutsConfig(engine="vllm", url="http://me:secret@host:8000")
    with pytest.raises(ValueError, match="without /v1"):
        VllmRolloutsConfig(engine="vllm", url="http://host:8000/v1/")
