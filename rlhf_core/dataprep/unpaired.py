"""Responses with good or bad labels: what stays is split and written, the rest filtered out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from rlhf_core.config.dpo import balancing_weights
from rlhf_core.dataprep.assemble import PreparationContext
from rlhf_core.dataprep.cleaning.near import near_duplicates
from rlhf_core.dataprep.cleaning.prompt_index import prompt_text
from rlhf_core.dataprep.cleaning.rules import Problem
from rlhf_core.dataprep.cleaning.signature_rows import SignatureRows
from rlhf_core.dataprep.cleaning.signatures import SignatureTable
from rlhf_core.dataprep.keys import DialogueKey, Key, prompt_keys, response_key
from rlhf_core.dataprep.ledger import Ledger
from rlhf_core.dataprep.sources.rows import FilteredRow, prompt_problem
from rlhf_core.dataprep.split import Side
from rlhf_core.schema import Record, UnpairedExample
from rlhf_core.storage.records import batched, iterate_records

Rows = Iterable[tuple[int, UnpairedExample | FilteredRow]]


@dataclass(slots=True)
class LabelCounts:
    """How many of the labelled responses that stay are good and how many bad."""

    sides: dict[Side, Counter[bool]] = field(
        default_factory=lambda: {"train": Counter(), "heldout": Counter()}
    )
    sources: defaultdict[str, Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))
    """By name of the file."""

    def add(self, item: UnpairedExample, side: Side) -> None:
        """Count a response that stays."""
        self.sides[side][item.label] += 1
        self.sources[item.source][item.label] += 1

    def as_json(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return the report's section."""
        return {
            "sides": {side: _named(counts) for side, counts in self.sides.items()},
            "sources": {name: _named(counts) for name, counts in sorted(self.sources.items())},
        }

    def describe(self) -> list[str]:
        """Return a line for each thing that people should know before they train on them."""
        lines = [
            f"{name}: all {counts.total():,} labels are {'good' if counts[True] else 'bad'}; KTO"
            " learns from both, so the others have to come from another file or from the pairs"
            for name, counts in sorted(self.sources.items())
            if len(+counts) == 1
        ]
        good, bad = self.sides["train"][True], self.sides["train"][False]
        if good and bad:
            low, high = balancing_weights(good, bad)
            if not low <= 1 <= high:
                lines.append(
                    f"{good:,} good to {bad:,} bad labels; without pairs they weigh alike with"
                    f" policy.desirable_weight from {low:.3g} to {high:.3g}"
                )
        return lines


def _named(counts: Counter[bool]) -> dict[str, int]:
    return {"good": counts[True], "bad": counts[False]}


def judged_dialogues(entries: Ledger, context: PreparationContext) -> set[DialogueKey]:
    """Return the dialogues whose pairs train the judge; of near ones the one that decides."""
    splitter = context.splitter
    return {
        splitter.deciding(dialogue)
        for dialogue in map(entries.dialogue, entries.staying())
        if splitter.half(dialogue) == "judge"
    }


class _Spilled(Record):
    """An example between the two passes: a file that a server adds to is read once."""

    line: int
    example: UnpairedExample


def write_unpaired(
    rows: Rows,
    context: PreparationContext,
    judged: Set[DialogueKey],
    near_threshold: float | None,
    spill: Path,
) -> LabelCounts:
    """Write the labelled responses that stay; call it once the held-out prompts are known.

    Args:
        rows: as they are read.
        context: where rows go.
        judged: what ``judged_dialogues`` returned; no such row may train the policy.
        near_threshold: similarity from which two rows of one label are the same; None looks for
            equal ones alone.
        spill: file that holds the examples meanwhile.

    Returns:
        The labels of what was written.
    """
    labels = LabelCounts()
    with spill.open("wb") as stream:
        problems = _screen(_spilling(rows, context, stream), context, judged, near_threshold)
    spilled = iterate_records(spill, _Spilled)
    kept = tqdm(spilled, desc="writing unpaired", unit=" rows", disable=None)
    for (line, item), problem in zip(map(_parts, kept), problems, strict=True):
        if problem is None:
            dialogue = prompt_keys(item.prompt)[1]
            side = context.splitter.side(dialogue)
            context.files.add_unpaired(item, dialogue, side)
            labels.add(item, side)
            context.quarantine.keep("unpaired")
            continue
        record = item.model_dump_json()
        row = FilteredRow(problem[0], item.source, line, record, item.example_id, problem[1])
        context.quarantine.add("unpaired", row)
    spill.unlink()
    return labels


def _parts(spilled: _Spilled) -> tuple[int, UnpairedExample]:
    return spilled.line, spilled.example


def _spilling(
    rows: Rows, context: PreparationContext, stream: IO[bytes]
) -> Iterator[UnpairedExample]:
    """Yield the examples, written down for the second pass; what cannot be read goes aside."""
    for line, item in tqdm(rows, desc="unpaired", unit=" rows", disable=None):
        if isinstance(item, FilteredRow):
            context.quarantine.add("unpaired", item)
            continue
        stream.write(_Spilled(line=line, example=item).model_dump_json().encode() + b"\n")
        yield item


def _screen(
    examples: Iterable[UnpairedExample],
    context: PreparationContext,
    judged: Set[DialogueKey],
    near_threshold: float | None,
) -> list[Problem | None]:
    """Return why each example is filtered out, if so, in the order of the rows."""
    seen = _Seen(near_threshold)
    problems: list[Problem | None] = []
    for batch in batched(examples):
        for item, problem in zip(batch, _problems_alone(batch, context), strict=True):
            problem = problem or _split_problem(item, context, judged)
            if problem is None:
                seen.add(len(problems), item)
            problems.append(problem)
    for row, problem in seen.problems().items():
        problems[row] = problem
    return problems


def _problems_alone(
    items: Sequence[UnpairedExample], context: PreparationContext
) -> list[Problem | None]:
    """Return what is wrong with each example by itself; the rules are asked about sound ones."""
    found: list[Problem | None] = []
    for item in items:
        reason = prompt_problem(item.prompt)
        if reason is None and not item.response.strip():
            reason = "empty_response"
        found.append((reason, "") if reason else None)
    sound = [
        (item.prompt, (item.response,)) for item, bad in zip(items, found, strict=True) if not bad
    ]
    rest = iter(context.rules.problems(sound))
    return [problem or next(rest) for problem in found]


def _split_problem(
    item: UnpairedExample, context: PreparationContext, judged: Set[DialogueKey]
) -> Problem | None:
    """Return why an example would give away what is held out or what the judge learns."""
    dialogue = prompt_keys(item.prompt)[1]
    if dialogue in context.splitter.reserved:
        return "prompt_is_heldout", ""
    side = context.splitter.side(dialogue)
    if context.gives_away(item.prompt, side):
        return "prompt_near_heldout", ""
    if side == "train" and context.splitter.deciding(dialogue) in judged:
        return "prompt_trains_judge", "the judge learns from pairs of this dialogue"
    return None


@dataclass(slots=True)
class _Seen:
    """Examples that stay so far, and what of them repeats or contradicts another."""

    near_threshold: float | None
    rows: dict[Key, dict[bool, list[int]]] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    """Row to its id, for messages."""
    near: dict[bool, tuple[list[int], SignatureTable, SignatureTable]] = field(
        default_factory=lambda: defaultdict(lambda: ([], SignatureTable(), SignatureTable()))
    )
    """By label: rows, and the signatures of their responses and prompts."""

    def add(self, row: int, item: UnpairedExample) -> None:
        whole = prompt_keys(item.prompt)[0] + response_key(item.response)
        known = self.rows.setdefault(whole, {})
        is_first = item.label not in known
        known.setdefault(item.label, []).append(row)
        self.ids[row] = item.example_id
        if self.near_threshold is not None and is_first:
            rows, responses, prompts = self.near[item.label]
            rows.append(row)
            responses.add(item.response)
            prompts.add(prompt_text(item.prompt))

    def problems(self) -> dict[int, Problem]:
        """Return the rows to filter out: repeats, and those of the smaller side of a dispute."""
        found: dict[int, Problem] = {}
        for labels in self.rows.values():
            good, bad = (labels.get(label, []) for label in (True, False))
            detail = f"{len(good)} rows call it good, {len(bad)} bad"
            for rows, others in ((good, bad), (bad, good)):
                if len(rows) <= len(others):
                    found |= dict.fromkeys(rows, ("conflicting_labels", detail))
                elif rows:
                    found |= dict.fromkeys(rows[1:], ("exact_duplicate", f"of {self.ids[rows[0]]}"))
        if self.near_threshold is None:
            return found
        for rows, responses, prompts in self.near.values():
            places = [place for place, row in enumerate(rows) if row not in found]
            tables = [SignatureRows(table.array(), places) for table in (responses, prompts)]
            for place, earlier in near_duplicates(tables, self.near_threshold).items():
                original = self.ids[rows[places[earlier]]]
                found[rows[places[place]]] = "near_duplicate", f"of {original}"
        return found
