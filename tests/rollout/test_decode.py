"""The decode loop against the plainest possible sampler: the whole sequence again every token."""

import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.config import ComputeConfig
from rlhf_core.errors import DataError, ModelError
from rlhf_core.models import hidden_states, load_causal, prepare_training, token_logprobs
from rlhf_core.rollout.decode import Sampling, decode
from rlhf_core.rollout.kv_block import KvBlock
from rlhf_core.rollout.sampling import sequence_uniforms
from rlhf_core.tokenization import pack_responses

EOS = [2, 5, 9, 17]


def answer(model, prompts, uniforms, *, budget=10_000, temperature=1.0, eos_ids=EOS, **options):
    sampling = Sampling(temperature, eos_ids, **options)
    return decode(model, prompts, uniforms=uniforms, sampling=sampling, budget=budget)


def responses_of(decoded):
    return [
        decoded.tokens[row, :length].numpy().astype(np.int32)
        for row, length in enumerate(decoded.lengths.tolist())
    ]


@torch.no_grad()
def plain_sample(model, prompt, uniforms, temperature):
    """One sequence, no cache, no batch, probabilities in float64."""
    tokens, logprobs = prompt.tolist(), []
    for uniform in uniforms.tolist():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double()
        probabilities = torch.softmax(logits / temperature, 0) if temperature else logits
        if temperature:
            token = int((probabilities.cumsum(0) <= uniform).sum())
        else:
            token = int(probabilities.argmax())
        logprobs.append(torch.log_softmax(logits / (temperature or 1.0), 0)[token].item())
        tokens.append(token)
        if token in EOS:
            break
    return tokens[len(prompt) :], logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_responses_equal_those_of_a_sampler_without_cache_or_batch(
    any_directory, prompts, temperature
):
    uniforms = sequence_uniforms(11, range(len(prompts)), 12)
    decoded = answer(
        load_causal(any_directory),
        prompts,
        uniforms,
        temperature=temperature,
    )
    plain = hf.AutoModelForCausalLM.from_pretrained(
        any_directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    lengths = set()
    for row, prompt in enumerate(prompts):
        tokens, logprobs = plain_sample(plain, prompt, uniforms[row], temperature)
        length = int(decoded.lengths[row])
        lengths.add(length)
        assert decoded.tokens[row, :length].tolist() == tokens
        torch.testing.assert_close(
            decoded.logprobs[row, :length], torch.tensor(logprobs), atol=1e-4, rtol=1e-4
        )
        assert bool(decoded.finished[row]) == (tokens[-1] in EOS)
    assert len(lengths) > 1, "the test wants rows that end at different steps"


def test_sampler_and_trainer_agree_on_every_logprob(llama, prompts):
    uniforms = sequence_uniforms(1, range(len(prompts)), 20)
    decoded = answer(llama, prompts, uniforms, temperature=0.8)
    batch = pack_responses(prompts, responses_of(decoded))
    with torch.no_grad():
        again = token_logprobs(llama, batch, temperature=0.8)
    sampled = decoded.logprobs[torch.arange(20) < decoded.lengths[:, None]]
    torch.testing.assert_close(again, sampled, atol=2e-5, rtol=0)


def test_a_response_does_not_depend_on_its_neighbours(llama, prompts):
    uniforms = sequence_uniforms(5, range(len(prompts)), 16)
    together = answer(llama, prompts, uniforms)
    order = [6, 0, 3, 7, 1, 5, 2, 4]
    shuffled = answer(
        llama,
        [prompts[i] for i in order],
        uniforms[order],
    )
    for row, source in enumerate(order):
        alone = answer(
            llama,
            [prompts[source]],
            uniforms[source : source + 1],
        )
        length = int(alone.lengths[0])
        for other, index in ((together, source), (shuffled, row)):
            assert int(other.lengths[index]) == length
            assert torch.equal(other.tokens[index, :length], alone.tokens[0, :length])
            torch.testing.assert_close(
                other.logprobs[index, :length], alone.logprobs[0, :length], atol=1e-5, rtol=0
            )


def test_nothing_follows_eos_and_the_rest_is_cut_at_the_limit(llama, prompts):
    uniforms = sequence_uniforms(2, range(len(prompts)), 9)
    decoded = answer(llama, prompts, uniforms)
    for response, finished in zip(responses_of(decoded), decoded.finished.tolist(), strict=True):
        ends = np.isin(response, EOS)
        assert not ends[:-1].any()
        assert bool(ends[-1]) == finished
        assert finished or len(response) == 9
    assert decoded.finished.any()
    assert not decoded.finished.all()


def test_without_eos_every_row_runs_to_the_limit(llama, prompts):
    uniforms = sequence_uniforms(2, range(len(prompts)), 5)
    decoded = answer(llama, prompts, uniforms, eos_ids=[])
    assert decoded.lengths.tolist() == [5] * len(prompts)
    assert not decoded.finished.any()


def test_two_runs_give_the_same_bits(llama, prompts):
    uniforms = sequence_uniforms(2, range(len(prompts)), 9)
    first, second = (answer(llama, prompts, uniforms) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.logprobs, second.logprobs)


def test_the_models_own_attention_is_put_back(llama, prompts):
    before = llama.config._attn_implementation
    answer(llama, prompts, torch.zeros(8, 2))
    assert llama.config._attn_implementation == before
    with pytest.raises(DataError):
        answer(llama, [prompts[0][:0]], torch.zeros(1, 2))
    assert llama.config._attn_implementation == before


def test_too_long_a_response_is_refused_before_any_work(llama, prompts):
    with pytest.raises(ModelError, match="prompt of 11 tokens and 60 new ones need 71 positions"):
        answer(llama, prompts, torch.zeros(8, 60))


def test_a_repeated_prompt_is_read_once_and_answered_as_if_it_were_not(llama, prompts):
    repeated = [prompts[1], prompts[1], prompts[3], prompts[1].copy(), prompts[0]]
    uniforms = sequence_uniforms(4, range(5), 10)
    read = []
    hook = llama.model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    together = answer(llama, repeated, uniforms)
    hook.remove()
    assert read[0] == sum(len(prompts[i]) for i in (1, 3, 0))
    for row, prompt in enumerate(repeated):
        alone = answer(llama, [prompt], uniforms[row : row + 1])
        length = int(alone.lengths[0])
        assert torch.equal(together.tokens[row, :length], alone.tokens[0, :length])
        torch.testing.assert_close(
            together.logprobs[row, :length], alone.logprobs[0, :length], atol=1e-5, rtol=0
        )


def test_value_head_reads_the_state_before_each_token(llama, prompts):
    head = torch.nn.Linear(32, 1)
    decoded = answer(
        llama,
        prompts,
        sequence_uniforms(4, range(8), 10),
        value_head=lambda hidden: head(hidden).squeeze(-1),
    )
    batch = pack_responses(prompts, responses_of(decoded))
    with torch.no_grad():
        hidden = hidden_states(llama, batch)[batch.predictor_positions]
        expected = head(hidden).squeeze(-1)
    mask = torch.arange(10) < decoded.lengths[:, None]
    torch.testing.assert_close(decoded.values[mask], expected, atol=1e-4, rtol=1e-4)


def block_of(inputs):
    return next(value for value in inputs.values() if isinstance(value, KvBlock))


@pytest.mark.parametrize(("budget", "turns"), [(10_000, 1), (50, 4), (1, 8)])
def test_a_budget_makes_rows_take_turns_and_answers_stay(llama, prompts, budget, turns):
    uniforms = sequence_uniforms(5, range(len(prompts)), 12)
    blocks = []
    hook = llama.model.register_forward_pre_hook(
        lambda _, __, inputs: blocks.append(block_of(inputs).window), with_kwargs=True
    )
    decoded = answer(llama, prompts, uniforms, budget=budget)
    hook.remove()
    together = answer(llama, prompts, uniforms)
    assert len(set(map(id, blocks))) == turns
    for name in ("tokens", "lengths", "finished"):
        assert torch.equal(getattr(decoded, name), getattr(together, name))
    torch.testing.assert_close(decoded.logprobs, together.logprobs, atol=1e-5, rtol=0)


def test_keys_are_kept_in_the_precision_of_values(llama, prompts):
    model = load_causal(llama.name_or_path)
    model = prepare_training(model, ComputeConfig(precision="bfloat16"), seed=0)
    kept = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, inputs: kept.append(block_of(inputs).blocks[0]), with_kwargs=True
    )
    answer(model, prompts, sequence_uniforms(5, range(len(prompts)), 4))
    hook.remove()
    assert {states.dtype for states in kept[0].states} == {torch.bfloat16}
