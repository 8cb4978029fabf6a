"""How pairs of answers are collected from a model, and who says which is better."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_core.config.base import Count, Section, Temperature, WebAddress

_DAY = 86_400.0
Seconds = Annotated[float, Field(gt=0, le=_DAY)]
Patience = Annotated[float, Field(ge=0, le=_DAY)]


class SimulatedLabelerConfig(Section):
    """Votes of a function at once: the demo's annotators, or a rule of your own."""

    kind: Literal["simulated"] = "simulated"
    """A function of the settings votes at once."""
    annotators: str
    """``module:function``: takes a ``random.Random``, the prompt and both responses, and returns
    votes. The worker's RLHF_ALLOWED_FUNCTIONS lists what may be named."""


class AiLabelerConfig(Section):
    """Votes of a language model behind an OpenAI-compatible chat endpoint.

    The key, if it wants one, is the environment's ``RLHF_JUDGE_API_KEY``.
    """

    kind: Literal["ai"] = "ai"
    """A language model votes, by a constitution."""
    url: WebAddress
    """Address below which ``chat/completions`` is: ``http://HOST:8000/v1``."""
    model: str = Field(min_length=1)
    """Name of the model at the endpoint; its votes are by ``ai:<model>``."""
    principles: tuple[str, ...] = Field(min_length=1)
    """The constitution: what makes a response better, a sentence each."""
    principles_per_pair: Count | None = None
    """How many principles are drawn for each pair; None shows all of them."""
    temperature: Temperature | None = 0.0
    """Sampling temperature of the judge; None leaves it to the endpoint."""
    max_tokens: Count | None = 512
    """Longest answer of the judge, its reasons included; None leaves it to the endpoint."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """How often one question is asked until the answer ends with a verdict."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Pairs asked about at once."""
    timeout_seconds: Seconds = 120.0
    """How long one answer is waited for."""
    patience_seconds: Patience = 300.0
    """How long a busy or lost endpoint is asked again before the push stops."""

    @model_validator(mode="after")
    def _enough_principles(self) -> "AiLabelerConfig":
        drawn = self.principles_per_pair or 1
        if drawn > len(self.principles):
            raise ValueError(
                f"principles_per_pair {drawn}, but there are {len(self.principles)} principles"
            )
        return self


class LabelStudioLabelerConfig(Section):
    """Votes of people in Label Studio. The token is the environment's ``LABEL_STUDIO_API_KEY``."""

    kind: Literal["label_studio"] = "label_studio"
    """People vote, when they come to it."""
    url: WebAddress
    """Address of the server."""
    project: Count | None = None
    """Number of a project to add the tasks to; None makes one for each collection."""
    timeout_seconds: Seconds = 60.0
    """How long one answer of the server is waited for."""
    patience_seconds: Patience = 60.0
    """How long a busy or lost server is asked again before the command stops."""


class FileLabelerConfig(Section):
    """Votes come from elsewhere, as files: ``rlhf label pull COLLECTION CONFIG --votes FILE``."""

    kind: Literal["file"] = "file"
    """Whoever votes reads the collection's pairs.jsonl; a push sends nothing."""


LabelerConfig = Annotated[
    SimulatedLabelerConfig | AiLabelerConfig | LabelStudioLabelerConfig | FileLabelerConfig,
    Field(discriminator="kind"),
]


class ChoiceConfig(Section):
    """Ask about the pairs of answers that reward models disagree on most.

    Disagreement is the variance over the models of the probability that the first answer is the
    better one (Christiano et al. 2017, arXiv:1706.03741, section 2.2.4).
    """

    models: tuple[str, ...] = ()
    """Reward models and judges that are asked, two or more. Empty: the project's reward model and
    judge, by alias; a round of ``rlhf rounds`` takes those that its own run trained."""
    drawn_per_pair: int = Field(default=4, ge=2, le=1_000)
    """Prompts answered for each pair that is kept: of 4 times ``num_prompts`` pairs, a quarter."""

    @model_validator(mode="after")
    def _somebody_to_disagree_with(self) -> "ChoiceConfig":
        if len(set(self.models)) == 1:
            raise ValueError(
                f"models names {self.models[0]} alone: name two different ones or more, or none"
            )
        return self


class RoundsConfig(Section):
    """Rounds of training, collecting, labelling and training again: ``rlhf rounds``."""

    start: Literal["base", "champion"] = "base"
    """What SFT of the rounds after the first starts from. ``base``: ``model.base`` again, so that
    every round is measured against the same SFT model and no round's mistake lives on in the
    weights (Bai et al. 2022, arXiv:2204.05862, section 4.5, train anew on all data so far).
    ``champion``: the champion at that time, which is then the reference of the KL, too."""
    min_labelled_fraction: float = Field(default=0.9, gt=0, le=1)
    """Share of a round's pairs that need their votes before the next round begins, where people
    vote. An AI judge and simulated annotators have said all they say when the push ends."""


class FeedbackConfig(Section):
    """Pairs of a model's own answers, and their labels. No part of what trains a run."""

    prompts: Path | None = None
    """Prompts to answer; None takes ``data.prompts.production_path``, and without that the training
    prompts of the prepared dataset. Held-out dialogues of the dataset are never asked."""
    num_prompts: Count = 200
    """Prompts answered, at most; one of a dialogue."""
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    """Sampling temperature of the responses."""
    max_new_tokens: Count | None = None
    """Longest response, in tokens; None takes what evaluation takes."""
    max_resamples: int = Field(default=3, ge=0, le=100)
    """How often a pair of equal or empty responses is drawn again before its prompt is left out."""
    fresh: bool = False
    """Leave out prompts of dialogues that have a pair in the dataset already."""
    choice: ChoiceConfig | None = None
    """Answer more prompts and keep the pairs that reward models disagree on; None keeps all."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the prompts drawn, the responses and their sides; another one makes another collection."""
    output: Path = Path("data/collected")
    """Folder of all collections, one sub-folder each."""
    votes_per_pair: Count = 1
    """Votes that a pair needs to become part of a dataset version."""
    labeler: LabelerConfig
    """Who votes: ``simulated`` annotators, an ``ai`` judge, people in ``label_studio``, or people
    elsewhere, whose votes come as a ``file``."""
    rounds: RoundsConfig = RoundsConfig()
    """How ``rlhf rounds`` goes from one round to the next."""
