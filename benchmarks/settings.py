"""What is compared with what: TRL 1.16 at its defaults and at its best, and ours."""

from dataclasses import dataclass, field

Options = dict[str, object]


@dataclass(frozen=True)
class Setting:
    """One setting of the peer, and the settings of ours that take turns with it.

    Every side trains on the same 64 sequences in each step.
    """

    name: str
    peer: Options
    ours: dict[str, Options] = field(default_factory=lambda: {PLAIN: {}})
    same_numbers: bool = True
    """False where the peer's setting changes the arithmetic, so that losses may differ."""


PLAIN = "defaults"
WHOLE: Options = {"per_device_train_batch_size": 64}
PAIRS: Options = {"per_device_train_batch_size": 32}
BY_LENGTH: Options = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "train_sampling_strategy": "group_by_length",
}
PAIRS_BY_LENGTH: Options = {**BY_LENGTH, "gradient_accumulation_steps": 4}
CHECKPOINTING: Options = {"gradient_checkpointing": True}
COMPILED: Options = {"compute": {"compile_layers": True}}
SMALL: Options = {"micro_batch_tokens": 1_536}
SMALL_RUNS: dict[str, Options] = {
    "micro-batches of 1,536 tokens": SMALL,
    "the same, compiled layers": {**SMALL, **COMPILED},
}
"""About the tokens of the peer's micro-batches, so that memory is compared like with like."""
WITH_AND_WITHOUT_COMPILING: dict[str, Options] = {PLAIN: {}, "compiled layers": COMPILED}
REFERENCE: Options = {"reference_each_step": True}

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "sft": (
        Setting("padded", WHOLE, WITH_AND_WITHOUT_COMPILING),
        Setting("grouped by length, 8 x 8", BY_LENGTH, SMALL_RUNS),
        Setting("packing bfd", {**WHOLE, "packing": True, "max_length": 1_024}, same_numbers=False),
        Setting("padded, gradient checkpointing", {**WHOLE, **CHECKPOINTING}),
    ),
    "reward": (
        Setting("padded", PAIRS, WITH_AND_WITHOUT_COMPILING),
        Setting("grouped by length, 8 x 4", PAIRS_BY_LENGTH, SMALL_RUNS),
        Setting("padded, gradient checkpointing", {**PAIRS, **CHECKPOINTING}),
    ),
    "dpo": (
        Setting("padded", PAIRS, {PLAIN: REFERENCE, "compiled layers": {**REFERENCE, **COMPILED}}),
        Setting(
            "reference computed before, grouped by length, 8 x 4",
            {**PAIRS_BY_LENGTH, "precompute_ref_log_probs": True},
            SMALL_RUNS,
        ),
        Setting("padded, gradient checkpointing", {**PAIRS, **CHECKPOINTING}, {PLAIN: REFERENCE}),
    ),
}
