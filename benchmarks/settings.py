"""What is compared with what: TRL 1.16 at its defaults and at its best, and ours."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setting:
    """Options of the two sides. Both train on the same 64 sequences in each step."""

    name: str
    peer: dict[str, object]
    ours: dict[str, object] = field(default_factory=dict)
    same_numbers: bool = True
    """False where the peer's setting changes the arithmetic, so that losses may differ."""


WHOLE = {"per_device_train_batch_size": 64}
PAIRS = {"per_device_train_batch_size": 32}
BY_LENGTH = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "train_sampling_strategy": "group_by_length",
}
PAIRS_BY_LENGTH = {**BY_LENGTH, "gradient_accumulation_steps": 4}
SMALL_RUNS = {"micro_batch_tokens": 1_536}
"""About the tokens of the peer's micro-batches, so that memory is compared like with like."""
COMPILED = {"compute": {"compile_layers": True}}

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "sft": (
        Setting("padded", WHOLE),
        Setting(
            "padded, gradient checkpointing (its default)",
            {**WHOLE, "gradient_checkpointing": True},
        ),
        Setting("grouped by length, 8 x 8", BY_LENGTH, SMALL_RUNS),
        Setting("packing bfd", {**WHOLE, "packing": True, "max_length": 1_024}),
        Setting("padded; ours with compiled layers", WHOLE, COMPILED),
    ),
    "reward": (
        Setting("padded", PAIRS),
        Setting(
            "padded, gradient checkpointing (its default)",
            {**PAIRS, "gradient_checkpointing": True},
        ),
        Setting("grouped by length, 8 x 4", PAIRS_BY_LENGTH, SMALL_RUNS),
        Setting("padded; ours with compiled layers", PAIRS, COMPILED),
    ),
    "dpo": (
        Setting("padded", PAIRS, {"reference_each_step": True}),
        Setting(
            "padded, gradient checkpointing (its default)",
            {**PAIRS, "gradient_checkpointing": True},
            {"reference_each_step": True},
        ),
        Setting(
            "reference computed before, grouped by length, 8 x 4",
            {**PAIRS_BY_LENGTH, "precompute_ref_log_probs": True},
            SMALL_RUNS,
        ),
        Setting(
            "padded; ours with compiled layers", PAIRS, {"reference_each_step": True, **COMPILED}
        ),
    ),
}
