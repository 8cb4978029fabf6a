"""KTO on labelled responses: the paired form's numbers, other prompts' KL, imbalance told."""

import logging
from dataclasses import replace

import pytest
import torch

from rlhf_core.config import DpoConfig
from rlhf_core.errors import DataError
from rlhf_core.functional.dpo import unpaired_kto_loss
from rlhf_core.models import load_causal
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.dpo import DpoObjective, mismatched
from rlhf_core.trainers.kto import (
    KtoObjective,
    examples_of_pairs,
    fit_kto,
    mismatched_examples,
    warn_of_imbalance,
)
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.preference import places_of_other_prompts
from tests.trainers.toys import OPTIMIZER, ListTracker, toy_pairs

SETTINGS = DpoConfig(loss="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)


def test_pairs_taken_apart_give_the_loss_and_gradient_of_the_paired_form(causal_directory):
    pairs = toy_pairs(5)
    examples = list(examples_of_pairs(pairs))
    others = mismatched_examples(examples)
    drift = torch.randn(5, 4)
    found = []
    for apart in (False, True):
        policy = load_causal(causal_directory)
        if apart:
            objective = KtoObjective(policy, SETTINGS)
            reference = objective.reference_logprobs(policy, examples, others)
            moved = torch.stack([drift[:, :2].flatten(), drift[:, 2:].flatten()], dim=1)
            measures, _ = objective.accumulate(examples, reference - moved, others)
            again = objective.measure(examples, reference - moved, others)
            torch.testing.assert_close(again.losses, measures.losses)
        else:
            paired = DpoObjective(policy, SETTINGS)
            mixed = mismatched(pairs)
            reference = paired.reference_logprobs(policy, pairs, mixed)
            measures, _ = paired.accumulate(pairs, reference - drift, mixed)
        gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        found.append((measures.losses.mean(), gradients))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_weights_and_labels_by_hand():
    rewards, labels = torch.tensor([0.4, 0.4, -1.0]), torch.tensor([True, False, False])
    losses = unpaired_kto_loss(
        rewards, labels, torch.tensor(0.1), desirable_weight=2.0, undesirable_weight=3.0
    )
    # w (1 - sigmoid(r - z)) and w (1 - sigmoid(z - r)) of the paper.
    expected = [2 * (1 - 0.574442516812), 3 * 0.574442516812, 3 * 0.249739894404]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_the_kl_is_of_responses_to_other_prompts():
    pairs = toy_pairs(12, prompts=3)
    examples = sorted(examples_of_pairs(pairs), key=lambda row: row.prompt_ids.tobytes())
    own = {(row.prompt_ids.tobytes(), row.response_ids.tobytes()) for row in examples}
    shifted = mismatched_examples(examples)
    assert [s.prompt_ids.tobytes() for s in shifted] == [e.prompt_ids.tobytes() for e in examples]
    assert not {(s.prompt_ids.tobytes(), s.response_ids.tobytes()) for s in shifted} & own
    with pytest.raises(DataError, match="one prompt"):
        mismatched_examples([replace(row, prompt_ids=examples[0].prompt_ids) for row in examples])


@pytest.mark.parametrize("grouped", [True, False])
def test_the_kl_of_pairs_is_of_responses_to_other_prompts(grouped):
    pairs = toy_pairs(12, prompts=3)
    if grouped:
        pairs = sorted(pairs, key=lambda pair: pair.prompt_ids.tobytes())
    prompts = [pair.prompt_ids.tobytes() for pair in pairs]
    givers = places_of_other_prompts(pair.prompt_ids for pair in pairs).tolist()
    assert all(prompts[giver] != own for giver, own in zip(givers, prompts, strict=True))
    for pair, other, giver in zip(pairs, mismatched(pairs), givers, strict=True):
        assert other.prompt_ids.tolist() == pair.prompt_ids.tolist()
        response, given = other.chosen_ids.tolist(), pairs[giver].chosen_ids.tolist()
        assert response == given[: len(response)]
    with pytest.raises(DataError, match="one prompt"):
        mismatched([replace(pair, prompt_ids=pairs[0].prompt_ids) for pair in pairs])


def test_imbalance_is_told_with_the_weights_that_mend_it(caplog):
    examples = list(examples_of_pairs(toy_pairs(12)))
    uneven = [row for index, row in enumerate(examples) if row.desirable or index < 6]
    with caplog.at_level(logging.WARNING):
        warn_of_imbalance(uneven, DpoConfig(loss="kto", undesirable_weight=4.0))
        assert not caplog.messages
        warn_of_imbalance(uneven, DpoConfig(loss="kto"))
    assert "12 desirable and 3 undesirable" in caplog.text
    assert "desirable_weight from 0.25 to 0.333" in caplog.text
    with pytest.raises(DataError, match="both labels"):
        warn_of_imbalance([row for row in examples if row.desirable], DpoConfig(loss="kto"))


def test_it_learns_from_labels_alone(causal_directory, tmp_path):
    tracker = ListTracker()
    train = list(examples_of_pairs(toy_pairs(48)))[::3]
    summary = fit_kto(
        load_causal(causal_directory),
        train,
        list(examples_of_pairs(toy_pairs(16, 1)))[::3],
        settings=DpoConfig(loss="kto", batch_size=8, num_epochs=12, optimizer=OPTIMIZER),
        run=TrainingRun(tracker=tracker, checkpoints=CheckpointStore(tmp_path), seed=0),
    )
    assert summary.metrics["policy/heldout_accuracy"] > 0.9
    assert summary.metrics["policy/heldout_margin"] > 0.0
    assert summary.metrics["policy/heldout_accuracy_at_start"] == 0.5
    assert len(tracker.series("policy/baseline")) == summary.num_steps
