"""First pass over raw comparisons: read, screen, remember little, spill the texts to disk.

Then, of what is remembered, who won and what is filtered out for the sake of other rows.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rlhf_core.dataprep.cleaning.near import near_duplicates
from rlhf_core.dataprep.cleaning.near_dialogues import FirstTurnIndex
from rlhf_core.dataprep.cleaning.prompt_index import PromptIndex, RowSignatures
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.cleaning.rules import RowRules
from rlhf_core.dataprep.keys import DialogueKey
from rlhf_core.dataprep.ledger import Entry, Ledger, enter
from rlhf_core.dataprep.measures.frames import FEW, FrameBuilder, excerpt
from rlhf_core.dataprep.measures.losses import TokenLosses
from rlhf_core.dataprep.sources.rows import UNNAMED, FilteredRow
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.dataprep.votes.pooling import Ballot, votes_once
from rlhf_core.dataprep.votes.vote_table import Floats, VoteTable, decide
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Comparison, PreferencePair
from rlhf_core.storage.records import atomic_file, batched, json_line

RAW_COLUMNS = pa.schema(
    [
        ("comparison_id", pa.string()),
        ("source", FEW),
        ("line", pa.int64()),
        ("prompt", pa.string()),
        ("response_a", pa.string()),
        ("response_b", pa.string()),
        ("num_votes", pa.int64()),
        ("repeated_votes", pa.int64()),
        ("content", pa.string()),
    ]
)
"""One row a comparison: what the raw validation suite sees. Texts are excerpts."""

Fields = dict[str, Any]
"""Of a comparison, as its JSON has them: it was checked when it was read."""


@dataclass(slots=True)
class Intake:
    """All comparisons of the raw files: entries in memory, records in ``spill``, same order."""

    spill: Path
    entries: Ledger = field(default_factory=Ledger)
    votes: VoteTable = field(default_factory=VoteTable)
    columns: FrameBuilder = field(default_factory=lambda: FrameBuilder(RAW_COLUMNS))
    signatures: RowSignatures | None = None
    """None where near repeats do not matter."""
    first_turns: FirstTurnIndex | None = None
    """None where only equal dialogues are kept together."""
    pooled: dict[int, Ballot] = field(default_factory=dict)
    """Row to all votes on its pair, where other rows gave it theirs."""
    token_losses: TokenLosses = field(default_factory=TokenLosses)
    """What tokens left out, by side and label."""
    num_rows: int = 0
    """Rows read, those the reader filtered out included."""
    num_repeated_votes: int = 0
    """Votes left out because the same person gave the same answer before in the same row."""
    excluded_votes: Counter[str] = field(default_factory=Counter)
    """Votes left out because the configuration excludes the annotator, by name."""
    reliability: dict[str, float] = field(default_factory=dict)
    """Of each annotator, once it is decided who won."""
    num_decided_by_heads: int | None = None
    """Comparisons on which nobody with a record voted; None where majority votes decide all."""

    def add(self, item: Comparison, entry: Entry, num_repeated_votes: int = 0) -> None:
        """Keep one comparison and what is known of it.

        Args:
            item: the comparison, each person's answer once.
            entry: what is known of it.
            num_repeated_votes: answers of it that were left out.
        """
        self.num_repeated_votes += num_repeated_votes
        self.votes.add(len(self.entries), item.votes)
        self.entries.add(entry)
        self.columns.add(
            item.comparison_id,
            item.source,
            item.line,
            excerpt(item.prompt[-1].content if item.prompt else ""),
            excerpt(item.response_a),
            excerpt(item.response_b),
            len(item.votes),
            num_repeated_votes + _num_given_twice(item),
            entry.pair.hex(),
        )

    def add_signatures(self, items: Sequence[Comparison], entries: Sequence[Entry]) -> None:
        """Keep what tells comparisons, their prompts and dialogues from ones nearly like them."""
        if self.signatures is not None:
            rows = zip(items, entries, strict=True)
            self.signatures.extend([(item, entry.prompt, entry.dialogue) for item, entry in rows])
        if self.first_turns is not None:
            self.first_turns.extend(
                (item.prompt, entry.dialogue)
                for item, entry in zip(items, entries, strict=True)
                if entry.reason is None
            )


def ingest(
    items: Iterable[Comparison | FilteredRow],
    intake: Intake,
    quarantine: Quarantine,
    rules: RowRules,
    *,
    excluded: frozenset[str] = frozenset(),
) -> None:
    """Read everything once into ``intake``. Rows the reader could not use go to ``quarantine``.

    Args:
        items: what the readers yield.
        intake: empty; its ``spill`` receives the records for the second pass.
        quarantine: receives what the readers filtered out.
        rules: cleaning rules for single rows.
        excluded: annotators whose votes are left out.

    Raises:
        ConfigError: one of the excluded never voted.
    """
    progress = tqdm(items, desc="reading comparisons", unit=" rows", disable=None)
    with atomic_file(intake.spill) as stream:
        for batch in batched(progress):
            intake.num_rows += len(batch)
            kept = []
            for item in batch:
                if isinstance(item, FilteredRow):
                    quarantine.add("preferences", item)
                else:
                    kept.append(_without_votes_of(excluded, item, intake.excluded_votes))
            entries = _screen(kept, rules, intake.token_losses)
            intake.add_signatures(kept, entries)
            for item, entry in zip(kept, entries, strict=True):
                votes = votes_once(item.votes)
                num_repeated = len(item.votes) - len(votes)
                once = item.model_copy(update={"votes": votes}) if num_repeated else item
                intake.add(once, entry, num_repeated)
                stream.write(json_line(once))
    if strangers := sorted(excluded - set(intake.excluded_votes)):
        raise ConfigError(
            f"data.votes.exclude: no vote by {', '.join(strangers)}; names must be written as in"
            " annotators.csv"
        )


def _screen(items: Sequence[Comparison], rules: RowRules, losses: TokenLosses) -> list[Entry]:
    """Enter comparisons; what is of no use by itself needs no rules."""
    entries = [enter(item) for item in items]
    sound = [row for row, entry in enumerate(entries) if entry.reason is None]
    rows = [(items[row].prompt, (items[row].response_a, items[row].response_b)) for row in sound]
    for row, problem in zip(sound, rules.problems(rows), strict=True):
        if problem is not None:
            reason, detail = problem
            entries[row] = replace(entries[row], reason=reason, detail=detail)
            losses.add(problem, items[row])
    return entries


def apply_votes(entries: Ledger, probabilities: Floats) -> None:
    """Write down who wins; ties are filtered out.

    Args:
        entries: all comparisons.
        probabilities: [N, 3] of a, b and tie, from a vote model.
    """
    beats, tied = decide(probabilities)
    entries.a_beats_b = array("d", beats.tobytes())
    for row in np.flatnonzero(tied).tolist():
        entries.filter_out(row, "tie")


def resolve(item: Fields, a_beats_b: float) -> PreferencePair:
    """Return the pair, with the winner's probability as its soft label.

        agreement   = (votes for the winner + votes for a tie / 2) / all votes
        probability = max(a_beats_b, 1 - a_beats_b)

    Args:
        item: a comparison that is no tie.
        a_beats_b: probability that ``response_a`` is better, from a vote model; by plain majority
            the share of its votes.
    """
    winner, loser = "ab" if a_beats_b > 0.5 else "ba"
    choices = [vote["choice"] for vote in item["votes"]]
    num_votes, ties = len(choices), choices.count("tie")
    strengths = [
        vote["strength"]
        for vote in item["votes"]
        if vote["choice"] == winner and vote["strength"] is not None
    ]
    return PreferencePair(
        comparison_id=item["comparison_id"],
        prompt=item["prompt"],
        chosen=item[f"response_{winner}"],
        rejected=item[f"response_{loser}"],
        agreement=(choices.count(winner) + ties / 2) / num_votes,
        probability=max(a_beats_b, 1 - a_beats_b),
        num_votes=num_votes,
        tie_fraction=ties / num_votes,
        strength=sum(strengths) / len(strengths) if strengths else None,
        source=item["source"],
        group=item["group"],
        tags=item.get("tags", {}),
    )


def filter_reserved(entries: Ledger, reserved: Set[DialogueKey]) -> None:
    """Filter out every comparison whose dialogue belongs to the held-out file."""
    for row in range(len(entries)):
        if entries.dialogue(row) in reserved:
            detail = "its first turn is that of a held-out prompt"
            entries.filter_out(row, "prompt_is_heldout", detail)


def filter_near_duplicates(intake: Intake, threshold: float) -> None:
    """Filter out pairs whose prompt and responses nearly repeat those of an earlier pair."""
    if intake.signatures is None:
        return
    entries, staying = intake.entries, intake.entries.staying()
    tables = intake.signatures.of_rows(staying)
    for row, earlier in near_duplicates(tables, threshold).items():
        place = entries[staying[earlier]].place
        entries.filter_out(staying[row], "near_duplicate", f"of {place}")


def filter_near_heldout(intake: Intake, heldout: PromptIndex, splitter: DialogueSplitter) -> None:
    """Filter out training pairs whose prompt, or how it opens, is nearly that of a held-out one.

    The held-out prompts of the pairs that stay join those of the other files in ``heldout``.
    """
    signatures, entries = intake.signatures, intake.entries
    if signatures is None:
        return
    train = array("q")
    for row in entries.staying():
        dialogue = entries.dialogue(row)
        if splitter.side(dialogue) == "heldout":
            heldout.add(signatures.of_prompt(row, dialogue))
        else:
            train.append(row)
    rows = np.array(train, dtype=np.int64)
    _, first, prompt = np.unique(
        signatures.prompts_of(rows), return_index=True, return_inverse=True
    )
    is_near = [
        heldout.near(signatures.of_prompt(row, entries.dialogue(row)))
        for row in rows[first].tolist()
    ]
    for row in rows[np.array(is_near, dtype=np.bool_)[prompt]].tolist():
        entries.filter_out(row, "prompt_near_heldout")


def _without_votes_of(
    excluded: frozenset[str], item: Comparison, counts: Counter[str]
) -> Comparison:
    """Return a comparison without the votes of some people, and count those."""
    if not excluded:
        return item
    out = [vote.annotator for vote in item.votes if vote.annotator in excluded]
    if not out:
        return item
    counts.update(out)
    kept = tuple(vote for vote in item.votes if vote.annotator not in excluded)
    return item.model_copy(update={"votes": kept})


def _num_given_twice(item: Comparison) -> int:
    named = [vote.annotator for vote in item.votes if vote.annotator != UNNAMED]
    return len(named) - len(set(named))
