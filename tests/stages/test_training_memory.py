"""What the memory line of a training counts is what its trainer holds."""

import re

import torch
from humanize import naturalsize

from rlhf_core.config import ComputeConfig, LoraConfig
from rlhf_core.models import load_causal, prepare_training
from rlhf_core.models.compute import START
from rlhf_core.stages.training.memory import memory_ahead
from rlhf_core.trainers.sft import BestWeights

COPY = r"a copy of the {} ([\d.]+ [kM]B)"


def said(config, which, stage="sft"):
    found = re.search(COPY.format(which), memory_ahead(config, stage))
    return found and found[1]


def with_sft(config, **changes):
    return config.model_copy(update={"sft": config.sft.model_copy(update=changes)})


def size(tensors):
    return naturalsize(sum(tensor.nbytes for tensor in tensors))


def test_the_best_weights_that_patience_keeps_are_counted(stage_config):
    config = stage_config()
    assert said(config, "best weights") is None
    patient = {"evaluate_every": 1, "early_stopping_patience": 1}
    for compute in (ComputeConfig(), ComputeConfig(lora=LoraConfig(rank=4))):
        best = BestWeights(patience=1)
        model = prepare_training(load_causal(config.model.base), compute, seed=0)
        best.offer(1.0, model, step=0)
        found = said(with_sft(config, **patient, compute=compute), "best weights")
        assert found == size(best.tensors.values())


def test_the_weights_at_the_start_of_a_model_in_half_precision_are_counted(stage_config, tmp_path):
    config = stage_config()
    assert said(config, "weights at the start") is None, "its files are float32"
    model = load_causal(config.model.base).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    halves = config.model.model_copy(update={"base": str(tmp_path / "half")})
    held = getattr(prepare_training(load_causal(halves.base), ComputeConfig(), seed=0), START)
    for stage in ("sft", "reward"):
        found = said(config.model_copy(update={"model": halves}), "weights at the start", stage)
        assert found == size(held)
    kept_whole = halves.model_copy(update={"save_dtype": "float32"})
    assert said(config.model_copy(update={"model": kept_whole}), "weights at the start") is None
