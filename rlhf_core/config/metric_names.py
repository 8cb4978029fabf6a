"""Names of what each stage measures, so that a gate on anything else is refused before training."""

import math
from collections.abc import Iterable

SFT_METRICS = ("heldout_nll", "response_nll")
CEILING = "noise_ceiling"
"""What the annotators' own disagreement allows; measured where pairs have three votes or more."""
BEST_OF_K = "best_of_k_accuracy"
"""Measured where ``evaluation.best_of_k`` names a file."""
PREFERENCE_METRICS = (
    "heldout_accuracy",
    "length_only_accuracy",
    "accuracy_over_length",
    "calibration_error",
    "heldout_nll",
    "margin",
    CEILING,
    BEST_OF_K,
)
"""Of the reward model and of the judge."""
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
    "sft_distinct_2",
    "distinct_2_ratio",
)
"""What ``evaluation.comparison`` measures of a policy beside its vices."""
ERROR_CORRELATION = "judge_error_correlation"
"""Whether the judge errs where the reward model errs; not measured where there is none."""
CORRECTED = "win_rate_corrected"
"""The judge's win rate corrected by people's votes; measured where there are votes."""
OVER_CHAMPION = "win_rate_over_champion"
CHAMPION_METRICS = (OVER_CHAMPION, "length_ratio_over_champion", "champion_win_rate")
"""Measured where there is a champion; a gate on one does not apply where there is none."""
BEST_OF_N_METRICS = ("best_of_n_win_rate", "win_rate_over_best_of_n")
"""Measured where ``evaluation.best_of_n`` says how many answers SFT gives."""
BEST_OF_N_KL = "best_of_n_kl_bound"
"""Known from their number alone: shown beside them, and asked by no gate."""
SHUFFLED = "shuffled_prompt"
"""The one vice that judges see: measured where one of them gives scores."""
JUDGE_METRICS = (
    "judge_unjudged",
    "judge_disagreement",
    "judge_order_dependence",
    "judge_position_bias",
)
"""Of judges from elsewhere and of several together; shown, and asked by no gate."""
SLICED_METRICS = ("heldout_accuracy", "win_rate", "length_ratio", OVER_CHAMPION)
"""Measured over the prompts or pairs of each slice as well."""
PHRASE_VICES = ("flattery", "hedging", "refusal", "padding")
"""Vices seen by their phrases, to which settings may add."""
COMPUTED_VICES = (
    "repetition",
    "overlong",
    "copying",
    "template",
    "closing",
    "duplicate",
    "foreign_script",
    "language_switch",
    "disguise",
    "off_topic",
    "novel_words",
    "formatting",
    "self_similarity",
    "stock_sentence",
    "word_order",
    "unfinished",
    SHUFFLED,
)
"""Vices that are counted and have no phrases to add to."""


def metrics_of(stage: str, own_vices: Iterable[str]) -> frozenset[str]:
    """Return ``<stage>/<quantity>`` of all that a stage can measure.

    Args:
        stage: sft, reward, judge or policy.
        own_vices: vices that the settings add.
    """
    if stage == "sft":
        names: tuple[str, ...] = SFT_METRICS
    elif stage in ("reward", "judge"):
        names = PREFERENCE_METRICS
    else:
        vices = (*PHRASE_VICES, *COMPUTED_VICES, *own_vices)
        names = (
            *POLICY_METRICS,
            CORRECTED,
            ERROR_CORRELATION,
            *CHAMPION_METRICS,
            *BEST_OF_N_METRICS,
            *vices,
            *(f"{vice}_increase" for vice in vices),
        )
    return frozenset(f"{stage}/{name}" for name in names)


_DIFFERENCES = ("accuracy_over_length", ERROR_CORRELATION)
_FROM_ZERO = (
    *("heldout_nll", "response_nll", "response_length", "sft_response_length"),
    *("length_ratio", "length_ratio_over_champion", "distinct_2_ratio", "kl_k3"),
)
_ANYTHING = ("margin", "kl", "judge_gain", "reward_gain", "proxy_gap")
_OF_DATA = {"krippendorff_alpha": (-1.0, 1.0)}


def range_of(metric: str) -> tuple[float, float]:
    """Return the least and the greatest value that ``<stage>/<quantity>`` can have.

    What is not listed is a share: accuracies, win rates, areas under a curve, vices.
    """
    stage, _, name = metric.partition("/")
    if stage == "suite":
        return (-1.0, 1.0) if name.endswith("/difference") else (0.0, 1.0)
    if name in _ANYTHING or name.startswith("style/"):
        return -math.inf, math.inf
    if name in _FROM_ZERO:
        return 0.0, math.inf
    if name == "reference_perplexity":
        return 1.0, math.inf
    if name in _DIFFERENCES or name.endswith("_increase"):
        return -1.0, 1.0
    return _OF_DATA.get(name, (0.0, 1.0))


def is_taken(vice: str) -> bool:
    """Say whether metrics of this vice would stand where others do, or read as an increase."""
    return vice in (
        *COMPUTED_VICES,
        *POLICY_METRICS,
        CORRECTED,
        ERROR_CORRELATION,
        *CHAMPION_METRICS,
        *BEST_OF_N_METRICS,
        BEST_OF_N_KL,
        *JUDGE_METRICS,
    ) or vice.endswith("_increase")
