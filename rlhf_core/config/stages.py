"""What each stage is: one entry a stage, read by all that run, plan, list or clean stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rlhf_core.schema import ModelRole, StageName

if TYPE_CHECKING:
    from rlhf_core.config.pipeline import PipelineConfig

Source = Literal["raw", "base", "rewards", "votes", "suites"]
"""What no stage makes: raw data, the base model, the terms of ``policy.rewards``, people's votes on
the answers that were evaluated, and the questions of ``evaluation.suites``."""


@dataclass(frozen=True)
class StageKind:
    """A stage, whoever runs it and in which run."""

    section: tuple[str, ...]
    """Where its settings stand: in the first of these sections that is given."""
    reads: tuple[StageName, ...] = ()
    """Stages whose results it reads."""
    reads_if: Mapping[StageName, Callable[["PipelineConfig"], bool]] = field(default_factory=dict)
    """Those of them that only some settings ask for."""
    sources: tuple[Source, ...] = ()
    """What else it reads."""
    judges: ModelRole | None = None
    """Whose model its gates decide about: its own, or an earlier stage's; None: it has no gates."""

    @property
    def works_on_models(self) -> bool:
        """Whether it makes or measures a model, from the dataset, and returns a ``StageResult``."""
        return "prepare" in self.reads


def _needs_reward_model(config: "PipelineConfig") -> bool:
    return config.policy.needs_reward_model


def _chooses_checkpoint(config: "PipelineConfig") -> bool:
    return config.policy.selection.num_prompts > 0


STAGES: dict[StageName, StageKind] = {
    "prepare": StageKind(section=("data",), sources=("raw",)),
    "sft": StageKind(section=("sft",), reads=("prepare",), sources=("base",), judges="sft"),
    "reward": StageKind(section=("reward",), reads=("prepare", "sft"), judges="reward"),
    "judge": StageKind(section=("judge", "reward"), reads=("prepare", "sft"), judges="judge"),
    "policy": StageKind(
        section=("policy",),
        reads=("prepare", "sft", "reward", "judge"),
        reads_if={"reward": _needs_reward_model, "judge": _chooses_checkpoint},
        sources=("rewards",),
    ),
    "evaluate": StageKind(
        section=("evaluation",),
        reads=("prepare", "sft", "reward", "judge", "policy"),
        reads_if={"reward": _needs_reward_model},
        sources=("votes", "suites"),
        judges="policy",
    ),
    "promote": StageKind(section=("promotion",), reads=("evaluate",)),
}
"""In the order in which they run."""

JUDGING = tuple(name for name, kind in STAGES.items() if kind.judges is not None)
"""Stages whose results have metrics and gates."""


def reads_of(stage: StageName, config: "PipelineConfig") -> tuple[StageName, ...]:
    """Return the stages whose results a stage reads, as the settings are."""
    kind = STAGES[stage]
    asked = {name: condition(config) for name, condition in kind.reads_if.items()}
    return tuple(read for read in kind.reads if asked.get(read, True))


def stages_of(config: "PipelineConfig") -> tuple[StageName, ...]:
    """Return the stages of a pipeline in order: those that another one reads, and the last."""
    read = {name for stage in STAGES for name in reads_of(stage, config)}
    return tuple(stage for stage in STAGES if stage in read or stage == tuple(STAGES)[-1])


def section_of(stage: StageName, config: object) -> str:
    """Return the section of the settings that a stage takes."""
    return next(name for name in STAGES[stage].section if getattr(config, name) is not None)
