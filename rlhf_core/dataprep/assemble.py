"""Second pass: what stays is resolved, split and written to the prepared files.

What does not is filtered out.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa
from tqdm import tqdm

from rlhf_core.dataprep.cleaning.prompt_index import PromptIndex, prompt_signatures
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.cleaning.rules import Problem, RowRules
from rlhf_core.dataprep.intake import Intake, resolve
from rlhf_core.dataprep.keys import (
    DialogueKey,
    Key,
    dialogue_key,
    prompt_keys,
    response_key,
    source_name,
)
from rlhf_core.dataprep.measures.frames import FEW, FrameBuilder, excerpt
from rlhf_core.dataprep.sources.rows import FilteredRow, Reason, prompt_problem
from rlhf_core.dataprep.split import DialogueSplitter, Half, Side
from rlhf_core.schema import (
    Conversation,
    Demonstration,
    PreferencePair,
    Prompt,
    Record,
    UnpairedExample,
)
from rlhf_core.storage.records import WRITTEN_AT_ONCE, iterate_fields, json_line

FILE_NAMES = (
    "demonstrations_heldout",
    "demonstrations_train",
    "judge_heldout",
    "judge_train",
    "prompts_heldout",
    "prompts_train",
    "reward_heldout",
    "reward_train",
)
"""Prepared files in name order; each is ``<name>.jsonl``."""

UNPAIRED_FILES = ("unpaired_heldout", "unpaired_train")
"""There where ``data.unpaired`` names files; they come after the others in name order."""

REWARD_TRAIN = "reward_train"
PAIR_FILES = (REWARD_TRAIN, "reward_heldout", "judge_train", "judge_heldout")
"""Those that hold preference pairs."""

PAIR_COLUMNS = pa.schema(
    [
        ("comparison_id", pa.string()),
        ("dialogue_key", pa.string()),
        ("half", FEW),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("probability", pa.float64()),
    ]
)
PROMPT_COLUMNS = pa.schema(
    [
        ("row_id", pa.string()),
        ("file", FEW),
        ("side", FEW),
        ("dialogue_key", pa.string()),
    ]
)


class PreparedFiles:
    """The prepared files, open for writing, and the columns the last validation looks at.

    Writes records to the file of their side; used as a context manager.
    """

    def __init__(self, directory: Path, *, unpaired: bool = False) -> None:
        """Open the files in ``directory``: eight, and with ``unpaired`` those of such rows."""
        names = FILE_NAMES + (UNPAIRED_FILES if unpaired else ())
        self._stack = ExitStack()
        self._streams: dict[str, IO[bytes]] = {
            name: self._stack.enter_context(
                (directory / f"{name}.jsonl").open("wb", buffering=WRITTEN_AT_ONCE)
            )
            for name in names
        }
        self.num_rows = dict.fromkeys(names, 0)
        self.pairs = FrameBuilder(PAIR_COLUMNS)
        self.prompts = FrameBuilder(PROMPT_COLUMNS)

    def add_pair(self, pair: PreferencePair, dialogue: DialogueKey, half: Half, side: Side) -> None:
        """Write a preference pair."""
        self._write(f"{half}_{side}", pair, pair.comparison_id, dialogue, side)
        self.pairs.add(
            pair.comparison_id,
            dialogue.hex(),
            half,
            excerpt(pair.chosen),
            excerpt(pair.rejected),
            pair.probability,
        )

    def add_demonstration(self, item: Demonstration, dialogue: DialogueKey, side: Side) -> None:
        """Write a demonstration."""
        self._write(f"demonstrations_{side}", item, item.demonstration_id, dialogue, side)

    def add_unpaired(self, item: UnpairedExample, dialogue: DialogueKey, side: Side) -> None:
        """Write a response with its label."""
        self._write(f"unpaired_{side}", item, item.example_id, dialogue, side)

    def add_prompt(self, item: Prompt, dialogue: DialogueKey, side: Side) -> None:
        """Write a prompt."""
        self._write(f"prompts_{side}", item, item.prompt_id, dialogue, side)

    def _write(
        self, name: str, record: Record, row_id: str, dialogue: DialogueKey, side: Side
    ) -> None:
        self._streams[name].write(json_line(record))
        self.num_rows[name] += 1
        self.prompts.add(row_id, name, side, dialogue.hex())

    def __enter__(self) -> "PreparedFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


@dataclass(frozen=True, slots=True)
class PreparationContext:
    """Where rows go, and what decides it."""

    files: PreparedFiles
    quarantine: Quarantine
    splitter: DialogueSplitter
    rules: RowRules
    heldout: PromptIndex | None
    """Held-out prompts to compare training prompts with; None where nearness does not matter."""

    def splitter_problem(self, dialogue: DialogueKey) -> Problem:
        """Return why a prompt with no side is filtered out."""
        if dialogue in self.splitter.near.beside_reserved:
            return "prompt_near_heldout", "its first turn is nearly that of a held-out prompt"
        return "prompt_is_heldout", ""

    def gives_away(self, prompt: Conversation, side: Side) -> bool:
        """Tell whether a training prompt, or how it opens, is nearly that of a held-out one."""
        if side == "heldout" or self.heldout is None:
            return False
        return self.heldout.near(prompt_signatures(prompt))


@dataclass(frozen=True, slots=True)
class WrittenPair:
    """A preference pair that was written, and where it belongs."""

    pair: PreferencePair
    prompt: Key
    dialogue: DialogueKey
    half: Half
    side: Side
    has_like: bool
    """Whether another pair may have the same prompt and winner; if not, none has."""


def write_pairs(intake: Intake, context: PreparationContext) -> Iterator[WrittenPair]:
    """Write every comparison that stays as a pair, and yield it."""
    entries = intake.entries
    has_like = entries.sharing_prompt_and_winner()
    lines = zip(range(len(entries)), iterate_fields(intake.spill), strict=True)
    for number, (line, item) in tqdm(
        lines, total=len(entries), desc="writing pairs", unit=" rows", disable=None
    ):
        dialogue, reason = entries.dialogue(number), entries.reason(number)
        side = context.splitter.side(dialogue)
        if reason is not None:
            entry, row_id = entries[number], item["comparison_id"]
            text = line.decode().removesuffix("\n")
            row = FilteredRow(reason, entry.source, entry.line, text, row_id, entry.detail)
            context.quarantine.add("preferences", row)
            continue
        if number in intake.pooled:
            item["votes"] = [vote.model_dump() for vote in intake.pooled[number]]
        pair, half = resolve(item, entries.a_beats_b[number]), context.splitter.half(dialogue)
        context.files.add_pair(pair, dialogue, half, side)
        context.quarantine.keep("preferences")
        prompt, is_like = entries.prompt(number), bool(has_like[number])
        yield WrittenPair(pair, prompt, dialogue, half, side, is_like)


def write_demonstrations(
    rows: Iterable[tuple[int, Demonstration | FilteredRow]], context: PreparationContext
) -> None:
    """Write the demonstrations of a file of their own."""
    seen: set[Key] = set()
    for line, item in tqdm(rows, desc="demonstrations", unit=" rows", disable=None):
        if isinstance(item, FilteredRow):
            context.quarantine.add("demonstrations", item)
            continue
        key, dialogue = prompt_keys(item.prompt)
        whole = key + response_key(item.response)
        side = context.splitter.side(dialogue)
        problem = _demonstration_problem(item, context)
        if problem is None and dialogue in context.splitter.reserved:
            problem = "prompt_is_heldout", ""
        elif problem is None and whole in seen:
            problem = "exact_duplicate", ""
        elif problem is None and context.gives_away(item.prompt, side):
            problem = "prompt_near_heldout", ""
        if problem is not None:
            row = _filtered_row(problem, item.source, line, item, item.demonstration_id)
            context.quarantine.add("demonstrations", row)
            continue
        seen.add(whole)
        context.files.add_demonstration(item, dialogue, side)
        context.quarantine.keep("demonstrations")


def write_derived(
    batches: Iterable[Sequence[WrittenPair]],
    context: PreparationContext,
    *,
    demonstrations: bool,
    prompts: bool,
) -> None:
    """Walk through written pairs; write their chosen responses and prompts where asked to.

    Derived rows are no input rows, so repeats are left out without a quarantine entry; a prompt
    too long to be answered is filtered out as any other.
    """
    seen: set[Key] = set()
    for batch in batches:
        fresh: list[tuple[WrittenPair, Side]] = []
        for row in batch:
            if demonstrations and not (row.has_like and _is_repeat(row, seen)):
                _write_derived_demonstration(row, context)
            side = context.splitter.prompt_side(row.dialogue)
            if prompts and row.prompt not in seen and side is not None:
                seen.add(row.prompt)
                fresh.append((row, side))
        _write_derived_prompts(fresh, context)


def _is_repeat(row: WrittenPair, seen: set[Key]) -> bool:
    """Tell whether a demonstration with the same prompt and response was met before."""
    whole = row.prompt + response_key(row.pair.chosen)
    is_known = whole in seen
    seen.add(whole)
    return is_known


def _write_derived_demonstration(row: WrittenPair, context: PreparationContext) -> None:
    demonstration = Demonstration(
        demonstration_id=row.pair.comparison_id,
        prompt=row.pair.prompt,
        response=row.pair.chosen,
        source=row.pair.source,
    )
    context.files.add_demonstration(demonstration, row.dialogue, row.side)


def _write_derived_prompts(
    rows: Sequence[tuple[WrittenPair, Side]], context: PreparationContext
) -> None:
    """Write pairs' prompts, but those behind which an answer would find no room."""
    problems = context.rules.room_problems([row.pair.prompt for row, _ in rows])
    for (row, side), problem in zip(rows, problems, strict=True):
        prompt = Prompt(prompt_id=row.pair.comparison_id, prompt=row.pair.prompt)
        if problem is None:
            context.files.add_prompt(prompt, row.dialogue, side)
            context.quarantine.keep("prompts_of_pairs")
        else:
            filtered = _filtered_row(problem, row.pair.source, 0, prompt, prompt.prompt_id)
            context.quarantine.add("prompts_of_pairs", filtered)


def write_prompts(
    path: Path, rows: Iterable[tuple[int, Prompt | FilteredRow]], context: PreparationContext
) -> None:
    """Write the prompts to sample from; call it once pairs and demonstrations are written."""
    seen: set[Key] = set()
    for line, item in tqdm(rows, desc="prompts", unit=" rows", disable=None):
        if isinstance(item, FilteredRow):
            context.quarantine.add("prompts", item)
            continue
        key, dialogue = prompt_keys(item.prompt)
        problem = _prompt_problem(item, context)
        side = context.splitter.prompt_side(dialogue)
        if problem is None and key in seen:
            problem = "exact_duplicate", ""
        elif problem is None and side is not None and context.gives_away(item.prompt, side):
            problem = "prompt_near_heldout", ""
        if problem is not None or side is None:
            problem = problem or context.splitter_problem(dialogue)
            row = _filtered_row(problem, source_name(path), line, item, item.prompt_id)
            context.quarantine.add("prompts", row)
            continue
        seen.add(key)
        context.files.add_prompt(item, dialogue, side)
        context.quarantine.keep("prompts")


def write_heldout_prompts(
    path: Path, rows: Iterable[tuple[int, Prompt | FilteredRow]], context: PreparationContext
) -> None:
    """Write the prompts only evaluation reads; their dialogues are reserved: call it first."""
    seen: set[Key] = set()
    for line, item in rows:
        if isinstance(item, FilteredRow):
            context.quarantine.add("heldout_prompts", item)
            continue
        key, dialogue = prompt_keys(item.prompt)
        problem = _prompt_problem(item, context)
        if problem is None and key in seen:
            problem = "exact_duplicate", ""
        if problem is not None:
            row = _filtered_row(problem, source_name(path), line, item, item.prompt_id)
            context.quarantine.add("heldout_prompts", row)
            continue
        seen.add(key)
        context.splitter.reserved.add(dialogue)
        if context.heldout is not None:
            context.heldout.add(prompt_signatures(item.prompt))
        context.files.add_prompt(item, dialogue, "heldout")
        context.quarantine.keep("heldout_prompts")


def index_heldout(
    rows: Iterable[tuple[int, Demonstration | Prompt | UnpairedExample | FilteredRow]],
    context: PreparationContext,
) -> None:
    """Let the held-out prompts among ``rows`` guard against near repeats in training."""
    if context.heldout is None:
        return
    for _, item in rows:
        if isinstance(item, FilteredRow):
            continue
        if context.splitter.side(dialogue_key(item.prompt)) == "heldout":
            context.heldout.add(prompt_signatures(item.prompt))


def _demonstration_problem(item: Demonstration, context: PreparationContext) -> Problem | None:
    reason: Reason | None = prompt_problem(item.prompt)
    if reason is None and not item.response.strip():
        reason = "empty_response"
    return (reason, "") if reason else context.rules.problem(item.prompt, [item.response])


def _prompt_problem(item: Prompt, context: PreparationContext) -> Problem | None:
    reason = prompt_problem(item.prompt)
    return (reason, "") if reason else context.rules.prompt_problem(item.prompt)


def _filtered_row(
    problem: Problem, source: str, line: int, item: Record, row_id: str
) -> FilteredRow:
    reason, detail = problem
    return FilteredRow(reason, source, line, item.model_dump_json(), row_id, detail)
