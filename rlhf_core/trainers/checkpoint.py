"""Checkpoints that survive a crash at any moment, and are never mistaken for another run's."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_core import processes
from rlhf_core.errors import CheckpointError
from rlhf_core.ports import CheckpointCopies
from rlhf_core.storage.folders import put_in_place

logger = logging.getLogger(__name__)

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "values.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a trainer needs to go on as if nothing had happened."""

    step: int
    """Optimiser steps or iterations that are done."""
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """Anything JSON can hold."""


class CheckpointStore:
    """The checkpoints of one training stage, in one directory.

    Of several processes one writes and all read, from a disk that all see.

    A checkpoint is written beside its final name, synced, then renamed; its manifest holds the
    sha256 of every file, so that one torn by a failing disk is noticed and the one before is used.
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
        if processes.leads():
            self._save(step, tensors, values, fingerprint)
        processes.wait_for_all()

    def _save(
        self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], fingerprint: str
    ) -> None:
        if self._before_save is not None:
            self._before_save()
        target = self.directory / f"step-{step:09d}"
        temporary = self.directory / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            _write(temporary, Checkpoint(step, dict(tensors), dict(values)), fingerprint)
            put_in_place(temporary, target)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{target}: the checkpoint cannot be written: {error}; "
                "make room and start the run again, it goes on from the one before"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        if self._copies is not None:
            self._copies.keep(target)

    def latest(self, *, fingerprint: str) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None where there is none.

        Raises:
            CheckpointError: it belongs to a run with other settings, data or starting weights.
            ProcessError: the processes were given different ones, or see different checkpoints.
        """
        processes.require_alike("settings, data or weights", fingerprint)
        if processes.leads():
            self._bring_copy()
        processes.wait_for_all()
        found = self._newest(fingerprint)
        processes.require_alike("the newest checkpoint", -1 if found is None else found.step)
        return found

    def _bring_copy(self) -> None:
        if self._copies is not None:
            self._copies.bring(
                self.directory, max((path.name for path in self._steps()), default="")
            )

    def _newest(self, fingerprint: str) -> Checkpoint | None:
        for path in reversed(self._steps()):
            try:
                checkpoint, found = _read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("checkpoint=%s is torn and is not used: %s", path, error)
                continue
            if found != fingerprint:
                raise CheckpointError(
                    f"{path}: this checkpoint belongs to another run: its settings, data or "
                    "starting weights differ; remove the directory or choose another"
                )
            return checkpoint
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))

    def _prune(self) -> None:
        leftovers = [
            path for path in self.directory.glob(".step-*") if path.suffix in (".tmp", ".old")
        ]
        for path in [*self._steps()[: -self.keep], *leftovers]:
            shutil.rmtree(path, ignore_errors=True)


def _write(directory: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    tensors = {name: t.detach().contiguous() for name, t in checkpoint.tensors.items()}
    save_file(tensors, directory / TENSORS)
    (directory / VALUES).write_text(json.dumps(checkpoint.values), encoding="utf-8")
    manifest = {
        "step": checkpoint.step,
        "fingerprint": fingerprint,
        "sha256": {name: _file_sha256(directory / name) for name in (TENSORS, VALUES)},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _read(path: Path) -> tuple[Checkpoint, str]:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    for name, expected in manifest["sha256"].items():
        if _file_sha256(path / name) != expected:
            raise ValueError(f"{name} does not have the sha256 of its manifest")
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    tensors = load_file(path / TENSORS)
    return Checkpoint(int(manifest["step"]), tensors, values), str(manifest["fingerprint"])


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
