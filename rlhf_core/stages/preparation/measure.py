"""What is measured on a prepared dataset: biases, prompt shift, and the pictures' numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_core.config import PreparationConfig
from rlhf_core.dataprep.cleaning.prompt_index import prompt_text
from rlhf_core.dataprep.intake import Intake
from rlhf_core.dataprep.ledger import Labelled
from rlhf_core.dataprep.measures import bias
from rlhf_core.dataprep.measures.pair_texts import SAMPLE, PairTexts
from rlhf_core.dataprep.measures.pictures import PictureData
from rlhf_core.dataprep.measures.shift import PromptSample, prompt_shift
from rlhf_core.dataprep.measures.source_bias import SourceFacts, source_estimates, source_facts
from rlhf_core.dataprep.sources import read_prompts
from rlhf_core.schema import Conversation, Estimate, Prompt
from rlhf_core.stages.preparation.report import AgreementReport
from rlhf_core.storage.records import iterate_records


@dataclass(slots=True)
class Measurements:
    """Metrics with their intervals, and the words behind them."""

    metrics: dict[str, Estimate] = field(default_factory=dict)
    """``data/<quantity>``; gates read these."""
    sources: dict[str, SourceFacts] = field(default_factory=dict)
    """Pairs, length and side of the winner, by source."""
    words: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Words that tell chosen from rejected, with z-scores."""
    shift_words: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the report's section."""
        return {
            "metrics": _dumped(self.metrics),
            "sources": {
                name: {
                    "num_pairs": facts.num_pairs,
                    "length_win_fraction": facts.length_win.model_dump(mode="json"),
                    "first_win_fraction": facts.first_win.model_dump(mode="json"),
                    "mean_chars": round(facts.mean_chars, 1),
                }
                for name, facts in self.sources.items()
            },
            "telling_words": self.words,
            "shift_words": self.shift_words,
        }


def measure(
    config: PreparationConfig,
    work: Path,
    intake: Intake,
    agreement: AgreementReport,
    texts: PairTexts,
) -> tuple[Measurements, PictureData]:
    """Measure the dataset in ``work``, of whose pairs ``texts`` knows, before it is published."""
    staying = intake.entries.labelled()
    found = Measurements()
    if agreement.alpha is not None:
        found.metrics["data/krippendorff_alpha"] = agreement.alpha
    found.metrics["data/length_win_fraction"] = bias.length_win_estimate(staying)
    found.metrics["data/length_auc"] = bias.length_auc_estimate(staying, config.seed)
    found.metrics["data/first_win_fraction"] = bias.first_win_estimate(staying)
    found.sources = source_facts(staying)
    for name, estimate in source_estimates(staying, config.seed).items():
        found.metrics[f"data/{name}"] = estimate
    styles = bias.style_estimates(texts.styles)
    found.metrics |= {f"data/style/{name}": share for name, share in styles.items()}
    found.words = bias.telling_words(texts.styles)
    _measure_shift(config, work, found, texts.rewarded.texts())
    return found, _pictures(intake, staying, texts)


def _pictures(intake: Intake, staying: Labelled, texts: PairTexts) -> PictureData:
    votes = np.bincount(intake.votes.columns()[1], minlength=len(intake.votes.names))
    return PictureData(
        chosen_lengths=texts.chosen_lengths,
        rejected_lengths=texts.rejected_lengths,
        agreements=texts.agreements,
        votes_per_annotator=votes.tolist(),
        label_by_length=bias.label_by_length(staying),
    )


def _measure_shift(
    config: PreparationConfig, work: Path, found: Measurements, reward: list[str]
) -> None:
    """Compare reward-model prompts with PPO's, and with production's where there is a file."""
    prompts = iterate_records(work / "prompts_train.jsonl", Prompt)
    others = {"prompt_shift_auc": _sample(item.prompt for item in prompts)}
    production = config.data.prompts.production_path
    if production is not None:
        others["production_shift_auc"] = _sample(
            item.prompt for _, item in read_prompts(production) if isinstance(item, Prompt)
        )
    for name, texts in others.items():
        shift = prompt_shift(reward, texts, config.seed)
        if shift is not None:
            found.metrics[f"data/{name}"] = shift.estimate
            found.shift_words[name] = {"reward": shift.words_first, "other": shift.words_second}


def _sample(prompts: Iterable[Conversation]) -> list[str]:
    sample = PromptSample(SAMPLE)
    for prompt in prompts:
        sample.add(prompt_text(prompt))
    return sample.texts()


def _dumped(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.model_dump(mode="json") for name, estimate in estimates.items()}
