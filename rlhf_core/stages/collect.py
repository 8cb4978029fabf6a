"""Sample pairs of answers for people, or an AI judge, to compare."""

import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from rlhf_core.adapters.datasets.versioning import git_revision
from rlhf_core.adapters.endpoints.vllm_sampler import open_sampler
from rlhf_core.config import FeedbackConfig, PipelineConfig
from rlhf_core.dataprep.keys import DialogueKey
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import ConfigError, DataError, ModelError
from rlhf_core.feedback.collection import (
    COLLECTION,
    MANIFEST,
    ORIGINS,
    PAIRS,
    Choice,
    Collection,
    Counts,
    Origin,
    SampledModel,
    SamplingSettings,
    on_drawn_sides,
    read_collection,
)
from rlhf_core.feedback.results import CollectedPairs
from rlhf_core.schema import Comparison, DatasetSplits, ModelRef, Prompt
from rlhf_core.stages.labels.answers import Answer, AnswerPairs, answer_twice
from rlhf_core.stages.labels.disagreement import choose_pairs
from rlhf_core.stages.labels.prompts import (
    AskedPrompts,
    compared_dialogues,
    draw_prompts,
    heldout_dialogues,
    prompt_file,
)
from rlhf_core.storage.folders import exclusive, replacing_directory
from rlhf_core.storage.own_folders import require_replaceable
from rlhf_core.storage.records import sha256_of, write_record, write_records

logger = logging.getLogger(__name__)

_ID_LENGTH = 12


def collect_pairs(
    config: PipelineConfig,
    splits: DatasetSplits,
    models: Sequence[ModelRef],
    choosers: Sequence[ModelRef] = (),
) -> CollectedPairs:
    """Sample two different answers to each of some prompts.

    The same models, prompts, settings and seed give the same bytes. A collection that is there is
    verified and used as it is; a kill leaves either none or a whole one, and a journal of answers
    that the next call goes on from.

    Args:
        config: settings, with a ``feedback`` section.
        splits: dataset whose training prompts are asked where the settings name no others, and
            whose held-out dialogues are asked in no case.
        models: one that answers twice, or two that answer once each.
        choosers: reward models; where ``feedback.choice`` is set, the pairs that they disagree on
            are kept.

    Raises:
        ConfigError: there is no ``feedback`` section.
        DataError: no prompt is left, or no pair.
        ModelError: a model is no causal one.
    """
    feedback = config.feedback_settings()
    for model in models:
        if model.kind != "causal":
            raise ModelError(f"{model.uri}: a {model.kind} model gives no answers; name a policy")
    prompts, settings = prompt_file(config, splits), _sampling(config)
    heldout = heldout_dialogues(splits)
    compared = compared_dialogues(splits) if feedback.fresh else set()
    known_by = _known_by(models, prompts, heldout, compared if feedback.fresh else None, settings)
    parts = known_by | _choosing(feedback, choosers) | _engine_of(config)
    folder = _folder(feedback.output, parts)
    with exclusive(folder):
        if (folder / MANIFEST).is_file():
            logger.info("collection_reused folder=%s", folder)
            return CollectedPairs(collection=read_collection(folder)[0], folder=folder)
        journal = folder.with_name(f".{folder.name}.answers.jsonl")
        with replacing_directory(folder) as work:
            asked = draw_prompts(prompts, heldout, models, settings, compared)
            answers = _answers(config, models, asked.prompts, settings, journal)
            pairs, origins, choice = _compared(
                config, folder.name, models, choosers, asked, answers
            )
            write_records(work / PAIRS, pairs)
            write_records(work / ORIGINS, origins)
            found = Collection(
                collection_id=folder.name,
                models=tuple(map(SampledModel.of, models)),
                prompts=str(prompts),
                prompts_sha256=parts["prompts"],
                dataset_sha256=splits.sha256,
                settings=settings,
                counts=_counted(asked, answers, len(pairs)),
                pairs_sha256=sha256_of(work / PAIRS),
                git_commit=git_revision(Path()),
                choice=choice,
            )
            write_record(work / MANIFEST, found)
        journal.unlink(missing_ok=True)
    return CollectedPairs(collection=found, folder=folder)


def _known_by(
    models: Sequence[ModelRef],
    prompts: Path,
    heldout: Set[DialogueKey],
    compared: Set[DialogueKey] | None,
    settings: SamplingSettings,
) -> dict[str, str]:
    """Return what decides a collection; None where dialogues with a pair are asked, too."""
    return {
        "models": " ".join(model.sha256 for model in models),
        "prompts": sha256_of(prompts),
        "heldout": _joined(heldout),
        "settings": settings.model_dump_json(),
        **({} if compared is None else {"compared": _joined(compared)}),
    }


def _joined(keys: Set[DialogueKey]) -> str:
    return "".join(sorted(key.hex() for key in keys))


def _choosing(feedback: FeedbackConfig, choosers: Sequence[ModelRef]) -> dict[str, str]:
    """Return who chooses among the pairs, as part of what a collection is known by."""
    if feedback.choice is None:
        return {}
    if len({model.sha256 for model in choosers}) < 2:
        named = ", ".join(model.uri for model in choosers) or "nobody"
        raise ConfigError(
            f"feedback.choice: disagreement needs two different reward models, found {named}; name"
            " them in feedback.choice.models"
        )
    for model in choosers:
        if model.kind == "causal":
            raise ModelError(f"feedback.choice.models: {model.uri} gives text, and no scores")
    chosen_by = " ".join(model.sha256 for model in choosers)
    return {"choosers": chosen_by, "kept": str(feedback.num_prompts)}


def _compared(
    config: PipelineConfig,
    name: str,
    models: Sequence[ModelRef],
    choosers: Sequence[ModelRef],
    asked: AskedPrompts,
    answers: AnswerPairs,
) -> tuple[list[Comparison], list[Origin], Choice | None]:
    """Return the pairs that are worth a vote, whose they are, and who chose them."""
    feedback = config.feedback_settings()
    if feedback.choice is None:
        return *_on_sides(name, models, asked.prompts, answers.pairs, feedback.seed), None
    chosen = choose_pairs(
        choosers,
        asked.prompts,
        answers.pairs,
        count=feedback.num_prompts,
        device=config.model.device,
    )
    told = chosen.probabilities
    rows = _on_sides(name, models, asked.prompts, chosen.pairs, feedback.seed, told)
    return *rows, chosen.choice


def _engine_of(config: PipelineConfig) -> dict[str, str]:
    """Part of a collection's name; none of transformers, so that earlier ones keep theirs."""
    rollouts = config.policy.rollouts
    return {"engine": rollouts.engine} if rollouts.elsewhere else {}


def _answers(
    config: PipelineConfig,
    models: Sequence[ModelRef],
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    journal: Path,
) -> AnswerPairs:
    device = config.model.device
    with open_sampler(config.policy.rollouts) as sampler:
        return answer_twice(
            models, prompts, settings, device=device, journal=journal, sampler=sampler
        )


def _folder(output: Path, parts: Mapping[str, str]) -> Path:
    """Return the folder of the collection that is made from ``parts``, if it is not another's."""
    folder = output / fingerprint_of(parts)[:_ID_LENGTH]
    require_replaceable(folder, COLLECTION)
    return folder


def _sampling(config: PipelineConfig) -> SamplingSettings:
    feedback = config.feedback_settings()
    longest = feedback.max_new_tokens or config.answer_length()
    drawn = feedback.choice.drawn_per_pair if feedback.choice is not None else 1
    return SamplingSettings(
        num_prompts=feedback.num_prompts * drawn,
        temperature=feedback.temperature,
        max_new_tokens=longest,
        max_prompt_tokens=config.model.max_length - longest,
        max_resamples=feedback.max_resamples,
        seed=feedback.seed,
    )


def _counted(asked: AskedPrompts, answers: AnswerPairs, num_pairs: int) -> Counts:
    return Counts(
        prompts=asked.num_read,
        heldout=asked.heldout,
        unfitting=asked.unfitting,
        asked=len(asked.prompts),
        resampled=answers.resampled,
        indistinct=answers.pairs.count(None),
        unfinished=answers.unfinished,
        pairs=num_pairs,
        compared=asked.compared,
        agreed=len(asked.prompts) - answers.pairs.count(None) - num_pairs,
    )


def _on_sides(
    name: str,
    models: Sequence[ModelRef],
    prompts: Sequence[Prompt],
    answers: Sequence[tuple[Answer, Answer] | None],
    seed: int,
    probabilities: Sequence[dict[str, float]] | None = None,
) -> tuple[list[Comparison], list[Origin]]:
    """Return the pairs, each answer on a side drawn for it, and apart from them whose it is.

    Raises:
        DataError: there is none.
    """
    comparisons: list[Comparison] = []
    origins: list[Origin] = []
    for index, (prompt, pair) in enumerate(zip(prompts, answers, strict=True)):
        if pair is None:
            continue
        number = len(comparisons) + 1
        comparison, origin = on_drawn_sides(
            Comparison(
                comparison_id=f"{name}-{number:05d}",
                prompt=prompt.prompt,
                response_a=pair[0].text,
                response_b=pair[1].text,
                votes=(),
                source=f"collected-{name}",
                line=number,
            ),
            prompt_id=prompt.prompt_id,
            models=(models[0].uri, models[-1].uri),
            seed=seed,
            probabilities=probabilities[index] if probabilities else None,
        )
        comparisons.append(comparison)
        origins.append(origin)
    if not comparisons:
        raise DataError(
            f"none of {len(prompts)} prompts got two different answers; raise"
            " feedback.temperature, or name another model in --against"
        )
    return comparisons, origins
