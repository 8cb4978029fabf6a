"""Terms of the reward that a policy is trained on, beside or in place of the run's reward model."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from rlhf_core.config.base import Count, Positive, Section, WebAddress

RUN_REWARD = "run"
"""Names, among ``models``, the reward model that the run itself trained."""


PATIENCE_OF_TERMS = {"time_limit", "timeout_seconds", "patience_seconds", "batch_size"}
"""Settings of terms that decide no score: they may change when a run is resumed."""


class RewardTermConfig(Section):
    """What all terms have: reward = sum of weight * clip(scale(score))."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Multiplies the term's score; below 0 it is a penalty."""
    scale: bool = False
    """Divide the term's scores by their running standard deviation, before the clip."""
    clip: Positive | None = None
    """Scores of this term count up to plus or minus this, before the weight; None: as they are."""


class ModelTermConfig(RewardTermConfig):
    """A reward model's score, or that of several as an ensemble (Coste et al. 2023)."""

    kind: Literal["model"]
    """What scores: reward models."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] = (RUN_REWARD,)
    """``run`` (the run's own), registry versions or aliases (``models:/...``), and folders or hub
    names of models with one score for a text (``AutoModelForSequenceClassification`` with one
    label). Those other than ``run`` read text by their own tokenizer and chat template."""
    combine: Literal["mean", "worst", "uncertainty"] = "mean"
    """Of several models: their mean, the lowest (worst case), or the mean less
    ``uncertainty_coef`` times their variance (Coste et al. 2023, arXiv:2310.02743, section 3)."""
    uncertainty_coef: Positive = 0.5
    """Weight of the variance between models (Coste et al. 2023, section 3, their lambda)."""
    max_length: Count | None = None
    """Longest conversation that models other than ``run`` read, in their own tokens; None takes
    what their config.json says. A longer one ends the run."""

    @model_validator(mode="after")
    def _combines_several(self) -> "ModelTermConfig":
        if self.combine != "mean" and len(self.models) < 2:
            raise ValueError(f"combine {self.combine} needs at least two models, in models")
        if self.combine != "uncertainty" and self.uncertainty_coef != 0.5:
            raise ValueError("uncertainty_coef is read with combine: uncertainty alone")
        if len(set(self.models)) < len(self.models):
            raise ValueError("models names one model twice")
        return self


class FunctionTermConfig(RewardTermConfig):
    """A Python function of prompt, response and reference answer: a verifiable reward."""

    kind: Literal["function"]
    """What scores: a Python function."""
    function: Annotated[str, Field(pattern=r"^.+:[^:/\\]+$")]
    """``file.py:function`` or ``module:function``; the environment of the process has to allow it
    (``RLHF_ALLOWED_FUNCTIONS``). Called with the text of the last user turn, the response, and the
    prompt's ``reference`` or None; returns a number. A parameter named ``conversation`` gets all
    turns of the prompt, a list of ``{role, content}``."""
    time_limit: Positive = 5.0
    """Seconds a call may take, in a process of its own; then the run stops."""


class EndpointTermConfig(RewardTermConfig):
    """A scorer on another machine: JSON over HTTP, a request per rollout batch.

    The key, if it wants one, is the environment's ``RLHF_REWARD_API_KEY``.
    """

    kind: Literal["endpoint"]
    """What scores: a server."""
    url: WebAddress
    """Address that answers a POST of ``{prompts, responses, references, conversations}``, lists of
    one length, with ``{"scores": [...]}``."""
    batch_size: Count = 64
    """Responses per request."""
    timeout_seconds: Positive = 120.0
    """How long one answer is waited for."""
    patience_seconds: Positive = 600.0
    """How long a busy or lost server is asked again before the run stops."""


RewardTerm: TypeAlias = Annotated[
    ModelTermConfig | FunctionTermConfig | EndpointTermConfig, Field(discriminator="kind")
]
