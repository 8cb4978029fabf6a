"""Whether models fit into memory, asked before the system kills the process that loads them."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open

from rlhf_core.errors import ModelError
from rlhf_core.models.device import choose_device

_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of limit and usage, and what of the usage is given back when needed."""
_OF_TRAINING = 4
"""A trained weight in memory: itself, its gradient and AdamW's two moments."""


def require_memory(base: str | Path, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model whose weights alone are more than the memory that is free.

    Args:
        base: directory with safetensors files; of others, and of a hub name, nothing is known.
        dtype: the weights are loaded in.
        device: they go to; they pass through the machine's own memory.

    Raises:
        ModelError: names the bytes needed and found.
    """
    needed, how = weight_bytes(Path(base), dtype), f"as {str(dtype).removeprefix('torch.')}"
    for place in {torch.device("cpu"), device}:
        _require(needed, f"{base}: its weights need", how, place)


def require_memory_of_training(
    device: str,
    *,
    trained: Mapping[str, str | Path],
    read: Mapping[str, str | Path],
    processes: int = 1,
) -> None:
    """Refuse models that together are more than the memory that is free, before one is loaded.

    Counted are weights, gradients and the optimiser's moments, all float32; not what a batch needs.

    Args:
        device: as ``model.device``; all models go there.
        trained: directories of those that are trained whole, by role. Of one with towers for
            pictures or sound, of which only the text is trained, the weights alone are counted.
        read: of those that are only read, or get adapters.
        processes: that load all of them; on GPUs each has one of its own.

    Raises:
        ModelError: names the bytes needed and found.
    """
    needed = {
        name: weight_bytes(Path(path), torch.float32) * copies
        for models, copies in ((trained, _OF_TRAINING), (read, 1))
        for name, path in models.items()
    }
    for name, path in trained.items():
        if _has_towers(Path(path)):
            needed[name] //= _OF_TRAINING
    parts = ", ".join(f"{name} {size:,}" for name, size in needed.items())
    how = f"for weights, gradients and optimiser ({parts})"
    place = choose_device(device)
    copies = processes if place.type == "cpu" else 1
    what = f"training in {processes} processes needs" if copies > 1 else "training needs"
    _require(copies * sum(needed.values()), what, how, place)


def _has_towers(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        return "text_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return False


def _require(needed: int, what: str, how: str, device: torch.device) -> None:
    is_gpu = device.type == "cuda"
    found = torch.cuda.mem_get_info(device)[0] if is_gpu else free_memory()
    if needed > found:
        raise ModelError(
            f"{what} {needed:,} bytes of memory {how}, and {device if is_gpu else 'this machine'}"
            f" has {found:,} free; end what uses it, or take a smaller model or a larger machine"
        )


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes that the weights of a folder's safetensors files take in memory."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 - no mapping
    return count * dtype.itemsize


def free_memory() -> int:
    """Return the bytes this process may still take.

    Of the machine's, and of every control group's that it is in: a limit further up holds as well.
    """
    found = int(psutil.virtual_memory().available)
    for folder, (limit, usage, reclaimable) in _control_groups():
        with suppress(OSError, ValueError):  # no such group, or "max"
            allowed = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found = min(found, max(0, allowed - used + int(stat.get(reclaimable, 0))))
    return found


def _control_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield this process's groups of either version, each with its files, and those above them.

    In a container a group's path may be the host's; what holds then is the root that is seen.
    """
    lines: list[str] = []
    with suppress(OSError):  # a system without control groups
        lines = _GROUPS_OF_PROCESS.read_text().splitlines()
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root, files = (_GROUPS, _VERSION_2) if number == "0" else (_GROUPS / "memory", _VERSION_1)
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield folder, files
