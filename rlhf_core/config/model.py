"""The base model every stage starts from."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_core.config.base import Count, Section


class ModelConfig(Section):
    """Where the base model comes from and how texts are rendered for it."""

    base: str
    """Local directory in ``save_pretrained`` layout, or a Hugging Face hub name."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); ignored for a directory."""
    chat_template: Path | None = None
    """Jinja file used when the tokenizer has no chat template of its own; an error if both lack."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute; ``auto`` is the GPU where there is one. Results are the same bits from
    run to run on one kind of device, not across kinds."""
    max_length: Count = 512
    """Longest prompt plus response, in tokens; longer rows are set aside by preparation."""
    max_prompt_length: Count | None = Field(default=None)
    """Longest prompt PPO samples from and evaluation asks, in tokens; None means ``max_length``
    less ``policy.max_new_tokens`` (PPO), or half of it (DPO)."""
