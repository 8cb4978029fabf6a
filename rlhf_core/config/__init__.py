"""Settings that change results: pydantic, frozen, unknown key = error."""

from rlhf_core.config.base import Section
from rlhf_core.config.data import (
    VERSION_NAME,
    CleaningConfig,
    DataConfig,
    DemonstrationsConfig,
    PromptsConfig,
    SourceConfig,
    UnpairedConfig,
    VotesConfig,
)
from rlhf_core.config.dpo import DpoConfig
from rlhf_core.config.evaluation import (
    GATED_STAGES,
    EvaluationConfig,
    GateConfig,
    GatedStage,
    GatesConfig,
    MonitorsConfig,
    RequiredGates,
)
from rlhf_core.config.feedback import (
    AiLabelerConfig,
    ChoiceConfig,
    FeedbackConfig,
    FileLabelerConfig,
    LabelerConfig,
    LabelStudioLabelerConfig,
    SimulatedLabelerConfig,
)
from rlhf_core.config.judges import (
    OWN_JUDGE,
    AiJudgeConfig,
    JudgeConfig,
    RewardModelJudgeConfig,
    judges_of,
)
from rlhf_core.config.load import (
    RESULT_NEUTRAL,
    config_digest,
    load_config,
    load_preparation,
    load_with_origins,
)
from rlhf_core.config.model import ModelConfig
from rlhf_core.config.pipeline import PipelineConfig, PreparationConfig
from rlhf_core.config.policy import PolicyConfig
from rlhf_core.config.ppo import PpoConfig
from rlhf_core.config.promotion import PromotionConfig, RetentionConfig
from rlhf_core.config.reward_terms import (
    RUN_REWARD,
    EndpointTermConfig,
    FunctionTermConfig,
    ModelTermConfig,
    RewardTerm,
)
from rlhf_core.config.rollouts import OwnRolloutsConfig, RolloutsConfig, VllmRolloutsConfig
from rlhf_core.config.training import (
    ComputeConfig,
    DistributedConfig,
    KlWatchConfig,
    LoraConfig,
    OptimizerConfig,
    RewardConfig,
    SftConfig,
    SupervisedConfig,
)

__all__ = [
    "GATED_STAGES",
    "OWN_JUDGE",
    "RESULT_NEUTRAL",
    "RUN_REWARD",
    "VERSION_NAME",
    "AiJudgeConfig",
    "AiLabelerConfig",
    "ChoiceConfig",
    "CleaningConfig",
    "ComputeConfig",
    "DataConfig",
    "DemonstrationsConfig",
    "DistributedConfig",
    "DpoConfig",
    "EndpointTermConfig",
    "EvaluationConfig",
    "FeedbackConfig",
    "FileLabelerConfig",
    "FunctionTermConfig",
    "GateConfig",
    "GatedStage",
    "GatesConfig",
    "JudgeConfig",
    "KlWatchConfig",
    "LabelStudioLabelerConfig",
    "LabelerConfig",
    "LoraConfig",
    "ModelConfig",
    "ModelTermConfig",
    "MonitorsConfig",
    "OptimizerConfig",
    "OwnRolloutsConfig",
    "PipelineConfig",
    "PolicyConfig",
    "PpoConfig",
    "PreparationConfig",
    "PromotionConfig",
    "PromptsConfig",
    "RequiredGates",
    "RetentionConfig",
    "RewardConfig",
    "RewardModelJudgeConfig",
    "RewardTerm",
    "RolloutsConfig",
    "Section",
    "SftConfig",
    "SimulatedLabelerConfig",
    "SourceConfig",
    "SupervisedConfig",
    "UnpairedConfig",
    "VllmRolloutsConfig",
    "VotesConfig",
    "config_digest",
    "judges_of",
    "load_config",
    "load_preparation",
    "load_with_origins",
]
