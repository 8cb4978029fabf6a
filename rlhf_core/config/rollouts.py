"""Where responses are sampled: in the training process, or by an engine that serves the model."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, model_validator

from rlhf_core.config.base import Positive, Section, WebAddress

PATIENCE_OF_ENGINES = {
    "url",
    "weights",
    "requests_at_once",
    "timeout_seconds",
    "patience_seconds",
}
"""Settings that decide no response: they may change when a run is resumed."""


class OwnRolloutsConfig(Section):
    """Sampling in the process that trains: the same bits every time."""

    engine: Literal["transformers"] = "transformers"
    """This product's own loop around the transformers model."""

    @property
    def elsewhere(self) -> bool:
        """Whether another process samples."""
        return False


class VllmRolloutsConfig(Section):
    """Sampling by a vLLM server, which lives in an environment of its own; ``docs/ppo.md``."""

    engine: Literal["vllm"]
    """A vLLM server, spoken to over HTTP."""
    url: WebAddress
    """Address of the server, without ``/v1``: ``http://HOST:8000``."""
    weights: Path = Path(".rlhf/engine-weights")
    """Folder in which the server finds the weights: it and this process see it under one path."""
    requests_at_once: Annotated[int, Field(ge=1, le=100)] = 64
    """Prompts asked about at once, each in a request of its own; changes no response."""
    timeout_seconds: Positive = 300.0
    """How long one answer of the server is waited for, and the reading of weights."""
    patience_seconds: Positive = 600.0
    """How long a lost server, or one with other weights, is asked again before the run stops."""
    max_importance_weight: Positive = 2.0
    """Each token's advantage is multiplied by its probability under the trainer over that under the
    engine, at most by this: truncated importance sampling (Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"; the rho-bar of Espeholt et al. 2018,
    arXiv:1802.01561)."""
    max_logprob_difference: Positive = 0.1
    """Largest allowed mean |log-probability of the trainer - of the engine| over the tokens of an
    iteration, nats; takes the place of ``max_logprob_mismatch``."""

    @property
    def elsewhere(self) -> bool:
        """Whether another process samples."""
        return True

    @model_validator(mode="after")
    def _plain_address(self) -> "VllmRolloutsConfig":
        if urlsplit(self.url).path.rstrip("/").endswith("/v1"):
            raise ValueError("url: give the server's own address, without /v1")
        return self


RolloutsConfig = Annotated[OwnRolloutsConfig | VllmRolloutsConfig, Field(discriminator="engine")]


def result_neutral_rollouts(policy: BaseModel) -> bool | set[str]:
    """Return what of ``rollouts`` decides no response, as pydantic's ``exclude`` takes it.

    Of ``transformers`` it is all: runs of builds that had no such setting sampled in the same way.

    Args:
        policy: settings of a policy, or others, which have no ``rollouts``.
    """
    rollouts = getattr(policy, "rollouts", OwnRolloutsConfig())
    return PATIENCE_OF_ENGINES if rollouts.elsewhere else True
