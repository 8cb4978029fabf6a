"""Comparisons to prepare, and the settings that prepare them."""

import json
from pathlib import Path

from rlhf_core.config import PipelineConfig


def comparisons(num_rows=400) -> list[dict]:
    """Two comparisons a prompt, three votes each; every tenth is a tie."""
    return [
        {
            "comparison_id": f"c{i}",
            "prompt": f"Question {i // 2}?",
            "response_a": f"Answer {i}.",
            "response_b": f"I do not know {i}.",
            "votes": [
                {"annotator": f"w{j}", "choice": choice}
                for j, choice in enumerate(
                    ["a", "b", "tie"] if i % 10 == 0 else ["a", "a", "b" if i % 3 else "a"]
                )
            ],
        }
        for i in range(num_rows)
    ]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(tmp_path: Path, **data) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "model": {"base": "unused"},
            "policy": {"algorithm": "ppo"},
            "gates": {"sft": [], "reward": [], "policy": []},
            "data": {
                "preferences": {"path": str(tmp_path / "pairs.jsonl")},
                "output": str(tmp_path / "prepared"),
                "heldout_fraction": 0.2,
                "cleaning": {"tokens": False},
                **data,
            },
        }
    )
