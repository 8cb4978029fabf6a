"""Whether models fit into memory, asked before the system kills the process that loads them."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from humanize import naturalsize
from safetensors import SafetensorError, safe_open

from rlhf_core.config import ComputeConfig
from rlhf_core.errors import ModelError
from rlhf_core.models.device import choose_device
from rlhf_core.models.step_memory import step_memory

_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of limit and usage, and what of the usage is given back when needed."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_OF_LAYER = re.compile(r"\.\d+\.")
"""In the name of a weight: the number of the layer it belongs to."""


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


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training takes, all models together, in one process."""

    weights: Mapping[str, int]
    """By role."""
    gradients: int
    moments: int
    """AdamW keeps two numbers a weight."""
    step: int | None = None
    """Kept by the tokens of one forward pass until its backward pass; None: not known."""
    cache: int = 0
    """Keys and values while sampling, when no step is under way."""
    loaded: int = 0
    """Weights while they are loaded, whole where layers are divided only later."""
    copies: Mapping[str, int] = field(default_factory=dict)
    """Of weights that are trained, kept beside them to the end, by which ones they are."""

    @property
    def certain(self) -> int:
        """What there has to be whatever the batches are."""
        kept = sum(self.weights.values()) + sum(self.copies.values())
        return max(kept + self.gradients + self.moments, self.loaded)

    @property
    def total(self) -> int:
        """At its peak."""
        return self.certain + max(self.step or 0, self.cache)

    def __str__(self) -> str:
        models = ", ".join(f"{role} {naturalsize(size)}" for role, size in self.weights.items())
        parts = [
            f"weights {naturalsize(sum(self.weights.values()))} ({models})",
            f"gradients {naturalsize(self.gradients)}",
            f"optimiser {naturalsize(self.moments)}",
            "a step's activations "
            + ("not known" if self.step is None else naturalsize(self.step)),
        ]
        parts += [f"a copy of the {name} {naturalsize(size)}" for name, size in self.copies.items()]
        if self.cache:
            parts.append(f"keys and values while sampling {naturalsize(self.cache)}")
        return f"{naturalsize(self.total)}: {', '.join(parts)}"


def memory_of_training(
    trained: Mapping[str, str | Path],
    read: Mapping[str, str | Path],
    compute: ComputeConfig,
    *,
    step_tokens: int,
    sampled_tokens: int = 0,
    parts: int = 1,
) -> TrainingMemory:
    """Count what a training takes, before a model is loaded; weights and moments are float32.

    Args:
        trained: directories of the models that are trained, by role. Of one with towers for
            pictures or sound, of which only the text is trained, the weights alone are counted.
        read: of those that are only read.
        compute: of the training; with adapters only they are trained.
        step_tokens: of the largest forward pass of a step.
        sampled_tokens: that keys and values are kept for while sampling, by the first of
            ``trained``.
        parts: that decoder layers are divided into, of which one process keeps one.
    """
    folders = {role: Path(path) for models in (trained, read) for role, path in models.items()}
    weights = {role: _kept_bytes(folder, parts) for role, folder in folders.items()}
    steps = [step_memory(path, compute) for path in trained.values()]
    learning = 0
    for (role, path), step in zip(trained.items(), steps, strict=True):
        if compute.lora is not None:
            adapters = 0 if step is None else math.ceil(step.adapters / parts)
            weights[role] += adapters
            learning += adapters
        elif not _has_towers(Path(path)):
            learning += weights[role]
    known = [step.at_once + step.per_token * step_tokens for step in steps if step is not None]
    sampler = steps[0]
    return TrainingMemory(
        weights,
        gradients=learning,
        moments=2 * learning,
        step=max(known) if len(known) == len(steps) else None,
        cache=0 if sampler is None else sampler.cached_per_token * sampled_tokens,
        loaded=sum(weight_bytes(folder, torch.float32) for folder in folders.values()),
    )


def require_memory_of_training(
    needed: TrainingMemory, device: str, *, what: str, processes: int = 1
) -> str:
    """Refuse models that together are more than the memory that is free, before one is loaded.

    Refused for is what is certain: weights, gradients and the optimiser's moments. The rest depends
    on the batches, and is said.

    Args:
        needed: of one process.
        device: as ``model.device``; all models go there.
        what: is trained.
        processes: that load all of them; on GPUs each has one of its own.

    Returns:
        What is needed and what is free, in a line.

    Raises:
        ModelError: names the bytes needed and found.
    """
    place = choose_device(device)
    copies = processes if place.type == "cpu" else 1
    held = {**needed.weights, **{f"a copy of the {name}": n for name, n in needed.copies.items()}}
    parts = ", ".join(f"{name} {size:,}" for name, size in held.items())
    how = f"for weights ({parts}), gradients and optimiser"
    many = f" in {copies} processes" if copies > 1 else ""
    _require(copies * needed.certain, f"training {what}{many} needs", how, place)
    free = _free_on(place)
    line = f"{what} needs about {needed}{f', in each of {copies} processes' if copies > 1 else ''}"
    line = f"{line}; {naturalsize(free)} are free"
    if copies * needed.total > free:
        line += (
            ", which may not be enough: lower micro_batch_tokens, or set "
            "compute.gradient_checkpointing"
        )
    return line


def _has_towers(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        return "text_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return False


def _require(needed: int, what: str, how: str, device: torch.device) -> None:
    is_gpu, found = device.type == "cuda", _free_on(device)
    if needed > found:
        raise ModelError(
            f"{what} {needed:,} bytes of memory {how}, and {device if is_gpu else 'this machine'}"
            f" has {found:,} free; end what uses it, or take a smaller model or a larger machine"
        )


def _free_on(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def _kept_bytes(folder: Path, parts: int) -> int:
    """Bytes of a model's weights that one process keeps of decoder layers in so many parts."""
    whole = weight_bytes(folder, torch.float32)
    layers = weight_bytes(folder, torch.float32, layers_only=True) if parts > 1 else 0
    return whole - layers + math.ceil(layers / parts)


def weight_bytes(folder: Path, dtype: torch.dtype, *, layers_only: bool = False) -> int:
    """Return the bytes that the weights of a folder's safetensors files take in memory.

    ``layers_only`` leaves out what belongs to no numbered layer: embeddings, norms, heads.
    """
    count = 0
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as weights:
            count += sum(
                math.prod(weights.get_slice(name).get_shape())
                for name in weights.keys()  # noqa: SIM118 - no mapping
                if not layers_only or _OF_LAYER.search(name)
            )
    return count * dtype.itemsize


def dtype_of_files(folder: Path) -> torch.dtype | None:
    """Return the precision of the weights in a folder's safetensors files; None without any."""
    for file in sorted(folder.glob("*.safetensors")):
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                dtype = weights.get_slice(name).get_dtype()
                if dtype in _DTYPES:
                    return _DTYPES[dtype]
    return None


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
