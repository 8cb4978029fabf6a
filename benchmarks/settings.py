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
    threads: int = 1
    """Of each side. With several the clock on the wall counts, so the machine has to be quiet."""


PLAIN = "defaults"
EIGHTS: Options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8}
"""TRL's own way: its default micro-batch, accumulated to the batch."""
PAIRS_IN_EIGHTS: Options = {**EIGHTS, "gradient_accumulation_steps": 4}
WHOLE: Options = {"per_device_train_batch_size": 64}
PAIRS: Options = {"per_device_train_batch_size": 32}
BY_LENGTH: Options = {**EIGHTS, "train_sampling_strategy": "group_by_length"}
PAIRS_BY_LENGTH: Options = {**PAIRS_IN_EIGHTS, "train_sampling_strategy": "group_by_length"}
CHECKPOINTING: Options = {"gradient_checkpointing": True}
COMPILED: Options = {"compute": {"compile_layers": True}}
WITH_AND_WITHOUT_COMPILING: dict[str, Options] = {PLAIN: {}, "compiled layers": COMPILED}
"""Our default, micro-batches of 1,536 tokens, holds about as many as the peer's micro-batches of 8,
so that memory is compared like with like."""
LARGE = "micro-batches of 4,096 tokens"
LARGE_BATCHES: Options = {"micro_batch_tokens": 4_096}
LARGE_RUNS: dict[str, Options] = {
    LARGE: LARGE_BATCHES,
    "the same, compiled layers": {**LARGE_BATCHES, **COMPILED},
}
"""Beside the peer's whole batch at once."""
REFERENCE: Options = {"reference_each_step": True}


def own_way(peer: Options, ours: Options) -> tuple[Setting, ...]:
    """Return the peer in its own way: by processor seconds of a thread, by the clock of two."""
    runs = {**WITH_AND_WITHOUT_COMPILING, LARGE: LARGE_BATCHES}
    variants = {name: {**ours, **options} for name, options in runs.items()}
    return (
        Setting("micro-batches of 8", peer, variants),
        Setting("micro-batches of 8, two threads", peer, {PLAIN: ours}, threads=2),
    )


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "sft": (
        *own_way(EIGHTS, {}),
        Setting("padded", WHOLE, LARGE_RUNS),
        Setting("grouped by length, 8 x 8", BY_LENGTH, WITH_AND_WITHOUT_COMPILING),
        Setting(
            "packing bfd",
            {**WHOLE, "packing": True, "max_length": 1_024},
            {LARGE: LARGE_BATCHES},
            same_numbers=False,
        ),
        Setting(
            "padded, gradient checkpointing", {**WHOLE, **CHECKPOINTING}, {LARGE: LARGE_BATCHES}
        ),
    ),
    "reward": (
        *own_way(PAIRS_IN_EIGHTS, {}),
        Setting("padded", PAIRS, LARGE_RUNS),
        Setting("grouped by length, 8 x 4", PAIRS_BY_LENGTH, WITH_AND_WITHOUT_COMPILING),
        Setting(
            "padded, gradient checkpointing", {**PAIRS, **CHECKPOINTING}, {LARGE: LARGE_BATCHES}
        ),
    ),
    "dpo": (
        *own_way(PAIRS_IN_EIGHTS, REFERENCE),
        Setting("padded", PAIRS, {name: {**REFERENCE, **run} for name, run in LARGE_RUNS.items()}),
        Setting(
            "reference computed before, grouped by length, 8 x 4",
            {**PAIRS_BY_LENGTH, "precompute_ref_log_probs": True},
            WITH_AND_WITHOUT_COMPILING,
        ),
        Setting(
            "padded, gradient checkpointing",
            {**PAIRS, **CHECKPOINTING},
            {LARGE: {**REFERENCE, **LARGE_BATCHES}},
        ),
    ),
}
