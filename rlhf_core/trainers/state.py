"""Training state to tensors and back: weights, optimiser moments, every random generator."""

import hashlib
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any

import joblib
import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config.reward_terms import PATIENCE_OF_TERMS
from rlhf_core.config.rollouts import result_neutral_rollouts
from rlhf_core.errors import CheckpointError
from rlhf_core.models.sharding import local_part

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
Saved = Mapping[str, Tensor]
"""Tensors of a checkpoint; asking for one may read it from the disk."""


def model_tensors(model: nn.Module, prefix: str = "model") -> Tensors:
    """Trainable weights by name; tied weights once."""
    return {
        f"{prefix}.{name}": parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: Saved, prefix: str = "model") -> None:
    """Copy what ``model_tensors`` gave back into the model.

    Raises:
        CheckpointError: a weight is missing.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if f"{prefix}.{name}" not in tensors:
            raise CheckpointError(f"the checkpoint lacks the weight {name!r}")
        parameter.copy_(local_part(tensors[f"{prefix}.{name}"], parameter))


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> Tensors:
    """Moments and step counts of every parameter, by its number."""
    return {
        f"{prefix}.{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Saved, prefix: str = "optimizer"
) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, Tensors] = {}
    for name in tensors:
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".", 1)
            value, weight = tensors[name], weights[int(index)]
            is_moment = value.shape == weight.shape  # and no count of steps
            kept = local_part(value, weight) if is_moment else value
            state.setdefault(int(index), {})[key] = kept
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_tensors() -> Tensors:
    """States of torch's generators, on the CPU and on every GPU."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"random.cuda{index}"] = state
    return states


def random_values() -> dict[str, Any]:
    """States of Python's and numpy's global generators, how many threads and processes compute."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "threads": torch.get_num_threads(),
        "processes": processes.size(),
    }


def load_random(tensors: Saved, values: dict[str, Any]) -> None:
    """Put every generator back to where ``random_tensors`` and ``random_values`` found it.

    Sums are cut into one part a thread, so the number of threads goes back too, if there are cores
    for it; not so with another number of processes, which rounds in its own way anyhow.
    """
    before = values.get("processes", 1)
    if before == processes.size():
        _compute_with(values.get("threads"))
    else:
        logger.info("processes=%d, before the interruption %d", processes.size(), before)
    torch.set_rng_state(tensors["random.cpu"])
    for name in tensors:
        index = name.removeprefix("random.cuda")
        if index.isdigit() and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensors[name], int(index))
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = values["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))


def run_fingerprint(
    settings: BaseModel, models: Iterable[nn.Module], data: Iterable[bytes], *, seed: int
) -> str:
    """Identify a run: settings, seed, starting weights, and the bytes of its data in order."""
    result_neutral: dict[str, Any] = {
        "distributed": True,
        "rollouts": result_neutral_rollouts(settings),
        "rewards": {"__all__": PATIENCE_OF_TERMS},
    }
    decisive = settings.model_dump_json(exclude=result_neutral)
    digest = hashlib.sha256(f"{decisive} seed={seed}".encode())
    for model in models:
        for name, parameter in model.named_parameters():
            digest.update(name.encode())
            weights = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(weights.numpy().data)
    for row in data:
        digest.update(len(row).to_bytes(8, "little"))
        digest.update(row)
    return digest.hexdigest()


def _compute_with(threads: int | None) -> None:
    """Take as many threads as a checkpoint was made with; None is one that does not say."""
    found = torch.get_num_threads()
    if threads is None or threads == found:
        return
    if threads > joblib.cpu_count():
        logger.warning(
            "this run computed with %d threads before, and goes on with %d, for there are no more "
            "cores: its results may differ in the last bits",
            threads,
            found,
        )
        return
    torch.set_num_threads(threads)
    logger.info("threads=%d, as before the interruption", threads)
