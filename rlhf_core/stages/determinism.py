"""One seed for a run, one derived from it for every purpose, and kernels that repeat."""

import hashlib

import torch
from transformers import set_seed

from rlhf_core.adapters.settings import request_repeatable_cublas


def derived_seed(seed: int, *purpose: str) -> int:
    """Return a 31-bit seed of its own for ``purpose``: adding a purpose changes no other."""
    digest = hashlib.sha256("/".join([str(seed), *purpose]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def make_deterministic(seed: int) -> None:
    """Seed every global generator and refuse kernels whose result depends on timing.

    Training draws from generators of its own; the global ones are for what libraries do unasked.
    """
    request_repeatable_cublas()
    set_seed(seed)
    torch.use_deterministic_algorithms(True)
