"""The whole configuration of one pipeline."""

import difflib
from pathlib import Path

from pydantic import Field, model_validator

from rlhf_core.config.base import Section
from rlhf_core.config.data import DataConfig
from rlhf_core.config.evaluation import (
    GATED_STAGES,
    EvaluationConfig,
    GateConfig,
    GatedStage,
    GatesConfig,
)
from rlhf_core.config.feedback import FeedbackConfig
from rlhf_core.config.judges import OWN_JUDGE, AiJudgeConfig, judges_of
from rlhf_core.config.metric_names import (
    BEST_OF_K,
    BEST_OF_N_METRICS,
    ERROR_CORRELATION,
    SHUFFLED,
    metrics_of,
)
from rlhf_core.config.model import ModelConfig
from rlhf_core.config.policy import PolicyConfig
from rlhf_core.config.promotion import PromotionConfig, RetentionConfig
from rlhf_core.config.reward_terms import ModelTermConfig
from rlhf_core.config.stages import section_of
from rlhf_core.config.suites import DIFFERENCE, SCORE, suite_of
from rlhf_core.config.training import DistributedConfig, RewardConfig, SftConfig
from rlhf_core.errors import ConfigError


class PreparationConfig(Section):
    """What preparation of data needs: a file with ``data`` and ``model`` and no more will do.

    The other sections may stand in the file and are checked as ever.
    """

    project: str = Field(default="rlhf", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Prefix of the registered model names."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Every random number of the run derives from this one."""
    runs: Path = Path("runs")
    """Folder for checkpoints, models and reports, one sub-folder a run."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of stages that have finished. Else they are deleted once the stage's
    result is written, the policy's once its evaluation has said yes or no."""
    retention: RetentionConfig | None = None
    """Which earlier runs are deleted when a pipeline ends; None deletes none."""
    model: ModelConfig
    data: DataConfig
    distributed: DistributedConfig = DistributedConfig()
    """Processes that train each stage, unless its own section says otherwise."""
    sft: SftConfig = SftConfig()
    reward: RewardConfig = RewardConfig()
    judge: RewardConfig | None = None
    """Settings of the judge; None takes those of ``reward``. It trains on its own half of data."""
    policy: PolicyConfig | None = None
    """Policy optimisation: PPO against the reward model, or DPO straight from the pairs."""
    evaluation: EvaluationConfig = EvaluationConfig()
    gates: GatesConfig | None = None
    promotion: PromotionConfig = PromotionConfig()
    feedback: FeedbackConfig | None = None
    """How pairs of the model's answers are collected and labelled; None where nobody does."""

    def longest_prompt(self) -> int:
        """Return how many tokens a prompt may have, so that its response still fits."""
        if self.model.max_prompt_length is not None:
            return self.model.max_prompt_length
        sampled = self.sampled_tokens()
        return self.model.max_length // 2 if sampled is None else self.model.max_length - sampled

    def sampled_tokens(self) -> int | None:
        """Return the longest response sampled in training; None where none is."""
        return None if self.policy is None else self.policy.sampled_tokens

    @model_validator(mode="after")
    def _prompt_and_response_fit(self) -> "PreparationConfig":
        response = self.sampled_tokens()
        if response is not None:
            prompt = max(self.longest_prompt(), 1)
            if prompt + response > self.model.max_length:
                raise ValueError(
                    f"model.max_length {self.model.max_length} has no room for a prompt of "
                    f"{prompt} tokens (model.max_prompt_length) and a response of {response} "
                    "(policy.max_new_tokens)"
                )
        return self


class PipelineConfig(PreparationConfig):
    """Everything that can change a result. Hosts and credentials are environment, not here."""

    policy: PolicyConfig
    """Policy optimisation: PPO against the reward model, or DPO straight from the pairs."""
    gates: GatesConfig

    @model_validator(mode="after")
    def _best_of_n_has_a_reward_model(self) -> "PipelineConfig":
        if self.evaluation.best_of_n is not None and not self.policy.needs_reward_model:
            raise ValueError(
                f"evaluation.best_of_n: {self.policy.algorithm} trains no reward model, and nobody "
                "chooses among the answers; leave best_of_n out, or take a policy.algorithm that "
                "has one (ppo)"
            )
        return self

    @model_validator(mode="after")
    def _gates_can_be_measured(self) -> "PipelineConfig":
        own_vices, suites = self.evaluation.monitors.phrases, self.evaluation.suites
        of_suites = [f"suite/{suite.name}/[TAG/]{DIFFERENCE} or {SCORE}" for suite in suites]
        for stage in GATED_STAGES:
            measured = metrics_of(stage, own_vices) - self._left_out()
            levels: dict[str, float] = {}
            for gate in self.gates_of(stage):
                if levels.setdefault(gate.metric, gate.confidence) != gate.confidence:
                    raise ValueError(
                        f"{gate.metric} is gated at two confidences, by gates.{stage} and by "
                        "promotion; a metric has one"
                    )
                if gate.metric not in measured and not suite_of(gate.metric, suites):
                    names = (*sorted(measured), *of_suites)
                    close = difflib.get_close_matches(gate.metric, names, n=3)
                    meant = f"did you mean {' or '.join(close)}? docs/gates.md lists all"
                    raise ValueError(
                        f"gates.{stage}: {gate.metric} is not measured with these settings; "
                        + (meant if close else f"measured are {', '.join(names)}")
                    )
                gate.require_some_fail()
                needed = self.evaluation.resamples_for(gate.confidence)
                if self.evaluation.num_resamples < needed:
                    raise ValueError(
                        f"gates.{stage}: {gate.metric} at confidence {gate.confidence:g} needs "
                        f"evaluation.num_resamples of at least {needed}, found "
                        f"{self.evaluation.num_resamples}"
                    )
        return self

    @model_validator(mode="after")
    def _unpaired_rows_are_read(self) -> "PipelineConfig":
        if self.data.unpaired and not self.policy.knows_unpaired:
            raise ValueError(
                "data.unpaired: only policy.algorithm dpo with policy.loss kto learns from "
                "responses with good or bad labels; take that, or leave data.unpaired out"
            )
        has_some = bool(self.data.unpaired) or self.data.version is not None
        if self.policy.needs_unpaired and not has_some:
            raise ValueError(
                "policy.train_on asks for responses with good or bad labels: name their files in "
                "data.unpaired, or leave train_on out"
            )
        return self

    def _left_out(self) -> frozenset[str]:
        """Metrics that these settings do not have.

        Greedy answers have no KL, a policy without a reward model no gap to it, and judges that all
        answer in words no scores.
        """
        greedy = ("policy/kl", "policy/kl_k3") if self.evaluation.temperature == 0.0 else ()
        no_reward = ("policy/reward_gain", "policy/proxy_gap", f"policy/{ERROR_CORRELATION}")
        named = self.evaluation.best_of_k is not None
        no_file = () if named else (f"reward/{BEST_OF_K}", f"judge/{BEST_OF_K}")
        drawn = self.evaluation.best_of_n is not None
        not_drawn = () if drawn else (f"policy/{name}" for name in BEST_OF_N_METRICS)
        judges = judges_of(self.evaluation.judge)
        no_score = judges and all(isinstance(judge, AiJudgeConfig) for judge in judges)
        of_scores = (f"policy/{SHUFFLED}", f"policy/{SHUFFLED}_increase")
        return frozenset(
            (
                *greedy,
                *no_file,
                *not_drawn,
                *(() if self.policy.needs_reward_model else no_reward),
                *(of_scores if no_score else ()),
            )
        )

    def gates_of(self, stage: GatedStage) -> tuple[GateConfig, ...]:
        """Return all that a stage's model has to pass.

        For a policy that is the champion too, and that it does not fool its judge.
        """
        own = self.gates.of_stage(stage)
        if stage != "policy":
            return own
        own = (*own, *self.promotion.gates())
        return (*own, *self.gates.against_reward_hacking(own, self._left_out()))

    def judge_settings(self) -> RewardConfig:
        """Return what the judge trains with."""
        return self.judge or self.reward

    def training_of(self, stage: GatedStage) -> SftConfig | RewardConfig | PolicyConfig:
        """Return what a stage trains with."""
        own: SftConfig | RewardConfig | PolicyConfig = getattr(self, section_of(stage, self))
        return own

    def feedback_settings(self) -> FeedbackConfig:
        """Return how pairs are collected and labelled.

        Raises:
            ConfigError: the configuration does not say.
        """
        if self.feedback is None:
            raise ConfigError(
                "feedback: no such section in the configuration; it says how pairs are collected"
                " and who labels them, docs/feedback.md shows one"
            )
        return self.feedback

    def distributed_of(self, stage: GatedStage) -> DistributedConfig:
        """Return how many processes train a stage."""
        return self.training_of(stage).distributed or self.distributed

    @model_validator(mode="after")
    def _the_judge_is_no_reward(self) -> "PipelineConfig":
        judges = {
            seat if isinstance(seat, str) else seat.model
            for seat in judges_of(self.evaluation.judge)
            if seat != OWN_JUDGE
        }
        for index, term in enumerate(self.policy.rewards):
            both = judges & {*term.models} if isinstance(term, ModelTermConfig) else set()
            if both:
                raise ValueError(
                    f"policy.rewards.{index} and evaluation.judge both name {min(both)}: whoever "
                    "trains the policy does not judge it; take another judge"
                )
        return self

    @model_validator(mode="after")
    def _every_process_has_rows(self) -> "PipelineConfig":
        if self.policy.rollouts.elsewhere and self.distributed_of("policy").processes > 1:
            raise ValueError(
                f"policy.rollouts.engine {self.policy.rollouts.engine} needs the policy trained in "
                "one process: set policy.distributed.processes to 1, or take engine: transformers"
            )
        for stage in GATED_STAGES:
            processes = self.distributed_of(stage).processes
            rows = self.training_of(stage).smallest_batch
            if processes > rows:
                raise ValueError(
                    f"distributed.processes is {processes} for {stage}, whose batches have "
                    f"{rows} rows: give each process one at least, or take fewer"
                )
        return self

    def answer_length(self) -> int:
        """Return the longest answer that evaluation samples, in tokens."""
        if self.evaluation.max_new_tokens is not None:
            return self.evaluation.max_new_tokens
        if self.policy.sampled_tokens is not None:
            return self.policy.sampled_tokens
        return self.model.max_length - self.longest_prompt()
