"""Names that a vice of one's own cannot take, because a metric of the policy has them."""

COMPUTED_VICES = (
    "repetition",
    "overlong",
    "copying",
    "template",
    "closing",
    "duplicate",
    "foreign_script",
)
"""Vices that are counted and have no phrases to add to."""

POLICY_METRICS = (
    "win_rate",
    "length_controlled_win_rate",
    "response_length",
    "sft_response_length",
    "length_ratio",
    "eos_fraction",
    "sft_eos_fraction",
    "reference_perplexity",
    "kl",
    "kl_k3",
    "judge_gain",
    "reward_gain",
    "proxy_gap",
    "distinct_2",
)
"""What ``evaluation.comparison`` measures of a policy beside its vices."""


def is_taken(vice: str) -> bool:
    """Say whether metrics of this vice would stand where others do, or read as an increase."""
    return vice in (*COMPUTED_VICES, *POLICY_METRICS) or vice.endswith("_increase")
