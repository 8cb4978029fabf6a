"""Checkpoints that survive a crash at any moment, and are never mistaken for another run's."""

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rlhf_core import processes
from rlhf_core.errors import CheckpointError
from rlhf_core.models.sharding import is_divided
from rlhf_core.ports import CheckpointCopies
from rlhf_core.storage.folders import put_in_place
from rlhf_core.trainers.state import model_tensors

logger = logging.getLogger(__name__)

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "values.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a trainer needs to go on as if nothing had happened."""

    step: int
    """Optimiser steps or iterations that are done."""
    tensors: Mapping[str, Tensor]
    """Each whole; those of a checkpoint that was read are made as they are asked for."""
    values: dict[str, Any]
    """Anything JSON can hold."""


class CheckpointStore:
    """The checkpoints of one training stage, in one directory.

    Of several processes one writes and all read, from a disk that all see. Divided tensors are
    written by all, each its part, and are read whole by however many there are then.

    A checkpoint is written beside its final name, synced, then renamed; its manifest holds the
    sha256 of every file, so that one that a failing disk left incomplete is noticed and the one
    before is used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        before_save: Callable[[], None] | None = None,
        copies: CheckpointCopies | None = None,
    ) -> None:
        """Keep checkpoints in ``directory``.

        Args:
            directory: made at the first checkpoint.
            keep: how many.
            before_save: called before each: what must not be lost with the steps it covers.
            copies: where other machines find them; None keeps them on this one.
        """
        self.directory, self.keep, self._before_save = directory, keep, before_save
        self._copies = copies
        self._read: Checkpoint | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        *,
        fingerprint: str,
    ) -> None:
        """Write the state after ``step`` and drop all but the last ``keep`` checkpoints.

        Args:
            step: steps that are done.
            tensors: by name; no two may share memory.
            values: anything JSON can hold.
            fingerprint: identifies the run: its settings, data and starting weights.

        Raises:
            CheckpointError: the disk is full or refuses; the checkpoints before are untouched,
                and nothing half-written is left.
        """
        self._let_go()
        checkpoint = Checkpoint(step, tensors, dict(values))
        in_parts = any(is_divided(tensor) for tensor in tensors.values())
        if processes.is_main():
            self._save(checkpoint, fingerprint, in_parts=in_parts)
        elif in_parts:
            self._add_parts(checkpoint)
        processes.wait_for_all()

    def _save(self, checkpoint: Checkpoint, fingerprint: str, *, in_parts: bool) -> None:
        if self._before_save is not None:
            self._before_save()
        target, temporary = self._places(checkpoint, os.getpid())
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            if in_parts:
                processes.most(os.getpid())  # the folder is there
                _write_parts(temporary, checkpoint)
            else:
                _write_whole(temporary, checkpoint)
            _complete(temporary, checkpoint, fingerprint)
            put_in_place(temporary, target)
        except (OSError, SafetensorError, CheckpointException) as error:
            raise _unwritten(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        if self._copies is not None:
            self._copies.keep(target)

    def _add_parts(self, checkpoint: Checkpoint) -> None:
        target, temporary = self._places(checkpoint, processes.most(0))
        try:
            _write_parts(temporary, checkpoint)
        except CheckpointException as error:
            raise _unwritten(target, error) from error

    def _places(self, checkpoint: Checkpoint, writer: int) -> tuple[Path, Path]:
        """Where a checkpoint goes, and where process ``writer`` makes it."""
        target = self.directory / f"step-{checkpoint.step:09d}"
        return target, self.directory / f".{target.name}.{writer}.tmp"

    def latest(self, *, fingerprint: str) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None where there is none.

        Raises:
            CheckpointError: it belongs to a run with other settings, data or starting weights.
            ProcessError: the processes were given different ones, or see different checkpoints.
        """
        processes.require_alike("settings, data or weights", fingerprint)
        if processes.is_main():
            self._restore_copy()
        processes.wait_for_all()
        self._let_go()
        self._read = found = self._newest(fingerprint)
        processes.require_alike("the newest checkpoint", -1 if found is None else found.step)
        return found

    def _let_go(self) -> None:
        """Close the file of the checkpoint that was read, which may be deleted now."""
        if self._read is not None and isinstance(self._read.tensors, _InOneFile):
            self._read.tensors.close()
        self._read = None

    def _restore_copy(self) -> None:
        if self._copies is not None:
            self._copies.restore(
                self.directory, max((path.name for path in self._steps()), default="")
            )

    def _newest(self, fingerprint: str) -> Checkpoint | None:
        for path, checkpoint, found in _whole(reversed(self._steps())):
            if found != fingerprint:
                raise CheckpointError(
                    f"{path}: this checkpoint belongs to another run: its settings, data or "
                    "starting weights differ; remove the directory or choose another"
                )
            return checkpoint
        return None

    def whole(self) -> Iterator[Checkpoint]:
        """Read every whole checkpoint that is kept, the earliest first, one at a time."""
        if self._copies is not None:
            self._copies.restore_all(self.directory)
        for _, checkpoint, _ in _whole(self._steps()):
            yield checkpoint

    def _steps(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))

    def _prune(self) -> None:
        leftovers = [
            path for path in self.directory.glob(".step-*") if path.suffix in (".tmp", ".old")
        ]
        for path in [*self._steps()[: -self.keep], *leftovers]:
            shutil.rmtree(path, ignore_errors=True)


class KeptWeights:
    """The weights of a training at a few of its checkpoints: one is chosen when it is over.

    Trainable weights alone, without an optimiser's moments; of adapters no more than these.
    """

    def __init__(
        self, directory: Path, *, most: int, copies: CheckpointCopies | None = None
    ) -> None:
        """Keep weights in ``directory``, of at most ``most`` checkpoints."""
        self._store, self._most = CheckpointStore(directory, keep=most, copies=copies), most

    def keep(
        self, step: int, model: nn.Module, *, steps: Sequence[int], taken: int, fingerprint: str
    ) -> None:
        """Keep the model's weights if ``step`` is one of those that are to be kept.

        Call it before the checkpoint of the step: who goes on from there finds them.

        Args:
            step: number of the checkpoint.
            model: as it is trained.
            steps: numbers of all checkpoints that the training means to have, ascending.
            taken: optimiser steps until here.
            fingerprint: identifies the run.

        Raises:
            CheckpointError: the disk is full or refuses.
        """
        if step in spread_evenly(steps, self._most):
            values = {"num_steps": taken}
            self._store.save(step, model_tensors(model), values, fingerprint=fingerprint)

    def read(self) -> Iterator[Checkpoint]:
        """Read what was kept, the earliest first, one at a time."""
        return self._store.whole()


def spread_evenly(steps: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of the steps, evenly spread, the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[len(steps) * number // count - 1] for number in range(1, count + 1)]


class _InOneFile(Mapping[str, Tensor]):
    """Tensors of a file, each a copy: a mapped one would hold its room on the disk.

    What training goes on with lives as long as the process, and the file is deleted before. It
    stays open until ``close``: to open it is to read the names of all that is in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = safe_open(path, "pt")
        self._names = dict.fromkeys(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._file is None:
            self._file = safe_open(self._path, "pt")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor.clone()

    def close(self) -> None:
        """Give the file back; asking for another tensor opens it again."""
        self._file = None

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _InParts(Mapping[str, Tensor]):
    """Tensors that several processes wrote parts of, each put together when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._reader = _PartsReader(str(folder))
        self._described = self._reader.read_metadata().state_dict_metadata

    def __getitem__(self, name: str) -> Tensor:
        described = self._described[name]
        whole = torch.empty(described.size, dtype=described.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as asked for
            load({name: whole}, storage_reader=self._reader, no_dist=True)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


class _PartsReader(HuggingFaceStorageReader):
    """Reads the headers of all files once, and not for every tensor."""

    @cached_property
    def _metadata(self) -> Any:
        return super().read_metadata()

    def read_metadata(self) -> Any:
        return self._metadata


def _write_parts(directory: Path, checkpoint: Checkpoint) -> None:
    """Write this process's parts; all processes call it. Safetensors files, no pickles."""
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    tensors = {name: tensor.detach() for name, tensor in checkpoint.tensors.items()}
    save(tensors, storage_writer=writer)


def _write_whole(directory: Path, checkpoint: Checkpoint) -> None:
    tensors = {name: t.detach().contiguous() for name, t in checkpoint.tensors.items()}
    save_file(tensors, directory / TENSORS)


def _complete(directory: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    (directory / VALUES).write_text(json.dumps(checkpoint.values), encoding="utf-8")
    manifest = {
        "step": checkpoint.step,
        "fingerprint": fingerprint,
        "sha256": {path.name: _file_sha256(path) for path in sorted(directory.iterdir())},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _whole(paths: Iterable[Path]) -> Iterator[tuple[Path, Checkpoint, str]]:
    """Read checkpoints one at a time, each with its fingerprint; incomplete ones are left out."""
    for path in paths:
        try:
            checkpoint, fingerprint = _read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("checkpoint=%s is incomplete and is not used: %s", path, error)
            continue
        yield path, checkpoint, fingerprint


def _read(path: Path) -> tuple[Checkpoint, str]:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    for name, expected in manifest["sha256"].items():
        if _file_sha256(path / name) != expected:
            raise ValueError(f"{name} does not have the sha256 of its manifest")
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    in_parts = TENSORS not in manifest["sha256"]
    tensors = _InParts(path) if in_parts else _InOneFile(path / TENSORS)
    return Checkpoint(int(manifest["step"]), tensors, values), str(manifest["fingerprint"])


def _unwritten(target: Path, error: BaseException) -> CheckpointError:
    if isinstance(error, CheckpointException):  # what the first that could not write was told
        error = next(cause for cause, _ in error.failures.values())
    return CheckpointError(
        f"{target}: the checkpoint cannot be written: {error}; "
        "make room and start the run again, it goes on from the one before"
    )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
