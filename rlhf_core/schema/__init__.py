"""Records that cross a stage: pydantic, frozen, unknown field = error."""

from rlhf_core.schema.base import Record
from rlhf_core.schema.references import (
    DatasetRef,
    DatasetSplits,
    ModelKind,
    ModelRef,
    RunContext,
    StageName,
)
from rlhf_core.schema.results import (
    CheckResult,
    Estimate,
    EvaluationReport,
    GateResult,
    PromotionDecision,
    StageResult,
    ValidationReport,
    Verdict,
)
from rlhf_core.schema.text import (
    Choice,
    Comparison,
    Conversation,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Role,
    Vote,
)

__all__ = [
    "CheckResult",
    "Choice",
    "Comparison",
    "Conversation",
    "DatasetRef",
    "DatasetSplits",
    "Demonstration",
    "Estimate",
    "EvaluationReport",
    "GateResult",
    "Message",
    "ModelKind",
    "ModelRef",
    "PreferencePair",
    "PromotionDecision",
    "Prompt",
    "Record",
    "Role",
    "RunContext",
    "StageName",
    "StageResult",
    "ValidationReport",
    "Verdict",
    "Vote",
]
