"""Prepared records to token sequences; what does not fit is filtered out with its reason."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import IO, Generic, TypeVar

from pydantic import RootModel

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.dataprep.measures.losses import uneven
from rlhf_core.errors import CheckpointError, DataError
from rlhf_core.schema import DatasetRef, Demonstration, PreferencePair, Record, RowCounts
from rlhf_core.storage.records import atomic_file, iterate_records, read_record, write_text
from rlhf_core.tokenization import Renderer, Rows, TokenizedExample, TokenizedPair, keep_rows

logger = logging.getLogger(__name__)

AnyRecord = TypeVar("AnyRecord", bound=Record)
Tokenized = TypeVar("Tokenized")


@dataclass(frozen=True, slots=True)
class TurnOf(Generic[Tokenized]):
    """A record as tokens, with its dialogue: rows of one dialogue are no independent samples."""

    dialogue: DialogueKey
    tokens: Tokenized


class UnusableRecord(Record):
    """A record the model cannot take."""

    reason: str
    record: dict[str, object]


def tokenize_records(
    records: Iterable[AnyRecord],
    render: Callable[[AnyRecord], Tokenized],
    *,
    length: Callable[[Tokenized], int],
    max_length: int,
    filtered: Path,
    at_fault: Callable[[AnyRecord], str] | None = None,
) -> Iterator[Tokenized]:
    """Render ``records`` as they come; those too long or not renderable go to ``filtered``.

    Args:
        records: prepared records; each is let go of before the next is read.
        render: record to token sequences; ``DataError`` says why it cannot.
        length: tokens of a rendered record.
        max_length: most tokens that are kept.
        filtered: JSON lines of what was left out, with the reasons; written only if there is
            something. The counts go to ``rows.json`` beside it (``row_counts``), both at the end.
        at_fault: says which response of a pair that is left out does not fit.

    Raises:
        DataError: nothing is left.
    """
    num_kept = 0
    reasons: Counter[str] = Counter()
    sides: Counter[str] = Counter()
    with ExitStack() as files:
        stream: IO[bytes] | None = None
        for record in records:
            try:
                tokens = render(record)
            except DataError as error:
                why, reason = "not_renderable", str(error)
            else:
                if length(tokens) <= max_length:
                    num_kept += 1
                    yield tokens
                    continue
                why, reason = "too_long", f"{length(tokens)} tokens, at most {max_length} fit"
            stream = stream or files.enter_context(atomic_file(filtered))
            row = UnusableRecord(reason=reason, record=record.model_dump(mode="json"))
            stream.write(row.model_dump_json().encode() + b"\n")
            reasons[why] += 1
            if at_fault is not None:
                sides[at_fault(record)] += 1
    note_rows(filtered, num_kept, reasons, sides)
    if reasons:
        left = reasons.total()
        logger.info("rows_filtered=%d kept=%d file=%s", left, num_kept, filtered)
    if not num_kept:
        raise DataError(
            f"none of {reasons.total()} records fits the model; reasons in {filtered}. "
            "Raise model.max_length or give shorter texts"
        )


ROWS = "rows.json"


def note_rows(
    filtered: Path, num_kept: int, reasons: Counter[str], sides: Counter[str] | None = None
) -> None:
    """Write down what became of a file's rows, for the report of the stage; again replaces it."""
    sides = sides or Counter()
    note = ""
    if uneven(sides, "chosen", "rejected"):
        note = (
            f"of the pairs left out, the chosen response alone did not fit in {sides['chosen']} and"
            f" the rejected alone in {sides['rejected']}: what is left is no fair sample"
        )
        logger.warning("rows_left_out_unevenly file=%s: %s", filtered, note)
    counts = RowCounts(
        rows=num_kept + reasons.total(),
        kept=num_kept,
        left_out=dict(sorted(reasons.items())),
        sides=dict(sorted(sides.items())),
        uneven=note,
    )
    path = filtered.with_name(ROWS)
    noted = {name: counts.model_dump(mode="json") for name, counts in _noted(path.parent).items()}
    noted[filtered.stem.removeprefix("set-aside-")] = counts.model_dump(mode="json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(noted, indent=2, sort_keys=True) + "\n")


class NotedRows(RootModel[dict[str, RowCounts]]):
    """What stands in ``rows.json``, by file."""


def row_counts(*directories: Path) -> dict[str, RowCounts]:
    """Return what stages noted of their rows, by ``<stage>/<file>``.

    Raises:
        CheckpointError: a note is damaged.
    """
    return {
        f"{directory.name}/{name}": counts
        for directory in directories
        for name, counts in _noted(directory).items()
    }


def _noted(directory: Path) -> dict[str, RowCounts]:
    path = directory / ROWS
    if not path.is_file():
        return {}
    try:
        return read_record(path, NotedRows).root
    except DataError as error:
        raise CheckpointError(
            f"{error}; delete the folder {directory} to repeat the stage"
        ) from error


def pair_fault(renderer: Renderer, max_length: int, pair: PreferencePair) -> str:
    """Say which response of a pair does not fit: chosen, rejected, both; or the prompt."""
    try:
        opened = renderer.open(pair.prompt)
    except DataError:
        return "prompt"
    wrong = []
    for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        try:
            fits = len(opened.ids) + len(renderer.answer_ids(opened, response)) <= max_length
        except DataError:
            fits = False
        if not fits:
            wrong.append(side)
    return wrong[0] if len(wrong) == 1 else "both"


def load_pairs(
    config: PipelineConfig,
    renderer: Renderer,
    directory: Path,
    source: DatasetRef,
    *,
    margin: Callable[[PreferencePair], float] | None = None,
    apart: Set[DialogueKey] = frozenset(),
) -> Rows[TokenizedPair]:
    """Read prepared pairs as token sequences; those that do not fit are filtered out by reason.

    Args:
        config: settings of the run.
        renderer: of the model that reads them.
        directory: where it is noted what was filtered out, and where tokens lie that are too many
            for the memory.
        source: the pairs.
        margin: by how much the scores of a pair should differ.
        apart: dialogues that are not read.

    Raises:
        DataError: nothing is left, or there is a ``margin`` and it is 0 for every pair.
    """
    records: Iterable[PreferencePair] = (
        pair
        for pair in iterate_records(source, PreferencePair)
        if not apart or dialogue_key(pair.prompt) not in apart
    )
    if margin is not None:
        records = _with_margins(records, margin, source)
    pairs = tokenize_records(
        records,
        renderer.pair
        if margin is None
        else lambda pair: replace(renderer.pair(pair), margin=margin(pair)),
        length=attrgetter("num_tokens"),
        max_length=config.model.max_length,
        filtered=directory / f"set-aside-{source.path.stem}.jsonl",
        at_fault=partial(pair_fault, renderer, config.model.max_length),
    )
    return keep_rows(TokenizedPair, pairs, directory)


def _with_margins(
    pairs: Iterable[PreferencePair], margin: Callable[[PreferencePair], float], source: DatasetRef
) -> Iterator[PreferencePair]:
    """Yield the pairs, and refuse them in the end if none of them has a margin."""
    num_pairs = without = 0
    for pair in pairs:
        num_pairs += 1
        without += margin(pair) == 0.0
        yield pair
    if num_pairs and without == num_pairs:
        raise DataError(
            f"{source.path}: margin_scale asks for margins, but no pair has a strength above 0: "
            "name the column that says it (columns: {strength: ...}), take margin_of: votes, or "
            "leave margin_scale out"
        )
    if without:
        logger.info("margins: %d of %d pairs of %s have none", without, num_pairs, source.path)


def load_demonstrations(
    config: PipelineConfig,
    renderer: Renderer,
    directory: Path,
    source: DatasetRef,
    *,
    apart: Set[DialogueKey] = frozenset(),
) -> Rows[TokenizedExample]:
    """Read prepared demonstrations as tokens; those that do not fit are filtered out by reason.

    Dialogues that are set ``apart`` are not read.
    """
    examples = tokenize_records(
        (
            row
            for row in iterate_records(source, Demonstration)
            if not apart or dialogue_key(row.prompt) not in apart
        ),
        partial(renderer.demonstration, all_turns=config.sft.loss_on == "assistant_turns"),
        length=attrgetter("num_tokens"),
        max_length=config.model.max_length,
        filtered=directory / f"set-aside-{source.path.stem}.jsonl",
    )
    return keep_rows(TokenizedExample, examples, directory)
