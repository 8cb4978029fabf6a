"""Same inputs, same bits: again, after a crash, in other micro-batches."""

import pytest
import torch

from rlhf_core.config import ComputeConfig, LoraConfig
from rlhf_core.errors import CheckpointError
from rlhf_core.models import load_causal, scalar_from_causal
from rlhf_core.trainers.dpo import DpoObjective, pair_logprobs
from rlhf_core.trainers.reward import Labels, accumulate_pairs
from rlhf_core.trainers.sft import accumulate_nll
from tests.trainers.toys import DpoConfig, ListTracker, toy_examples, toy_pairs, train_stage

STAGES = ("sft", "reward", "dpo")


class Crash(Exception):
    """Stands for the process dying."""


class CrashingTracker(ListTracker):
    def __init__(self, at_step):
        super().__init__()
        self.at_step = at_step

    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        if step == self.at_step:
            raise Crash


@pytest.mark.nightly  # the next one compares two runs as well, at every change
@pytest.mark.parametrize("stage", STAGES)
def test_same_seed_same_weights(stage, causal_directory, tmp_path):
    digests = {train_stage(stage, causal_directory, tmp_path / name)[2] for name in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_crashes_do_not_change_the_weights(stage, causal_directory, tmp_path):
    expected = train_stage(stage, causal_directory, tmp_path / "whole")[2]
    for at_step in (2, 5, 10):
        with pytest.raises(Crash):
            train_stage(stage, causal_directory, tmp_path / "cut", CrashingTracker(at_step))
        torch.rand(3)  # what else the process does with the global generator must not matter
    tracker = ListTracker()
    digest = train_stage(stage, causal_directory, tmp_path / "cut", tracker)[2]
    assert tracker.rows[0][0] == 10
    assert digest == expected


LORA = ComputeConfig(lora=LoraConfig(rank=4))
CHECKPOINTING = ComputeConfig(gradient_checkpointing=True, precision="bfloat16")
NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("stage", "compute"),
    [
        pytest.param("sft", LORA, id="sft-lora"),
        pytest.param("dpo", LORA, id="dpo-lora"),
        pytest.param("reward", CHECKPOINTING, id="reward-checkpointing-bfloat16"),
        pytest.param("reward", LORA, id="reward-lora", marks=NIGHTLY),
        pytest.param("sft", CHECKPOINTING, id="sft-checkpointing-bfloat16", marks=NIGHTLY),
        pytest.param("dpo", CHECKPOINTING, id="dpo-checkpointing-bfloat16", marks=NIGHTLY),
    ],
)
def test_crashes_with_other_arithmetic(stage, compute, causal_directory, tmp_path):
    tracker = ListTracker()
    whole = train_stage(stage, causal_directory, tmp_path / "whole", tracker, compute=compute)
    with pytest.raises(Crash):
        train_stage(stage, causal_directory, tmp_path / "cut", CrashingTracker(5), compute=compute)
    assert train_stage(stage, causal_directory, tmp_path / "cut", compute=compute)[2] == whole[2]
    losses = tracker.series(f"{'policy' if stage == 'dpo' else stage}/loss")
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_is_not_trained_again(stage, causal_directory, tmp_path):
    first = train_stage(stage, causal_directory, tmp_path)
    tracker = ListTracker()
    again = train_stage(stage, causal_directory, tmp_path, tracker)
    assert not tracker.series(f"{'policy' if stage == 'dpo' else stage}/loss")
    assert again[2] == first[2]
    assert again[0] == first[0]


@pytest.mark.parametrize("change", [{"batch_size": 16}, {"num_epochs": 1}])
def test_a_checkpoint_of_another_run_is_refused(change, causal_directory, tmp_path):
    train_stage("sft", causal_directory, tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        train_stage("sft", causal_directory, tmp_path, **change)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_relative_gap(one, other):
    return max(
        float((one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-12))
        for name in other
    )


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_do_not_change_the_gradient(stage, causal_directory):
    results = []
    for budget in (1, 40, 80, 100_000):
        if stage == "reward":
            model = scalar_from_causal(causal_directory, seed=0).double()
            accumulate_pairs(
                model, toy_pairs(64, prompts=30), budget=budget, labels=Labels(soft=True)
            )
        elif stage == "sft":
            model = load_causal(causal_directory).double()
            accumulate_nll(model, toy_examples(64), budget=budget)
        else:
            model = load_causal(causal_directory).double()
            reference = torch.zeros(64, 2)
            settings = DpoConfig(micro_batch_tokens=budget, use_soft_labels=True)
            DpoObjective(model, settings).accumulate(toy_pairs(64, prompts=30), reference)
        results.append(gradients(model))
    assert all(largest_relative_gap(other, results[-1]) < 1e-6 for other in results[:-1])


def test_order_and_company_do_not_change_a_logprob(causal_directory):
    model, pairs = load_causal(causal_directory), toy_pairs(12, prompts=5)
    together = pair_logprobs(model, pairs, budget=100_000)
    reversed_alone = pair_logprobs(model, pairs[::-1], budget=1).flip(0)
    torch.testing.assert_close(together, reversed_alone, atol=1e-5, rtol=1e-5)
