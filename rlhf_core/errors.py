"""Every deliberate error of the project. The command line prints these in one line, exit code 2."""

import errno
from pathlib import Path
from typing import Self

_NO_SPACE = "free space there: old runs lie under runs/, artifacts under mlartifacts/"
_TOO_LARGE = "raise the limit on the size of files (ulimit -f)"
_NO_ENTRY = "choose a folder that you may write to, or have its owner changed"
_ADVICE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: _TOO_LARGE,
    errno.EROFS: _NO_ENTRY,
    errno.EACCES: _NO_ENTRY,
    errno.EPERM: _NO_ENTRY,
}


class RlhfError(Exception):
    """Base of all errors whose message is meant for the person running the command."""


class ConfigError(RlhfError, ValueError):
    """A setting is unknown, missing or out of range; the message names file and key."""


class DataError(RlhfError, ValueError):
    """Input data cannot be used; the message names file and line or row."""


class NoRoomError(DataError):
    """A conversation and its answer are longer than the model's context."""


class ShapeError(RlhfError, ValueError):
    """Tensors that must agree in shape do not."""


class MissingMetricError(RlhfError, KeyError):
    """A gate asks for a metric that was never measured."""

    def __str__(self) -> str:
        """Return the plain message; ``KeyError`` would quote it."""
        return str(self.args[0]) if self.args else ""


class DivergedError(RlhfError, ArithmeticError):
    """Training produced NaN or infinity, or left its allowed region; names the step."""


class KlLimitError(DivergedError):
    """The policy left the limits of the KL watch, and training stopped."""


class RewardError(RlhfError, RuntimeError):
    """A term of the reward gave no number for a response; names the term and the response."""


class RolloutError(RlhfError, RuntimeError):
    """The engine that samples responses does not answer, or not as the model would."""


class CheckpointError(RlhfError, RuntimeError):
    """A checkpoint is incomplete, missing, or belongs to another run."""


class BusyError(CheckpointError):
    """Another process is at the same work; nothing of it was touched."""


class ProcessError(RlhfError, RuntimeError):
    """A process of a training that has several failed; the message names it and says why."""


class PeerLostError(ProcessError):
    """Another process of the training is gone: what happened there is the cause, and not this."""


class ModelError(RlhfError, ValueError):
    """A model directory or hub name cannot serve its purpose (tokenizer, template, head)."""


class RegistryError(RlhfError, RuntimeError):
    """The model registry or tracking server does not answer, or lacks what was asked for."""


class SameMoveError(RegistryError):
    """Another command moved to the same release at the same moment: what was wanted is in force."""


class LabelError(RlhfError, RuntimeError):
    """Who should label does not answer, or refuses: a label server, or an AI judge's endpoint."""

    status: int | None = None
    """The HTTP status of what was answered; None where nothing was."""


class QuestionRefusedError(LabelError):
    """One question is refused as such: it is too long, most often. Others may be answered."""


class StorageError(RlhfError, OSError):
    """A file cannot be written; the message names it."""

    path: Path | None = None
    """What cannot be written."""
    refusal: OSError | None = None
    """What the system said."""

    @classmethod
    def about(cls, path: Path, error: OSError) -> Self:
        """Say which file, what the system said, and what to do about it."""
        cause = error.strerror or str(error) or type(error).__name__
        advice = _ADVICE.get(error.errno or 0, "fix the disk, or choose another folder")
        made = cls(f"{path} cannot be written: {cause}; {advice}, then repeat the command")
        made.path, made.refusal = path, error
        return made


class OrchestrationError(RlhfError, RuntimeError):
    """The Prefect server that is configured does not answer."""
