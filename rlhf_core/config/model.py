"""The base model every stage starts from."""

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from rlhf_core.config.base import Count, Section

TemplateValue = bool | int | float | str | list[str] | None
_NOT_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
)
"""What every rendering passes itself."""


class ModelConfig(Section):
    """Where the base model comes from and how texts are rendered for it."""

    base: str
    """Local directory in ``save_pretrained`` layout, or a Hugging Face hub name."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); ignored for a directory."""
    chat_template: Path | None = None
    """Jinja file that conversations are rendered with, in place of the tokenizer's own template; an
    error if both lack."""
    chat_template_kwargs: dict[str, TemplateValue] = Field(default_factory=dict)
    """Values of the template's variables, such as ``enable_thinking: false``; the template saved
    with a model has them, so it says the same wherever it is used."""
    template_date: date | None = None
    """What a chat template that reads the clock takes for today, in every stage and in what is
    saved; None means the day on which the dataset was prepared, as its manifest says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute; ``auto`` is the GPU where there is one. Results are the same bits from
    run to run on one kind of device, not across kinds."""
    save_dtype: Literal["base", "float32"] = "base"
    """Precision of the models that are saved: that of the base's files, or float32, in which they
    are trained. bfloat16 has three digits: a short training or a low learning rate moves most
    weights by less than the last of them, and is undone when they are rounded."""
    max_length: int = Field(default=512, ge=1, le=10_000_000)
    """Longest prompt plus response, in tokens; longer rows are filtered out by preparation."""
    max_prompt_length: Count | None = Field(default=None)
    """Longest prompt PPO samples from and evaluation asks, in tokens; None means ``max_length``
    less ``policy.max_new_tokens`` (PPO), or half of it (DPO)."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _require_variables(cls, kwargs: dict[str, TemplateValue]) -> dict[str, TemplateValue]:
        for name in kwargs:
            if not name.isidentifier() or name.startswith("_") or name in _NOT_VARIABLES:
                raise ValueError(f"{name!r} is no variable of a chat template that can be set")
        return kwargs
