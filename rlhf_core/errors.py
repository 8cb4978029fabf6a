"""Every deliberate error of the project. The command line prints these in one line, exit code 2."""


class RlhfError(Exception):
    """Base of all errors whose message is meant for the person running the command."""


class ConfigError(RlhfError, ValueError):
    """A setting is unknown, missing or out of range; the message names file and key."""


class DataError(RlhfError, ValueError):
    """Input data cannot be used; the message names file and line or row."""


class ShapeError(RlhfError, ValueError):
    """Tensors that must agree in shape do not."""


class MissingMetricError(RlhfError, KeyError):
    """A gate asks for a metric that was never measured."""

    def __str__(self) -> str:
        """Return the plain message; ``KeyError`` would quote it."""
        return str(self.args[0]) if self.args else ""


class DivergedError(RlhfError, ArithmeticError):
    """Training produced NaN or infinity, or left its allowed region; names the step."""


class CheckpointError(RlhfError, RuntimeError):
    """A checkpoint is torn, missing, or belongs to another run."""


class ModelError(RlhfError, ValueError):
    """A model directory or hub name cannot serve its purpose (tokenizer, template, head)."""


class RegistryError(RlhfError, RuntimeError):
    """The model registry or tracking server does not answer, or lacks what was asked for."""


class OrchestrationError(RlhfError, RuntimeError):
    """The Prefect server that is configured does not answer."""
