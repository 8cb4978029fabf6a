"""Reward model and DPO: the right loss, the right order, pairs of a prompt together."""

import math
import weakref
from dataclasses import replace
from itertools import chain

import pytest
import torch

from rlhf_core.config import DpoConfig, RewardConfig
from rlhf_core.errors import DataError
from rlhf_core.models import (
    load_causal,
    load_scalar,
    reward_shift,
    scalar_from_causal,
    sequence_scores,
    token_logprobs,
)
from rlhf_core.tokenization import TokenizedPair, pack_examples, pack_pairs, pack_responses
from rlhf_core.trainers import sft
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.dpo import DpoObjective, fit_dpo, mismatched, pair_logprobs
from rlhf_core.trainers.loop import TrainingRun, split_by_tokens
from rlhf_core.trainers.preference import (
    PairMeasures,
    length_bucket,
    pack_runs,
    pair_rows,
    plan_pair_batches,
    split_pairs_by_tokens,
)
from rlhf_core.trainers.reward import (
    Labels,
    accumulate_pairs,
    center_on_reference,
    fit_reward_model,
    measure_pairs,
)
from tests.trainers.toys import OPTIMIZER, ListTracker, ids, toy_examples, toy_pairs, train_stage


def test_reward_model_learns_and_reports(causal_directory, tmp_path):
    tracker = ListTracker()
    summary, model, _ = train_stage("reward", causal_directory, tmp_path, tracker, num_epochs=6)
    assert summary.metrics["reward/heldout_accuracy"] > 0.9
    assert summary.metrics["reward/heldout_loss"] < math.log(2)
    for name in ("loss", "accuracy", "margin", "learning_rate", "grad_norm", "tokens_per_second"):
        assert len(tracker.series(f"reward/{name}")) == summary.num_steps
    assert summary.metrics["reward/heldout_accuracy_equal_length"] > 0.9
    for name in ("loss", "accuracy", "margin"):
        first = tracker.series(f"reward/heldout_{name}")[0]
        assert summary.metrics[f"reward/heldout_{name}_at_start"] == first
    reference = toy_examples(8)
    scores = sequence_scores(model, pack_examples(reference)).detach()
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert summary.metrics["reward/shift"] == reward_shift(load_scalar(tmp_path / "model"))


def test_without_centring_the_shift_stays_zero(causal_directory, tmp_path):
    _, model, _ = train_stage("reward", causal_directory, tmp_path, center_on_reference=False)
    assert reward_shift(model) == 0.0


def test_centring_needs_reference_responses(causal_directory):
    with pytest.raises(DataError, match="reference"):
        center_on_reference(scalar_from_causal(causal_directory, seed=0), [], budget=100)


def test_reward_loss_by_hand(causal_directory):
    model, pairs = scalar_from_causal(causal_directory, seed=0), toy_pairs(6, prompts=3)
    scores = [
        [float(sequence_scores(model, pack_responses([p.prompt_ids], [r])).detach()) for r in both]
        for p in pairs
        for both in [(p.chosen_ids, p.rejected_ids)]
    ]
    hard = [math.log1p(math.exp(r - c)) for c, r in scores]
    soft = [
        -p.probability * -math.log1p(math.exp(r - c))
        + (1 - p.probability) * math.log1p(math.exp(c - r))
        for (c, r), p in zip(scores, pairs, strict=True)
    ]
    for expected, is_soft in ((hard, False), (soft, True)):
        measures, _ = accumulate_pairs(model, pairs, budget=30, labels=Labels(is_soft))
        torch.testing.assert_close(measures.losses, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    measured = measure_pairs(model, pairs, budget=1)
    torch.testing.assert_close(
        measured.margins, torch.tensor([c - r for c, r in scores]), atol=1e-5, rtol=1e-5
    )


def test_reward_loss_with_margins_and_smoothing_by_hand(causal_directory):
    model, pairs = scalar_from_causal(causal_directory, seed=0), toy_pairs(4)
    asked = [replace(pair, margin=0.5 * index) for index, pair in enumerate(pairs)]
    gaps = measure_pairs(model, pairs, budget=30).margins
    measures, _ = accumulate_pairs(model, asked, budget=30, labels=Labels(smoothing=0.1))
    for index, gap in enumerate(gaps.tolist()):
        asks = 0.5 * index  # of whichever response is better
        expected = 0.9 * math.log1p(math.exp(asks - gap)) + 0.1 * math.log1p(math.exp(asks + gap))
        assert float(measures.losses[index]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(measures.margins, gaps)
    assert list(pair_rows(asked)) != list(pair_rows(pairs))


def test_a_judge_is_measured_under_its_own_name(causal_directory, tmp_path):
    tracker = ListTracker()
    run = TrainingRun(0, tracker, CheckpointStore(tmp_path), role="judge")
    model, pairs = scalar_from_causal(causal_directory, seed=0), toy_pairs(8)
    settings = RewardConfig(num_epochs=1, batch_size=8, center_on_reference=False)
    summary = fit_reward_model(model, pairs, pairs, (), settings=settings, run=run)
    logged = {name for _, metrics in tracker.rows for name in metrics} | set(summary.metrics)
    assert {"judge/loss", "judge/heldout_accuracy"} < logged
    assert {name.partition("/")[0] for name in logged} == {"judge"}


def test_a_draw_counts_half():
    measures = PairMeasures(torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.zeros(4))
    assert measures.accuracy == 0.625


@pytest.mark.parametrize(
    ("chosen", "rejected", "bucket"),
    [(5, 10, "chosen_shorter"), (10, 10, "equal_length"), (19, 20, "equal_length")],
)
def test_length_buckets(chosen, rejected, bucket):
    assert length_bucket(TokenizedPair("x", ids(1), ids(*[3] * chosen), ids(*[3] * rejected))) == (
        bucket
    )
    if bucket == "chosen_shorter":
        swapped = TokenizedPair("x", ids(1), ids(*[3] * rejected), ids(*[3] * chosen))
        assert length_bucket(swapped) == "chosen_longer"


def test_pairs_of_one_prompt_stay_in_one_batch_and_all_are_used():
    pairs = toy_pairs(60, prompts=25)
    plan = plan_pair_batches(pairs, batch_size=8, num_epochs=1, seed=3)
    assert sorted(chain.from_iterable(plan)) == list(range(60))
    assert max(map(len, plan)) <= 8
    prompts = [{pairs[i].prompt_ids.tobytes() for i in batch} for batch in plan]
    assert sum(map(len, prompts)) == 25
    twice = plan_pair_batches(pairs, batch_size=8, num_epochs=2, seed=3)
    assert twice[: len(plan)] == plan
    assert twice[len(plan) :] != plan
    assert sorted(chain.from_iterable(twice[len(plan) :])) == list(range(60))
    assert plan != plan_pair_batches(pairs, batch_size=8, num_epochs=1, seed=4)


def test_a_prompt_with_more_pairs_than_a_batch_is_cut():
    plan = plan_pair_batches(toy_pairs(20, prompts=1), batch_size=8, num_epochs=1, seed=0)
    assert sorted(map(len, plan)) == [4, 8, 8]


def test_token_budget_counts_shared_parts_once():
    pairs = toy_pairs(12, prompts=3)
    pairs.sort(key=lambda pair: pair.prompt_ids.tobytes())
    total = pack_pairs(pairs).tokens.num_tokens
    assert len(split_pairs_by_tokens(pairs, budget=total)) == 1
    runs = split_pairs_by_tokens(pairs, budget=total - 1)
    assert len(runs) == 2
    assert list(chain.from_iterable(runs)) == pairs
    assert all(len(run) == 1 for run in split_pairs_by_tokens(pairs, budget=1))


def test_dpo_starts_at_log_two_and_learns(causal_directory, tmp_path):
    tracker = ListTracker()
    summary, policy, _ = train_stage("dpo", causal_directory, tmp_path, tracker, num_epochs=6)
    assert tracker.series("policy/heldout_loss")[0] == pytest.approx(math.log(2), rel=1e-6)
    assert tracker.series("policy/loss")[0] == pytest.approx(math.log(2), rel=1e-5)
    assert summary.metrics["policy/heldout_accuracy"] > 0.9
    for name in ("loss", "accuracy", "margin"):
        first = tracker.series(f"policy/heldout_{name}")[0]
        assert summary.metrics[f"policy/heldout_{name}_at_start"] == first
    start, pairs = load_causal(causal_directory), toy_pairs(16, 1)
    moved = pair_logprobs(policy, pairs, budget=500) - pair_logprobs(start, pairs, budget=500)
    margin = 0.1 * (moved[:, 0] - moved[:, 1]).mean()
    assert summary.metrics["policy/heldout_margin"] == pytest.approx(float(margin), rel=1e-3)


def test_dpo_by_hand_with_smoothing_and_soft_labels(causal_directory):
    policy, pairs = load_causal(causal_directory), toy_pairs(5)
    reference = torch.randn(5, 2)
    settings = DpoConfig(beta=0.3, label_smoothing=0.2, use_soft_labels=True)
    measures, _ = DpoObjective(policy, settings).accumulate(pairs, reference)
    for index, pair in enumerate(pairs):
        summed = [
            token_logprobs(policy, pack_responses([pair.prompt_ids], [response])).sum().item()
            for response in (pair.chosen_ids, pair.rejected_ids)
        ]
        gap = 0.3 * ((summed[0] - reference[index, 0]) - (summed[1] - reference[index, 1]))
        label = 0.8 * pair.probability + 0.2 * (1 - pair.probability)
        expected = label * math.log1p(math.exp(-gap)) + (1 - label) * math.log1p(math.exp(gap))
        assert float(measures.losses[index]) == pytest.approx(expected, rel=1e-4)


def by_hand(loss, beta, sums, reference, lengths, label=1.0):
    """One pair's loss by its paper, in Python's floats; ``sums`` and the others chosen first."""
    means = [value / length for value, length in zip(sums, lengths, strict=True)]
    ratios = [value - ref for value, ref in zip(sums, reference, strict=True)]
    mean_ratios = [ratio / length for ratio, length in zip(ratios, lengths, strict=True)]
    nll = lambda gap: math.log1p(math.exp(-gap))  # noqa: E731
    if loss == "ipo":
        return (mean_ratios[0] - mean_ratios[1] - 1 / (2 * beta)) ** 2
    if loss == "simpo":
        return nll(beta * (means[0] - means[1]) - 0.5)
    if loss == "orpo":
        odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in means]
        return -means[0] - beta * math.log(odds[0] / (odds[0] + odds[1]))
    gap = beta * (ratios[0] - ratios[1])
    if loss == "robust":
        return (0.8 * nll(gap) - 0.2 * nll(-gap)) / 0.6
    return nll(beta * (mean_ratios[0] - mean_ratios[1]))


FAMILY = {
    "ipo": {},
    "simpo": {},
    "orpo": {},
    "robust": {"label_smoothing": 0.2},
    "dpo": {"length_normalized": True},
}


@pytest.mark.parametrize("loss", FAMILY)
def test_the_family_by_hand(loss, causal_directory):
    policy, pairs = load_causal(causal_directory), toy_pairs(5)
    objective = DpoObjective(policy, DpoConfig(loss=loss, beta=0.3, **FAMILY[loss]))
    reference = torch.randn(5, 2)
    if loss in ("simpo", "orpo"):
        reference = objective.reference_logprobs(None, pairs)
    measures, _ = objective.accumulate(pairs, reference)
    for index, pair in enumerate(pairs):
        responses = (pair.chosen_ids, pair.rejected_ids)
        sums = [
            token_logprobs(policy, pack_responses([pair.prompt_ids], [response])).sum().item()
            for response in responses
        ]
        expected = by_hand(loss, 0.3, sums, reference[index].tolist(), list(map(len, responses)))
        assert float(measures.losses[index]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", [*FAMILY, "kto"])
def test_the_family_learns(loss, causal_directory, tmp_path):
    changes = {"loss": loss, "num_epochs": 6, **FAMILY.get(loss, {})}
    summary, _, _ = train_stage("dpo", causal_directory, tmp_path, ListTracker(), **changes)
    assert summary.metrics["policy/heldout_accuracy"] > 0.9


def test_kto_by_hand_against_responses_to_other_prompts(causal_directory):
    policy, pairs = load_causal(causal_directory), toy_pairs(5)
    settings = DpoConfig(loss="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    objective, others = DpoObjective(policy, settings), mismatched(pairs)
    assert [pair.prompt_ids.tolist() for pair in others] == [p.prompt_ids.tolist() for p in pairs]
    assert others[1].chosen_ids.tolist() == pairs[0].chosen_ids.tolist()
    sums = torch.tensor(
        [
            [
                token_logprobs(policy, pack_responses([pair.prompt_ids], [ids])).sum().item()
                for ids in (pair.chosen_ids, pair.rejected_ids)
            ]
            for pair in (*pairs, *others)
        ]
    )
    own, other = sums[:5], sums[5:]
    for drift in (0.7, -0.7):  # below 0 the baseline is 0
        reference = torch.cat([own - torch.randn(5, 2), other - drift], dim=1)
        measures, _ = objective.accumulate(pairs, reference, others)
        ratios, kl = own - reference[:, :2], max(drift, 0.0)
        # The paper's value functions, as TRL writes them.
        good = 1.5 * (1 - torch.sigmoid(0.3 * (ratios[:, 0] - kl)))
        bad = 0.5 * (1 - torch.sigmoid(0.3 * (kl - ratios[:, 1])))
        torch.testing.assert_close(measures.losses, (good + bad) / 2, rtol=1e-4, atol=1e-5)
        measured = objective.measure(pairs, reference, others)
        torch.testing.assert_close(measured.losses, measures.losses)


def test_mismatched_responses_are_no_longer_than_the_longest_sequence():
    long, short = TokenizedPair("", ids(*range(1, 9)), ids(3), ids(3)), toy_pairs(1)[0]
    wide = TokenizedPair("", ids(1), ids(*[3] * 9), ids(3))
    assert max(p.num_tokens for p in mismatched([wide, long, short])) <= max(
        p.num_tokens for p in (wide, long, short)
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "kto", "label_smoothing": 0.1}, "kto knows no label_smoothing"),
        ({"loss": "kto", "length_normalized": True}, "kto is per response"),
        ({"loss": "dpo", "desirable_weight": 2.0}, "dpo has no desirable_weight"),
        ({"loss": "robust"}, "label_smoothing above 0"),
        ({"loss": "orpo", "label_smoothing": 0.1}, "no label_smoothing"),
        ({"loss": "robust", "label_smoothing": 0.1, "use_soft_labels": True}, "soft labels"),
        ({"loss": "simpo", "length_normalized": False}, "leave length_normalized out"),
        ({"loss": "ipo", "target_margin": 1.0}, "no target_margin"),
    ],
)
def test_a_loss_refuses_settings_it_would_not_read(settings, said):
    with pytest.raises(ValueError, match=said):
        DpoConfig(**settings)


def test_dpo_without_a_second_model_is_dpo_against_the_start(causal_directory, tmp_path):
    results = []
    for reference in (None, load_causal(causal_directory)):
        policy = load_causal(causal_directory)
        store = CheckpointStore(tmp_path / str(reference is None))
        fit_dpo(
            policy,
            reference,
            toy_pairs(24),
            toy_pairs(8, 1),
            settings=DpoConfig(batch_size=8, optimizer=OPTIMIZER),
            run=TrainingRun(seed=0, tracker=ListTracker(), checkpoints=store),
        )
        results.append(policy.lm_head.weight)
    assert torch.equal(*results)


def test_batches_of_pairs_are_packed_one_at_a_time(causal_directory):
    pairs, alive = toy_pairs(12), []
    for micro, run in pack_runs(load_causal(causal_directory), pairs, budget=20):
        alive = [batch for batch in alive if batch() is not None]
        assert alive == []
        alive.append(weakref.ref(micro))
        assert run
        del micro


def test_where_training_ends_and_heldout_begins_tells_runs_apart():
    pairs, examples = toy_pairs(4), toy_examples(4)
    parts = (pairs[:2], pairs[2:]), (pairs[:1], pairs[1:])
    assert list(pair_rows(*parts[0])) != list(pair_rows(*parts[1]))
    assert sft._rows(examples[:2], examples[2:]) != sft._rows(examples[:1], examples[1:])


def test_runs_hold_what_fits_and_every_item_once():
    assert split_by_tokens([3, 3, 3, 9, 1], int, budget=6) == [[3, 3], [3], [9], [1]]
    assert split_by_tokens([], int, budget=6) == []
