"""Reward and value models: where the score is read, how the head starts, what other tools see."""

import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.errors import DataError, ModelError, StorageError
from rlhf_core.models import (
    load_scalar,
    save_model,
    scalar_from_causal,
    sequence_scores,
    set_reward_shift,
    token_values,
    weights_sha256,
)
from rlhf_core.models.scalar import scalar_head
from rlhf_core.tokenization import pack_grouped_responses, pack_responses
from tests.models.conftest import FakeTokenizer


def ids(*tokens):
    return np.asarray(tokens, dtype=np.int32)


PROMPT, FIRST, SECOND = ids(1, 5, 6, 7), ids(8, 9, 2), ids(10, 2)


def test_the_head_starts_with_the_documented_spread(llama_directory):
    weight = scalar_head(scalar_from_causal(llama_directory, seed=0)).weight
    assert weight.shape == (1, 32)
    draws = torch.cat(
        [scalar_head(scalar_from_causal(llama_directory, seed=s)).weight for s in range(20)]
    )
    assert draws.std().item() == pytest.approx(1 / 33**0.5, rel=0.1)
    again = scalar_head(scalar_from_causal(llama_directory, seed=0)).weight
    assert torch.equal(weight, again)


def test_making_a_head_leaves_the_global_generator_alone(llama_directory):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    scalar_from_causal(llama_directory, seed=1)
    assert torch.equal(torch.rand(3), expected)


@torch.no_grad()
def test_other_tools_read_the_same_score_before_the_shift(llama_directory, tmp_path):
    model = scalar_from_causal(llama_directory, seed=0)
    set_reward_shift(model, 0.75)
    save_model(model, FakeTokenizer(), tmp_path / "reward")
    ours = sequence_scores(
        load_scalar(tmp_path / "reward"), pack_responses([PROMPT, PROMPT], [FIRST, SECOND])
    )
    theirs = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    rows = torch.tensor([[1, 5, 6, 7, 8, 9, 2], [1, 5, 6, 7, 10, 2, 0]])
    scores = theirs(input_ids=rows, attention_mask=(rows != 0).long()).logits.squeeze(1)
    torch.testing.assert_close(ours, scores - 0.75, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_score_does_not_depend_on_neighbours_or_sharing(llama_directory):
    model = scalar_from_causal(llama_directory, seed=0)
    alone = torch.cat(
        [sequence_scores(model, pack_responses([PROMPT], [r])) for r in (FIRST, SECOND)]
    )
    packed = sequence_scores(model, pack_responses([PROMPT, PROMPT], [FIRST, SECOND]))
    shared = sequence_scores(model, pack_grouped_responses([PROMPT], [[FIRST, SECOND]]))
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_value_of_a_token_is_read_before_it(llama_directory):
    model = scalar_from_causal(llama_directory, seed=0)
    values = token_values(model, pack_responses([PROMPT], [FIRST]))
    other_end = token_values(model, pack_responses([PROMPT], [ids(8, 9, 50)]))
    at_prompt_end = sequence_scores(model, pack_responses([PROMPT[:-1]], [PROMPT[-1:]]))
    assert values.shape == (3,)
    assert torch.equal(values, other_end)
    torch.testing.assert_close(values[:1], at_prompt_end, atol=1e-5, rtol=1e-5)


def test_a_pad_that_is_eos_is_forgotten(tmp_path):
    config = hf.GPT2Config(
        vocab_size=97, n_embd=16, n_layer=1, n_head=2, eos_token_id=2, pad_token_id=2
    )
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert scalar_from_causal(tmp_path, seed=0).config.pad_token_id is None


def test_what_is_no_reward_model_of_ours_is_not_taken_for_one(llama_directory, tmp_path):
    with pytest.raises(ModelError, match=r"no weights for score\.weight; .* of another kind"):
        load_scalar(llama_directory)
    theirs = hf.AutoModelForSequenceClassification.from_pretrained(llama_directory, num_labels=1)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelError, match="reward_shift"):
        load_scalar(tmp_path / "theirs")


def test_saving_twice_gives_the_same_weights_file(llama_directory, tmp_path):
    model = scalar_from_causal(llama_directory, seed=0)
    first = save_model(model, FakeTokenizer(), tmp_path / "a")
    again = save_model(load_scalar(tmp_path / "a"), FakeTokenizer(), tmp_path / "b")
    assert first == again == weights_sha256(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_saving_over_an_old_model_replaces_it_whole(llama_directory, tmp_path):
    target = tmp_path / "model"
    save_model(scalar_from_causal(llama_directory, seed=1), FakeTokenizer(), target)
    (target / "stale.safetensors").write_bytes(b"old")
    digest = save_model(scalar_from_causal(llama_directory, seed=0), FakeTokenizer(), target)
    assert weights_sha256(target) == digest
    assert not (target / "stale.safetensors").exists()


def test_what_is_no_model_is_not_saved_over(llama_directory, tmp_path):
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis\.txt'"):
        save_model(scalar_from_causal(llama_directory, seed=0), FakeTokenizer(), papers)
    assert (papers / "thesis.txt").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_model(llama_directory, tmp_path):
    class Broken:
        def save_pretrained(self, directory):
            raise Exception("No space left on device (os error 28)")  # as tokenizers say it

    model = scalar_from_causal(llama_directory, seed=0)
    digest = save_model(model, FakeTokenizer(), tmp_path / "model")
    with pytest.raises(
        StorageError, match="model cannot be written: No space left on device; free"
    ):
        save_model(model, Broken(), tmp_path / "model")
    assert weights_sha256(tmp_path / "model") == digest
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_directory_without_weights_has_no_digest(tmp_path):
    with pytest.raises(ModelError, match="safetensors"):
        weights_sha256(tmp_path)
