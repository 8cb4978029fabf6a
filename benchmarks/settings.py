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
SMALL: Options = {"micro_batch_tokens": 1_536}
SMALL_RUNS: dict[str, Options] = {
    "micro-batches of 1,536 tokens": SMALL,
    "the same, compiled layers": {**SMALL, **COMPILED},
}
"""About the tokens of the peer's micro-batches, so that memory is compared like with like."""
WITH_AND_WITHOUT_COMPILING: dict[str, Options] = {PLAIN: {}, "compiled layers": COMPILED}
REFERENCE: Options = {"reference_each_step": True}


def own_way(peer: Options, ours: Options) -> tuple[Setting, ...]:
    """Return the peer in its own way: by processor seconds of a thread, by the clock of two."""
    variants = {name: {**ours, **options} for name, options in {PLAIN: {}, **SMALL_RUNS}.items()}
    return (
        Setting("micro-batches of 8", peer, variants),
        Setting("micro-batches of 8, two threads", peer, {PLAIN: ours}, threads=2),
    )


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "sft": (
        *own_way(EIGHTS, {}),
        Setting("padded", WHOLE, WITH_AND_WITHOUT_COMPILING),
        Setting("grouped by length, 8 x 8", BY_LENGTH, SMALL_RUNS),
        Setting("packing bfd", {**WHOLE, "packing": True, "max_length": 1_024}, same_numbers=False),
        Setting("padded, gradient checkpointing", {**WHOLE, **CHECKPOINTING}),
    ),
    "reward": (
        *own_way(PAIRS_IN_EIGHTS, {}),
        Setting("padded", PAIRS, WITH_AND_WITHOUT_COMPILING),
        Setting("grouped by length, 8 x 4", PAIRS_BY_LENGTH, SMALL_RUNS),
        Setting("padded, gradient checkpointing", {**PAIRS, **CHECKPOINTING}),
    ),
    "dpo": (
        *own_way(PAIRS_IN_EIGHTS, REFERENCE),
        Setting("padded", PAIRS, {PLAIN: REFERENCE, "compiled layers": {**REFERENCE, **COMPILED}}),
        Setting(
            "reference computed before, grouped by length, 8 x 4",
            {**PAIRS_BY_LENGTH, "precompute_ref_log_probs": True},
            SMALL_RUNS,
        ),
        Setting("padded, gradient checkpointing", {**PAIRS, **CHECKPOINTING}, {PLAIN: REFERENCE}),
    ),
}
