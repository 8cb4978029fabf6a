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
    RowCounts,
    StageResult,
    ValidationReport,
    Verdict,
)
from rlhf_core.schema.text import (
    UNNAMED,
    Choice,
    Comparison,
    Conversation,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Role,
    Vote,
    annotator_name,
)
from rlhf_core.schema.versions import BatchResult, DataVersion

__all__ = [
    "UNNAMED",
    "BatchResult",
    "CheckResult",
    "Choice",
    "Comparison",
    "Conversation",
    "DataVersion",
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
    "RowCounts",
    "RunContext",
    "StageName",
    "StageResult",
    "ValidationReport",
    "Verdict",
    "Vote",
    "annotator_name",
]
