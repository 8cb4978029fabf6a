"""One seed for a run, one derived from it for every purpose, and kernels that repeat."""

import hashlib
import logging

import joblib
import torch
from transformers import set_seed

from rlhf_core.adapters.settings import load_settings, request_repeatable_cublas

logger = logging.getLogger(__name__)

_TORCH_THREADS = torch.get_num_threads()
"""What torch takes by itself: one a physical core, whatever share of them a container may use."""


def derived_seed(seed: int, *purpose: str) -> int:
    """Return a 31-bit seed of its own for ``purpose``: adding a purpose changes no other."""
    digest = hashlib.sha256("/".join([str(seed), *purpose]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def make_deterministic(seed: int) -> None:
    """Seed every global generator and refuse kernels whose result depends on timing.

    Training draws from generators of its own; the global ones are for what libraries do unasked.
    """
    take_cores()
    request_repeatable_cublas()
    set_seed(seed)
    torch.use_deterministic_algorithms(True)


def take_cores() -> None:
    """Compute with a thread on each core that this process may use, or as OMP_NUM_THREADS says.

    Affinity and the quota of a container count. The number is part of what makes results repeat:
    sums are cut into as many parts.
    """
    settings, cores = load_settings(), joblib.cpu_count()
    if settings.omp_num_threads is None:
        torch.set_num_threads(min(_TORCH_THREADS, cores))
    logger.info(
        "threads=%d usable_cores=%d %s",
        torch.get_num_threads(),
        cores,
        settings.waiting_threads,
    )
