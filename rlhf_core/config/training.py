"""Settings of SFT and reward-model training, and what all trainers share."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rlhf_core.config.base import Count, Fraction, LearningRate, NonNegative, Positive, Section

Schedule = Literal["constant", "linear", "cosine"]


class OptimizerConfig(Section):
    """AdamW with gradient clipping and a learning-rate schedule."""

    learning_rate: LearningRate
    """Highest rate of the schedule."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the mean gradient."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Memory of the mean squared gradient."""
    adam_eps: Positive = 1e-8
    """Added to what divides a step."""
    weight_decay: NonNegative = 0.0
    """Weights shrink by this times the learning rate at every step."""
    max_grad_norm: Positive = 1.0
    """A longer gradient is shortened to this norm."""
    schedule: Schedule = "cosine"
    """How the rate goes on after the warm-up: it stays, or falls to 0 along a line or a cosine."""
    warmup_fraction: Fraction = 0.05
    """Share of all optimiser steps over which the rate rises linearly from 0."""


def filled_with(defaults: OptimizerConfig) -> BeforeValidator:
    """Let a section that names only some settings keep the stage's own defaults for the rest."""
    own = defaults.model_dump(exclude_unset=True)
    return BeforeValidator(lambda value: {**own, **value} if isinstance(value, Mapping) else value)


SFT_OPTIMIZER = OptimizerConfig(learning_rate=2e-5)
REWARD_OPTIMIZER = OptimizerConfig(learning_rate=1e-5)


_EMBEDDINGS = ("lm_head", "embed_tokens", "embed_out", "embed_in", "wte", "wpe", "score")


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1, le=65_536)
    """Width of an adapter."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter; embeddings and the output head never do."""

    @field_validator("targets")
    @classmethod
    def _no_embeddings(cls, targets: tuple[str, ...] | str) -> tuple[str, ...] | str:
        """Refuse what is tied in many models: merging an adapter of one would change the other."""
        for target in () if isinstance(targets, str) else targets:
            if target.rsplit(".", 1)[-1] in _EMBEDDINGS:
                raise ValueError(
                    f"{target} is an embedding or an output head; adapters go on the linear layers "
                    "between, take all-linear or their names"
                )
        return targets


class ComputeConfig(Section):
    """How the arithmetic is done: memory and speed, and with them rounding."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` is autocast: weights and optimiser stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile_layers: bool = False
    """Run decoder layers through ``torch.compile``: faster and smaller steps after a first one
    that takes some ten seconds longer. Needs a C++ compiler."""
    lora: LoraConfig | None = None
    """Train adapters only; they are merged into the weights at the end."""


ENDPOINT = r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):[0-9]{1,5}$"
"""A host by its name or address (IPv6 in brackets), and a port."""


class DistributedConfig(Section):
    """How many processes train a stage; changes where the work is done, and nothing but rounding.

    It is no part of what identifies a run: a stage goes on from its checkpoint with another number.
    """

    processes: int = Field(default=1, ge=1, le=65_536)
    """Processes that share every batch, on all nodes together. 1 trains in the process that was
    started. More need a GPU each, or cores enough."""
    shard: Literal["none", "layers"] = "none"
    """What is divided among them besides the batch. ``none``: each keeps whole models. ``layers``:
    each keeps a part of every decoder layer, its gradients and moments, and puts a layer together
    while it computes: less memory, more to send."""
    nnodes: int = Field(default=1, ge=1, le=65_536)
    """Machines that train together, each with as many of the processes; the same command is started
    on each."""
    node_rank: int = Field(default=0, ge=0)
    """Which of them this is. Node 0 is the stage; the others only run their processes for it."""
    rdzv_endpoint: Annotated[str, Field(pattern=ENDPOINT)] | None = None
    """``HOST:PORT`` of node 0, where the nodes meet (torchrun's ``--rdzv-endpoint``)."""
    rdzv_timeout: Count = 900
    """Seconds in which all nodes have to be there."""

    @property
    def processes_of_a_node(self) -> int:
        """Processes on each of the machines."""
        return self.processes // self.nnodes

    @model_validator(mode="after")
    def _nodes_have_as_many(self) -> "DistributedConfig":
        if self.processes % self.nnodes:
            raise ValueError(
                f"distributed.processes is {self.processes}, of all nodes together, and "
                f"distributed.nnodes {self.nnodes}: each node takes as many, give a multiple"
            )
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"distributed.node_rank is {self.node_rank}, but nodes count from 0 to "
                f"{self.nnodes - 1} with distributed.nnodes {self.nnodes}"
            )
        return self


class KlWatchConfig(Section):
    """What to do when the policy drifts too far from the reference in one iteration.

    Reward over the KL a policy has spent first rises and then falls (Gao et al. 2023,
    arXiv:2210.10760); the limits end a run before it pays for the fall.
    """

    max_kl_per_token: Positive | None = 1.0
    """Mean KL of a batch, nats per response token; None sets no limit."""
    max_kl_per_response: Positive | None = None
    """Mean KL of a batch, nats per response; None sets no limit."""
    action: Literal["lower_learning_rate", "raise_kl_coef", "roll_back", "stop"] = "stop"
    """``roll_back`` returns to the last checkpoint with fresh prompts and a lower learning rate."""
    factor: float = Field(default=2.0, gt=1)
    """The learning rate is divided, or the KL coefficient multiplied, by this."""
    max_interventions: Count = 5
    """After so many interventions the next one stops the run."""


class SelectionConfig(Section):
    """Which checkpoint is offered: the one that the judge prefers, on prompts set apart for that.

    They are taken from the prompts that the policy would train on, each with its whole dialogue;
    no held-out row moves, and looks at the held-out set are not spent.
    """

    num_prompts: int = Field(default=200, ge=0, le=1_000_000)
    """Prompts set apart, of as many dialogues, at most a tenth of all; 0 offers the last checkpoint
    and sets nothing apart."""
    max_checkpoints: Count = 5
    """Weights kept to choose from, spread evenly over the training; the last are among them."""


class SupervisedConfig(Section):
    """What SFT, reward-model and DPO training have in common."""

    num_epochs: Count = 1
    """Passes over the training data."""
    batch_size: Count = 64
    """Sequences (SFT) or pairs (reward, DPO) per optimiser step."""
    micro_batch_tokens: Count = 1_536
    """Tokens per forward pass; bounds memory and does not change the result. On a CPU larger
    ones take more memory and are no faster."""
    compute: ComputeConfig = ComputeConfig()
    distributed: DistributedConfig | None = None
    """Processes of this stage; None takes the ``distributed`` of the whole file."""
    checkpoint_every: Count = 50
    """Optimiser steps between checkpoints."""
    evaluate_every: Count | None = None
    """Optimiser steps between held-out evaluations; None: only at the start and the end."""

    sequences_of_an_item: ClassVar[int] = 1
    """Sequences that always go through a forward pass together: 2 of a pair."""

    @property
    def smallest_batch(self) -> int:
        """Sequences or pairs that processes have to share."""
        return self.batch_size

    def step_tokens(self, longest: int) -> int:
        """Return the most tokens of one forward pass, of sequences of ``longest`` tokens."""
        item = self.sequences_of_an_item * longest
        return min(max(self.micro_batch_tokens, item), self.batch_size * item)


class SftConfig(SupervisedConfig):
    """Supervised fine-tuning on demonstrations."""

    optimizer: Annotated[OptimizerConfig, filled_with(SFT_OPTIMIZER)] = SFT_OPTIMIZER
    loss_on: Literal["response", "assistant_turns"] = "response"
    """``assistant_turns`` lets the assistant's earlier turns in a prompt count as well."""
    early_stopping_patience: Count | None = None
    """Held-out evaluations without a lower NLL after which training stops and the best weights
    are taken; None trains to the end. Needs ``evaluate_every``."""

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> "SftConfig":
        if self.early_stopping_patience is not None and self.evaluate_every is None:
            raise ValueError("early_stopping_patience needs evaluate_every")
        return self


class RewardConfig(SupervisedConfig):
    """Bradley-Terry reward model."""

    sequences_of_an_item: ClassVar[int] = 2
    optimizer: Annotated[OptimizerConfig, filled_with(REWARD_OPTIMIZER)] = REWARD_OPTIMIZER
    center_on_reference: bool = True
    """Shift the scores so that demonstrations score 0 on average."""
    use_soft_labels: bool = False
    """Train towards ``PreferencePair.probability`` instead of certainty that chosen is better."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong (Wang et al. 2024, arXiv:2401.06080); on top of soft
    labels, if there are any."""
    margin_scale: NonNegative = 0.0
    """Ask the scores of a pair to differ by this times the strength of its votes (Touvron et al.
    2023, "Llama 2", arXiv:2307.09288, eq. 2, whose small margins are a third of strengths from 0 to
    3); 0 asks for no margin."""
    margin_of: Literal["strength", "votes"] = "strength"
    """Strength of the votes: what the source says of how much better (``PreferencePair.strength``),
    or the votes' lead for ``chosen``, from 0 (divided) to 1 (of one mind)."""

    @model_validator(mode="after")
    def _margins_are_read(self) -> "RewardConfig":
        if self.margin_of != "strength" and self.margin_scale == 0.0:
            raise ValueError("margin_of is read with a margin_scale above 0 alone")
        return self
