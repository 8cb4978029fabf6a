"""Everything that runs on the model's device really runs there; what need not stays on the CPU."""

from functools import partial

import numpy as np
import pytest
import torch

from rlhf_core.errors import ConfigError
from rlhf_core.models import choose_device, device_of, load_causal, load_scalar, scalar_from_causal
from rlhf_core.rollout.decode import Sampling, decode
from rlhf_core.stages.models.scoring import response_logprobs, response_scores
from rlhf_core.trainers.parallel import side_by_side
from tests.devices.pretended import Distant, elsewhere
from tests.trainers import ppo_toys, toys
from tests.trainers.conftest import causal_directory, saved_once
from tests.trainers.ppo_toys import VARIANTS, train_ppo
from tests.trainers.toys import EOS, ListTracker, ids, toy_examples, train_stage

__all__ = ["causal_directory", "elsewhere", "saved_once"]


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for present, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert choose_device("auto").type == expected
        assert choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match=r"model\.device is cuda, but torch .* sees no CUDA"):
        choose_device("cuda")


def test_the_instrument_notices_a_forgotten_move(elsewhere):
    weight = torch.ones(3, 3).to(elsewhere)
    assert isinstance(weight, Distant)
    assert weight.device == elsewhere
    near = torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        weight @ near
    assert (weight @ near.to(elsewhere)).cpu().tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(RuntimeError, match="same device"):
        near[torch.tensor([0]).to(elsewhere)]


@pytest.fixture
def moved(monkeypatch, elsewhere):
    """Let the toy trainers load every model elsewhere."""
    for module in (toys, ppo_toys):
        for load in (load_causal, load_scalar, scalar_from_causal):
            if hasattr(module, load.__name__):
                monkeypatch.setattr(module, load.__name__, partial(load, device=elsewhere))
    return elsewhere


SHORT = {"num_epochs": 1, "batch_size": 64, "micro_batch_tokens": 500}


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_trainer_stays_on_the_models_device(stage, moved, causal_directory, tmp_path):
    tracker = ListTracker()
    _, model, _ = train_stage(stage, causal_directory, tmp_path, tracker, **SHORT)
    assert device_of(model) == moved
    assert np.isfinite(tracker.series("policy/loss" if stage == "dpo" else f"{stage}/loss")).all()


FEW = {"num_iterations": 2, "num_epochs": 1, "num_minibatches": 1, "max_new_tokens": 4}
FEW |= {"micro_batch_tokens": 500}


@pytest.mark.parametrize(
    "variant", ["default", "shared-trunk", "kl-as-loss-and-ptx", "rloo-adaptive-kl-and-ptx"]
)
def test_ppo_stays_on_the_models_device(variant, moved, causal_directory, tmp_path):
    changes = {**VARIANTS[variant], **FEW, "recompute_old_logprobs": variant == "default"}
    _, models, _ = train_ppo(causal_directory, tmp_path, **changes)
    assert device_of(models.policy) == moved


def test_scoring_and_sampling_beside_training_move_their_batches(elsewhere, causal_directory):
    examples = toy_examples(5)
    rows = [e.prompt_ids for e in examples], [e.response_ids for e in examples]
    for load, ask in (
        (load_causal, response_logprobs),
        (partial(scalar_from_causal, seed=0), response_scores),
    ):
        far = ask(load(causal_directory, device=elsewhere), *rows, budget=20)
        near = ask(load(causal_directory), *rows, budget=20)
        for one, other in zip(far, near, strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)
    prompts, uniforms = [ids(1, 5, 6), ids(1, 7)], torch.rand(2, 6)
    options = {"uniforms": uniforms, "sampling": Sampling(0.9, [EOS]), "budget": 1_000}
    far = decode(load_causal(causal_directory, device=elsewhere), prompts, **options)
    near = decode(load_causal(causal_directory), prompts, **options)
    assert far.tokens.device == elsewhere
    assert far.tokens.tolist() == near.tokens.tolist()


def test_models_of_a_gpu_learn_one_after_the_other():
    order = []
    side_by_side(lambda: order.append("policy"), lambda: order.append("value"), allowed=False)
    assert order == ["policy", "value"]
