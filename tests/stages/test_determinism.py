import joblib
import pytest
import torch

from rlhf_core.stages.models import determinism
from rlhf_core.stages.models.determinism import take_cores


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_no_more_threads_than_cores_that_this_process_may_use(monkeypatch):
    said = []
    monkeypatch.setattr(determinism.logger, "info", lambda line, *words: said.append(line % words))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(determinism, "_TORCH_THREADS", 8)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    take_cores()
    assert torch.get_num_threads() == 3
    assert said == ["threads=3 usable_cores=3 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=unset"]


def test_a_chosen_number_of_threads_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    torch.set_num_threads(2)
    take_cores()
    assert torch.get_num_threads() == 2
