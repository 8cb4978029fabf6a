"""Whether a model fits into memory, asked before the system kills the process that loads it."""

import math
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open

from rlhf_core.errors import ModelError

_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Folder, limit, usage, and what of the usage is given back when needed: versions 2 and 1."""


def require_memory(base: str | Path, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model whose weights alone are more than the memory that is free.

    Args:
        base: directory with safetensors files; of others, and of a hub name, nothing is known.
        dtype: the weights are loaded in.
        device: they go to; they pass through the machine's own memory.

    Raises:
        ModelError: names the bytes needed and found.
    """
    needed = weight_bytes(Path(base), dtype)
    places = {"this machine": free_memory()}
    if device.type == "cuda":
        places[str(device)] = torch.cuda.mem_get_info(device)[0]
    for place, found in places.items():
        if needed > found:
            raise ModelError(
                f"{base}: its weights need {needed:,} bytes of memory as"
                f" {str(dtype).removeprefix('torch.')}, and {place} has {found:,} free; end what"
                " uses it, or take a smaller model or a larger machine"
            )


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes that the weights of a folder's safetensors files take in memory."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 - no mapping
    return count * dtype.itemsize


def free_memory() -> int:
    """Return the bytes this process may still take: of the machine's and its control group's."""
    found = int(psutil.virtual_memory().available)
    for folder, limit, usage, reclaimable in _CGROUPS:
        with suppress(OSError, ValueError):  # no such group, or "max"
            allowed = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found = min(found, max(0, allowed - used + int(stat.get(reclaimable, 0))))
    return found
