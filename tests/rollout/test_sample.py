import pytest
import torch
import transformers as hf

from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import Message
from tests.rollout.conftest import LLAMA
from tests.tokenization.conftest import chatml

QUESTIONS = [
    (Message(role="user", content=text),)
    for text in ("Hello?", "How are you there?", "7", "Second: in two sentences", "Human")
]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    tokenizer = chatml()
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        **{
            **LLAMA,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "max_position_embeddings": 128,
        }
    )
    model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        model.lm_head.weight[tokenizer.eos_token_id] = model.lm_head.weight[:40].mean(0) * 3
    directory = tmp_path_factory.mktemp("speaker")
    model.save_pretrained(directory)
    return load_causal(directory), tokenizer


def ask(speaker, prompts=QUESTIONS, **changes):
    settings = {"max_new_tokens": 24, "temperature": 1.0, "seed": 0, **changes}
    return sample_responses(*speaker, prompts, **settings)


def test_text_is_what_the_tokens_say_without_the_end_mark(speaker):
    _, tokenizer = speaker
    answers = ask(speaker, QUESTIONS * 4)
    assert {answer.finished for answer in answers} == {True, False}
    for answer in answers:
        assert len(answer.logprobs) == len(answer.token_ids) <= 24
        assert (answer.token_ids[-1] == tokenizer.eos_token_id) == answer.finished
        assert tokenizer.eos_token not in answer.text
        assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_batch_size_does_not_change_an_answer(speaker):
    together = ask(speaker, batch_size=64)
    assert [a.token_ids for a in ask(speaker, batch_size=2)] == [a.token_ids for a in together]
    later = ask(speaker, QUESTIONS[2:], first_stream=2)
    assert [a.token_ids for a in later] == [a.token_ids for a in together[2:]]
    assert len({a.token_ids for a in together}) == len(QUESTIONS)


def test_seed_changes_the_answers_and_greedy_ignores_it(speaker):
    assert ask(speaker, seed=1) != ask(speaker, seed=0)
    assert ask(speaker, seed=0) == ask(speaker, seed=0)
    assert ask(speaker, seed=1, temperature=0.0) == ask(speaker, seed=0, temperature=0.0)


def test_the_same_prompt_twice_gets_two_answers(speaker):
    first, second = ask(speaker, [QUESTIONS[0]] * 2)
    assert first.token_ids != second.token_ids


def test_nobody_asked_nobody_answers(speaker):
    assert ask(speaker, []) == []


def test_the_model_is_left_as_it_was(speaker):
    model, _ = speaker
    model.train()
    ask(speaker)
    assert model.training
    model.eval()
    ask(speaker)
    assert not model.training
