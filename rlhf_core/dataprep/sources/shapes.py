"""The shapes in which people publish comparisons, and the settings that read each.

One place says them all: a shape is recognised by the columns it has, and read by one of the formats
under ``columns``, ``choices`` and ``strengths``. A new shape is an entry here and a row in
docs/data.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.config.data import DemonstrationFormat, SourceFormat
from rlhf_core.schema import Choice

FIRST_IS_0: Mapping[str, Choice] = {"0": "a", "1": "b"}


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape: columns that tell it, and how it is read."""

    name: str
    has: tuple[str, ...]
    """Columns, or paths into them, that every file of this shape has."""
    format: SourceFormat
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our names to theirs; those that a file lacks are left out."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    note: str = ""
    """What the shape takes for granted."""

    def settings(self, there: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings for a file that has the columns ``there``."""
        columns = {
            ours: theirs
            for ours, theirs in self.columns.items()
            if theirs.split(".")[0] in there or theirs in there
        }
        parts = {"format": self.format, "columns": columns, "choices": dict(self.choices)}
        return {name: part for name, part in parts.items() if part}


_OPEN_AI = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
_ARENA = {
    "response_a": "conversation_a",
    "response_b": "conversation_b",
    "annotator": "judge",
    "comparison_id": "question_id",
}

SHAPES: tuple[Shape, ...] = (
    Shape(
        "OpenAI preference",
        ("input.messages", "preferred_output", "non_preferred_output"),
        "pairs",
        {"prompt": "input.messages", **_OPEN_AI},
    ),
    Shape(
        "OpenAI preference, input as text",
        ("input", "preferred_output", "non_preferred_output"),
        "pairs",
        {"prompt": "input", **_OPEN_AI},
    ),
    Shape(
        "chat and rejected answer (ms-swift)",
        ("messages", "rejected_response"),
        "pairs",
        {"chosen": "messages", "rejected": "rejected_response"},
    ),
    Shape(
        "chat and rejected chat (ms-swift)",
        ("messages", "rejected_messages"),
        "pairs",
        {"chosen": "messages", "rejected": "rejected_messages"},
    ),
    Shape(
        "ShareGPT with chosen and rejected (LLaMA-Factory)",
        ("conversations", "chosen", "rejected"),
        "pairs",
        {"prompt": "conversations"},
    ),
    Shape(
        "instruction with chosen and rejected (Alpaca)",
        ("instruction", "chosen", "rejected"),
        "pairs",
        {"prompt": "instruction"},
    ),
    Shape(
        "distilabel Orca pairs",
        ("input", "chosen", "rejected", "original_chosen", "status"),
        "flat",
        {"prompt": "input", "response_a": "chosen", "response_b": "rejected", "choice": "status"},
        {"unchanged": "a", "swapped": "a", "tie": "tie"},
        "chosen is better unless its status says tie",
    ),
    Shape("chosen and rejected", ("prompt", "chosen", "rejected"), "pairs"),
    Shape(
        "chosen and rejected to a question",
        ("question", "chosen", "rejected"),
        "pairs",
        {"prompt": "question"},
    ),
    Shape("HH-RLHF", ("chosen", "rejected"), "hh"),
    Shape("chosen and rejected, the prompt within", ("chosen", "rejected"), "pairs"),
    Shape(
        "question with two answers, the first better",
        ("question", "response_j", "response_k"),
        "pairs",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
    Shape(
        "winner and loser as papers write them",
        ("x", "y_w", "y_l"),
        "pairs",
        {"prompt": "x", "chosen": "y_w", "rejected": "y_l"},
    ),
    Shape("Label Studio", ("data", "annotations"), "label_studio"),
    Shape("our records", ("prompt", "response_a", "response_b", "votes"), "canonical"),
    Shape(
        "arena, one-hot winner",
        ("conversation_a", "conversation_b", "winner_model_a", "winner_model_b"),
        "flat",
        {
            **_ARENA,
            "winner_a": "winner_model_a",
            "winner_b": "winner_model_b",
            "winner_tie": "winner_tie",
        },
    ),
    Shape(
        "arena",
        ("conversation_a", "conversation_b", "winner"),
        "flat",
        {**_ARENA, "choice": "winner"},
    ),
    Shape(
        "arena with answers, one-hot winner",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        "flat",
        {
            "winner_a": "winner_model_a",
            "winner_b": "winner_model_b",
            "winner_tie": "winner_tie",
        },
    ),
    Shape(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        "flat",
        {
            "prompt": "history",
            "response_a": "human_ref_A",
            "response_b": "human_ref_B",
            "choice": "labels",
        },
        {"1": "a", "0": "b"},
        "labels 1: the first is better, as its publisher says",
    ),
    Shape(
        "PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        "flat",
        {"response_a": "response_0", "response_b": "response_1", "choice": "better_response_id"},
        FIRST_IS_0,
    ),
    Shape(
        "HelpSteer preference",
        ("prompt", "response_1", "response_2", "preference_strength"),
        "flat",
        {
            "response_a": "response_1",
            "response_b": "response_2",
            "preference": "preference_strength",
        },
        note="below 0 the first is better, as its publisher says",
    ),
    Shape(
        "HelpSteer3 preference",
        ("context", "response1", "response2", "overall_preference"),
        "flat",
        {
            "prompt": "context",
            "response_a": "response1",
            "response_b": "response2",
            "preference": "overall_preference",
        },
        note="below 0 the first is better, as its publisher says",
    ),
    Shape(
        "summaries with a choice",
        ("info.post", "summaries.1.text", "choice"),
        "flat",
        {
            "prompt": "info.post",
            "response_a": "summaries.0.text",
            "response_b": "summaries.1.text",
            "annotator": "worker",
        },
        FIRST_IS_0,
    ),
    Shape(
        "WebGPT comparisons",
        ("question.full_text", "answer_0", "answer_1", "score_0", "score_1"),
        "flat",
        {
            "prompt": "question.full_text",
            "response_a": "answer_0",
            "response_b": "answer_1",
            "score_a": "score_0",
            "score_b": "score_1",
        },
    ),
    Shape(
        "UltraFeedback",
        ("instruction", "completions.*.response", "completions.*.overall_score"),
        "ranked",
        {
            "prompt": "instruction",
            "responses": "completions.*.response",
            "scores": "completions.*.overall_score",
        },
    ),
    Shape(
        "Nectar",
        ("prompt", "answers.*.answer", "answers.*.rank"),
        "ranked",
        {"responses": "answers.*.answer", "ranks": "answers.*.rank"},
    ),
    Shape("tree of ranked replies", ("prompt.replies",), "tree"),
    Shape("tree of ranked replies", ("replies", "text"), "tree"),
    Shape("tree of ranked replies", ("replies", "content"), "tree"),
    Shape("trees, one message a row", ("message_id", "parent_id", "role"), "tree_messages"),
)
"""The first that a file has is tried first."""

DEMONSTRATION_SHAPES: tuple[
    tuple[str, tuple[str, ...], DemonstrationFormat, Mapping[str, str]], ...
] = (
    ("chat", ("messages",), "messages", {}),
    ("chat (ShareGPT)", ("conversations",), "messages", {}),
    ("chat", ("conversation",), "messages", {}),
    ("prompt and completion", ("prompt", "completion"), "messages", {}),
    ("instruction (Alpaca)", ("instruction", "output"), "messages", {}),
    (
        "instruction with context (Dolly)",
        ("instruction", "context", "response"),
        "messages",
        {"input": "context"},
    ),
    ("instruction and response", ("instruction", "response"), "messages", {}),
    ("question and answer", ("question", "answer"), "messages", {}),
    ("our records", ("prompt", "response"), "canonical", {}),
    ("prompt and output", ("prompt", "output"), "messages", {}),
    ("prompt and answer", ("prompt", "answer"), "messages", {}),
    ("HH-RLHF transcripts", ("chosen",), "hh", {}),
)
"""Name, columns, format and renamed columns of files of demonstrations."""
