"""On a real CUDA device: every trainer, twice, with the same bits."""

from functools import partial

import pytest
import torch

from rlhf_core.config import ComputeConfig
from rlhf_core.models import device_of, load_causal, load_scalar, scalar_from_causal
from rlhf_core.stages.models.determinism import make_deterministic
from tests.trainers import ppo_toys, toys
from tests.trainers.conftest import causal_directory, saved_once
from tests.trainers.ppo_toys import VARIANTS, train_ppo
from tests.trainers.toys import ListTracker, train_stage

__all__ = ["causal_directory", "saved_once"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    for module in (toys, ppo_toys):
        for load in (load_causal, load_scalar, scalar_from_causal):
            if hasattr(module, load.__name__):
                monkeypatch.setattr(module, load.__name__, partial(load, device="cuda"))
    before = torch.are_deterministic_algorithms_enabled()
    make_deterministic(0)
    yield
    torch.use_deterministic_algorithms(before)


BFLOAT16 = ComputeConfig(precision="bfloat16")


@pytest.mark.parametrize("compute", [ComputeConfig(), BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_same_seed_same_weights(stage, compute, causal_directory, tmp_path):
    runs = [train_stage(stage, causal_directory, tmp_path / name, compute=compute) for name in "ab"]
    assert device_of(runs[0][1]).type == "cuda"
    assert runs[0][2] == runs[1][2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ppo_gives_the_same_weights_and_a_first_ratio_of_one(variant, causal_directory, tmp_path):
    trackers = ListTracker(), ListTracker()
    digests = {
        train_ppo(causal_directory, tmp_path / str(number), tracker, **VARIANTS[variant])[2]
        for number, tracker in enumerate(trackers)
    }
    assert len(digests) == 1
    assert max(trackers[0].series("policy/first_ratio_error")) < 1e-4


def test_ppo_in_bfloat16(causal_directory, tmp_path):
    tracker = ListTracker()
    train_ppo(causal_directory, tmp_path, tracker, compute=BFLOAT16, recompute_old_logprobs=True)
    assert max(tracker.series("policy/logprob_mismatch")) < 1.05
