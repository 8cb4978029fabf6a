"""Fill a prepared directory: two passes over the comparisons, one over every other file."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.adapters.datasets import data_docs, validation
from rlhf_core.config import DataConfig, PreparationConfig
from rlhf_core.dataprep import assemble
from rlhf_core.dataprep.assemble import PreparationContext, PreparedFiles, WrittenPair
from rlhf_core.dataprep.cleaning.near_dialogues import FirstTurnIndex
from rlhf_core.dataprep.cleaning.prompt_index import PromptIndex, RowSignatures
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.cleaning.rules import TokenCheck, make_rules
from rlhf_core.dataprep.intake import (
    Intake,
    apply_votes,
    filter_near_duplicates,
    filter_near_heldout,
    filter_reserved,
    ingest,
)
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.dataprep.manifest import Manifest, write_manifest
from rlhf_core.dataprep.measures.dialogues import DialogueFacts, dialogue_facts
from rlhf_core.dataprep.measures.pair_texts import PairTexts
from rlhf_core.dataprep.measures.pictures import draw_pictures
from rlhf_core.dataprep.sources import (
    read_comparisons,
    read_demonstrations,
    read_prompts,
    read_unpaired,
)
from rlhf_core.dataprep.sources.rows import FilteredRow, prompt_problem
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.dataprep.unpaired import LabelCounts, judged_dialogues, write_unpaired
from rlhf_core.dataprep.votes.pooling import pool_votes
from rlhf_core.dataprep.votes.vote_models import MODELS, decided_by_majority
from rlhf_core.dataprep.votes.vote_table import reliability
from rlhf_core.schema import (
    Conversation,
    Demonstration,
    Prompt,
    UnpairedExample,
    ValidationReport,
)
from rlhf_core.stages.preparation import checks, inputs
from rlhf_core.stages.preparation.measure import measure
from rlhf_core.stages.preparation.report import (
    ANNOTATORS,
    AgreementReport,
    describe_agreement,
    write_annotators,
    write_report,
)
from rlhf_core.stages.preparation.tokens import describe_conversations, make_token_check
from rlhf_core.storage.records import batched

if TYPE_CHECKING:
    import pandas as pd

    from rlhf_core.tokenization import Renderer

logger = logging.getLogger(__name__)

REPORT = "report.json"
QUARANTINE = checks.QUARANTINE
PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class Rendering:
    """How conversations become tokens."""

    renderer: "Renderer | None"
    """None: tokens are not looked at."""
    day: date | None
    """What a chat template that reads the clock takes for today; None: it reads none."""


def build(
    config: PreparationConfig,
    work: Path,
    fingerprint: str,
    failures: Path,
    rendering: Rendering,
) -> Manifest:
    """Prepare everything into the empty directory ``work``.

    Args:
        config: the whole configuration; seed and data section are read.
        work: receives the prepared files, the report, the quarantine, the Data Docs, the pictures,
            the table of annotators and the manifest.
        fingerprint: of all inputs; goes into the manifest.
        failures: receives the rows behind a failed check.
        rendering: the base model's tokenizer and template.

    Returns:
        What the manifest says.

    Raises:
        DataError: the input cannot be used.
        MissingMetricError: a gate asks for what was not measured.
    """
    data, subject = config.data, inputs.name_sources(config.data)
    token_check = make_token_check(config, rendering.renderer)
    validator = Validator(docs=work / data_docs.FOLDER, failures=failures)
    with Quarantine(work / QUARANTINE) as quarantine, _files(data, work) as files:
        context = _preparation_context(config, files, quarantine, token_check)
        first_turns = _reserve_heldout(data, context)
        intake = _read(data, context, first_turns, work / "spill.jsonl")
        checks.require_rows(intake, subject, failures / QUARANTINE)
        checks.require_readable(quarantine, data.max_unusable_fraction, failures / QUARANTINE)
        _validate_raw(data, intake, validator)
        _keep_near_together(data, intake, context)
        _decide(data, intake, context)
        labels, texts = _write(data, intake, context)
        checks.require_readable_others(quarantine, data, failures / QUARANTINE)
    intake.spill.unlink()
    checks.require_balance(quarantine, intake)
    checks.require_pairs(intake, subject, data.min_pairs, failures / QUARANTINE)
    dialogues = _validate_prepared(data, files, work, validator)
    agreement = _agreement(config, intake, subject)
    found, pictures = measure(config, work, intake, agreement, texts)
    gates = checks.judge_dataset(found.metrics, data.gates)
    draw_pictures(pictures, files.num_rows, work / PICTURES)
    write_annotators(work / ANNOTATORS, agreement.annotators)
    room = (0, None) if token_check is None else token_check.room
    manifest = write_manifest(
        work, fingerprint, files.num_rows, room, context.splitter.rule, rendering.day
    )
    sections = {
        "files": inputs.raw_files(data),
        "conversations": describe_conversations(config.model, rendering.renderer, rendering.day),
        "dialogues": {kind: facts.as_json() for kind, facts in dialogues.items()},
        **_split_sections(context.splitter, labels),
        "agreement": agreement.as_json(),
        "measurements": found.as_json(),
        "tokens": intake.token_losses.as_json(),
        "gates": [result.model_dump(mode="json") for result in gates],
    }
    write_report(work / REPORT, manifest, quarantine, sections, validator.reports)
    checks.require_gates(gates, data.gates, subject, failures / REPORT)
    return manifest


def _files(data: DataConfig, work: Path) -> PreparedFiles:
    return PreparedFiles(work, unpaired=bool(data.unpaired))


def _agreement(config: PreparationConfig, intake: Intake, subject: str) -> AgreementReport:
    """Measure how far people agree, refuse too little, and tell what tokenisation left out."""
    agreement = describe_agreement(intake, config.data.votes, config.seed)
    checks.require_agreement(agreement, subject, config.data.min_alpha)
    for uneven in intake.token_losses.describe():
        logger.warning("token_losses: %s", uneven)
    return agreement


def _split_sections(splitter: DialogueSplitter, labels: LabelCounts | None) -> dict[str, Any]:
    """Return the parts about near dialogues and labelled responses; tell what is lopsided."""
    near = {
        "threshold": splitter.near_threshold,
        "num_kept_together": splitter.num_kept_together(),
        **splitter.near.as_json(),
    }
    if labels is None:
        return {"near_dialogues": near}
    for line in labels.describe():
        logger.warning("labels: %s", line)
    return {"near_dialogues": near, "labels": labels.as_json()}


def _preparation_context(
    config: PreparationConfig,
    files: PreparedFiles,
    quarantine: Quarantine,
    token_check: TokenCheck | None,
) -> PreparationContext:
    data = config.data
    splitter = DialogueSplitter(
        seed=config.seed,
        heldout_fraction=data.heldout_fraction,
        judge_fraction=data.judge_fraction,
        has_heldout_file=data.prompts.heldout_path is not None,
        near_threshold=data.near_dialogues,
    )
    threshold = data.cleaning.near_duplicates
    return PreparationContext(
        files=files,
        quarantine=quarantine,
        splitter=splitter,
        rules=make_rules(data.cleaning, token_check),
        heldout=None if threshold is None else PromptIndex(threshold),
    )


def _reserve_heldout(data: DataConfig, context: PreparationContext) -> FirstTurnIndex | None:
    """Learn which prompts are held out before any training row is written.

    Returns:
        How the dialogues of prompts and demonstrations open; None where nearness does not matter.
    """
    path = data.prompts.heldout_path
    if path is not None:
        files = context.quarantine.files.setdefault("heldout_prompts", {})
        assemble.write_heldout_prompts(path, read_prompts(path, files), context)
    if data.near_dialogues is None:
        return None
    first_turns, reserved = FirstTurnIndex(), context.splitter.reserved
    heldout = _with_keys(iter(()) if path is None else _prompts_of(read_prompts(path)))
    shown = _prompts_of(read_demonstrations(data.demonstrations))
    labelled = _prompts_of(read_unpaired(data.unpaired_files))
    others = _with_keys(chain(shown, labelled, _prompts_to_sample_from(data)))
    sound = (row for row in others if prompt_problem(row[0]) is None)
    kept_out = (row for row in heldout if row[1] in reserved)
    for batch in batched(chain(kept_out, sound)):
        first_turns.extend(batch)
    return first_turns


def _with_keys(prompts: Iterable[Conversation]) -> Iterator[tuple[Conversation, DialogueKey]]:
    return ((prompt, dialogue_key(prompt)) for prompt in prompts)


def _prompts_to_sample_from(data: DataConfig) -> Iterator[Conversation]:
    return iter(()) if data.prompts.path is None else _prompts_of(read_prompts(data.prompts.path))


def _prompts_of(
    rows: Iterable[tuple[int, Demonstration | Prompt | UnpairedExample | FilteredRow]],
) -> Iterator[Conversation]:
    return (item.prompt for _, item in rows if not isinstance(item, FilteredRow))


def _keep_near_together(data: DataConfig, intake: Intake, context: PreparationContext) -> None:
    """Let dialogues that open nearly alike share a side; then learn which are held out."""
    splitter = context.splitter
    if intake.first_turns is not None and data.near_dialogues is not None:
        shares = (data.heldout_fraction, data.judge_fraction)
        smallest = min((part for s in shares for part in (s, 1 - s) if part > 0), default=1.0)
        splitter.near = intake.first_turns.groups(
            data.near_dialogues,
            largest_fraction=smallest / 2,
            reserved=splitter.reserved,
            seed=splitter.seed,
        )
        intake.first_turns = None
    if context.heldout is None:
        return
    assemble.index_heldout(read_demonstrations(data.demonstrations), context)
    assemble.index_heldout(read_unpaired(data.unpaired_files), context)
    if data.prompts.heldout_path is None and data.prompts.path is not None:
        assemble.index_heldout(read_prompts(data.prompts.path), context)


def _read(
    data: DataConfig, context: PreparationContext, first_turns: FirstTurnIndex | None, spill: Path
) -> Intake:
    intake = Intake(spill, first_turns=first_turns)
    if context.heldout is not None:
        intake.signatures = RowSignatures()
    source_rows = context.quarantine.source_rows.setdefault("preferences", Counter())
    sources = inputs.raw_sources(data).values()
    files = context.quarantine.files.setdefault("preferences", {})
    names = inputs.names_of_files(data)
    rows = chain.from_iterable(
        read_comparisons(source, source_rows, files, names) for source in sources
    )
    excluded = frozenset(data.votes.exclude)
    ingest(rows, intake, context.quarantine, context.rules, excluded=excluded)
    checks.warn_of_unread_cells(context.quarantine)
    return intake


def _decide(data: DataConfig, intake: Intake, context: PreparationContext) -> None:
    """Votes to winners, and everything that takes two rows to see."""
    filter_reserved(intake.entries, context.splitter.reserved)
    intake.pooled = pool_votes(intake.entries, intake.votes)
    # Votes on broken rows, as for a tie between equal answers, say nothing of a person's care.
    sound = intake.votes.only(intake.entries.have(None))
    method, size, min_votes = data.votes.method, len(intake.entries), data.votes.min_votes
    probabilities = MODELS[method](sound, size, min_votes=min_votes)
    if method != "majority":
        intake.num_decided_by_heads = decided_by_majority(sound, size, min_votes)
    intake.reliability = reliability(sound, probabilities)
    apply_votes(intake.entries, probabilities)
    if context.heldout is not None and data.cleaning.near_duplicates is not None:
        filter_near_duplicates(intake, data.cleaning.near_duplicates)
        filter_near_heldout(intake, context.heldout, context.splitter)
        intake.signatures = None


def _write(
    data: DataConfig, intake: Intake, context: PreparationContext
) -> tuple[LabelCounts | None, PairTexts]:
    """Write everything; prompts last, for they yield to the others.

    Returns:
        The labels of responses that are no pairs, None where no file of such is named; and what
        the texts of the pairs tell.
    """
    texts = PairTexts()
    files = context.quarantine.files
    demonstrations = files.setdefault("demonstrations", {})
    assemble.write_demonstrations(read_demonstrations(data.demonstrations, demonstrations), context)
    pairs = batched(assemble.write_pairs(intake, context))
    assemble.write_derived(
        _gathering(pairs, texts),
        context,
        demonstrations=data.demonstrations.path is None,
        prompts=data.prompts.path is None,
    )
    labels = None
    if data.unpaired:
        judged, seen = judged_dialogues(intake.entries, context), files.setdefault("unpaired", {})
        threshold = data.cleaning.near_duplicates
        rows = read_unpaired(data.unpaired_files, seen)
        spill = intake.spill.with_name("unpaired-spill.jsonl")
        labels = write_unpaired(rows, context, judged, threshold, spill)
    if data.prompts.path is not None:
        prompts = read_prompts(data.prompts.path, files.setdefault("prompts", {}))
        assemble.write_prompts(data.prompts.path, prompts, context)
    return labels, texts


def _gathering(
    batches: Iterable[list[WrittenPair]], texts: PairTexts
) -> Iterator[list[WrittenPair]]:
    """Pairs as they pass; what only their texts tell goes into ``texts``."""
    for batch in batches:
        texts.extend(
            [
                (row.dialogue, row.pair, f"{row.half}_{row.side}" == assemble.REWARD_TRAIN)
                for row in batch
            ]
        )
        yield batch


@dataclass(slots=True)
class Validator:
    """Keeps the reports, the Data Docs and, where a check fails, the rows behind it."""

    docs: Path
    failures: Path
    reports: list[ValidationReport] = field(default_factory=list)

    def require(
        self,
        report: ValidationReport,
        subject: str,
        frame: "pd.DataFrame",
        records: Path | None = None,
    ) -> None:
        """Note a report; stop if a blocking check failed, with the rows as ``records`` has them."""
        self.reports.append(report)
        data_docs.write_index(self.docs, "Data checks", self.reports)
        checks.require_passed(report, subject, frame, self.failures, records)


def _validate_raw(data: DataConfig, intake: Intake, validator: Validator) -> None:
    frame = intake.columns.take_frame()
    report = validation.validate_raw_comparisons(frame, data.max_unusable_fraction, validator.docs)
    validator.require(report, inputs.name_sources(data), frame, intake.spill)


def _validate_prepared(
    data: DataConfig, files: PreparedFiles, work: Path, validator: Validator
) -> dict[str, DialogueFacts]:
    """Check what was written, and return how it falls into dialogues."""
    frame = files.prompts.take_frame()
    dialogues = dialogue_facts(frame, work)
    checks.require_filled(files, dialogues, inputs.name_sources(data))
    checks.warn_of_large_dialogues(dialogues, data)
    report = validation.validate_prepared_prompts(frame, validator.docs)
    validator.require(report, str(data.output), frame)
    frame = files.pairs.take_frame()
    report = validation.validate_prepared_pairs(frame, validator.docs)
    validator.require(report, str(data.output), frame)
    return dialogues
