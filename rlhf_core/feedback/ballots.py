"""Votes as they come in: a journal for each labeler."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from rlhf_core.errors import ConfigError, DataError
from rlhf_core.schema import Choice, Comparison, Record, Vote
from rlhf_core.storage.journal import Keep, appending, read_journal
from rlhf_core.storage.records import (
    iterate_records,
    parse_object,
    require_file,
    shorten,
    write_records,
    write_text,
)

FOLDER = "votes"
_ASKED = "asked.json"
_BALLOTS = "ballots.jsonl"
_ASIDE = "set-aside.jsonl"
_FILE_BOX = "file"
"""Labeler whose votes come from files."""


class Ballot(Record):
    """What one labeler said about one pair."""

    comparison_id: str
    votes: tuple[Vote, ...] = ()
    """None where no answer could be read."""
    problem: str = ""
    """Why there is no vote."""
    order_dependent: bool | None = None
    """AI judges: whether the verdict changed with the order of the responses."""
    answers: tuple[str, ...] = ()
    """AI judges: what was said, in the order it was asked."""


class SetAside(Record):
    """An answer that cannot be read; the others of its pair count."""

    comparison_id: str
    place: str
    """Where it stands with the labeler."""
    reason: str


class BallotBox:
    """The ballots of one labeler on one collection."""

    def __init__(self, collection: Path, labeler: str) -> None:
        """Name the box; nothing is made yet."""
        self.path = collection / FOLDER / _plain(labeler) / _BALLOTS

    def read(self) -> list[Ballot]:
        """Return the last ballot on each pair. A last line that is not whole is none yet."""
        ballots = {one.comparison_id: one for one in read_journal(self.path, Ballot)}
        return list(ballots.values())

    def without_ballot(
        self, pairs: Sequence[Comparison], *, again: bool = False
    ) -> list[Comparison]:
        """Return the pairs that no ballot in it is about; ``again``: none with a vote."""
        there = {ballot.comparison_id for ballot in self.read() if ballot.votes or not again}
        return [pair for pair in pairs if pair.comparison_id not in there]

    @contextmanager
    def opened(self, asked: Mapping[str, object]) -> Iterator[Keep]:
        """Open it for more ballots. One at a time: the caller holds the collection's lock.

        Args:
            asked: settings that decide the answers; those of one box are asked alike.

        Raises:
            ConfigError: the ballots in it were asked for otherwise.
        """
        self._require_same_question(asked)
        with appending(self.path) as keep:
            yield keep

    def replace(self, ballots: Iterable[Ballot], aside: Sequence[SetAside] = ()) -> None:
        """Put in exactly these: what a server says now replaces what it said before.

        Args:
            ballots: one on each pair.
            aside: what cannot be read of what it says.
        """
        write_records(self.path, ballots)
        if aside:
            write_records(self.aside_path, aside)
        else:
            self.aside_path.unlink(missing_ok=True)

    @property
    def aside_path(self) -> Path:
        """The file of answers that could not be read; none where all could."""
        return self.path.with_name(_ASIDE)

    def _require_same_question(self, asked: Mapping[str, object]) -> None:
        path = self.path.with_name(_ASKED)
        text = json.dumps(asked, indent=2, sort_keys=True, ensure_ascii=False)
        if not path.is_file():
            write_text(path, text)
        elif (before := path.read_text(encoding="utf-8")) != text:
            then = parse_object(before, where=str(path))
            changed = sorted(
                key for key in {*then, *asked} if then.get(key) != json.loads(text).get(key)
            )
            raise ConfigError(
                f"feedback.labeler: the votes in {self.path.parent} were asked for with other"
                f" settings (changed: {', '.join(changed)}); give the same ones, or delete that"
                " folder to ask for all of them again"
            )


class FileVote(Record):
    """A line of a file of votes."""

    pair: str
    """Its ``comparison_id``."""
    annotator: str = Field(min_length=1)
    winner: Choice


def add_file_votes(collection: Path, path: Path, pairs: Sequence[Comparison]) -> None:
    """Add the votes of a file, JSON lines of ``pair``, ``annotator`` and ``winner``.

    Who voted on a pair by an earlier file is taken to have changed their mind.

    Raises:
        DataError: there is no such file, or a line is not about a pair of the collection, or one
            annotator votes twice on a pair; names the line.
    """
    require_file(path, "expected JSON lines of pair, annotator and winner")
    ids = {pair.comparison_id for pair in pairs}
    box = BallotBox(collection, _FILE_BOX)
    known = {one.comparison_id: {v.annotator: v for v in one.votes} for one in box.read()}
    lines: dict[tuple[str, str], int] = {}
    for number, vote in enumerate(iterate_records(path, FileVote), 1):
        if vote.pair not in ids:
            raise DataError(
                f"{path}, row {number}: no pair {shorten(vote.pair)} in collection "
                f"{collection.name}; expected a comparison_id of its {len(ids)} pairs"
            )
        one = Vote(annotator=vote.annotator, choice=vote.winner)
        before = lines.setdefault((vote.pair, one.annotator), number)
        if before != number:
            raise DataError(
                f"{path}, row {number}: {shorten(one.annotator)} votes on {vote.pair} in row "
                f"{before} already; expected one vote of an annotator on a pair"
            )
        known.setdefault(vote.pair, {})[one.annotator] = one
    if not lines:
        raise DataError(f"{path}: no votes in it")
    box.replace(Ballot(comparison_id=name, votes=tuple(v.values())) for name, v in known.items())


def count_aside(collection: Path) -> int:
    """Return how many answers could not be read, of all labelers."""
    files = (collection / FOLDER).glob(f"*/{_ASIDE}")
    return sum(1 for path in files for _ in iterate_records(path, SetAside))


def all_votes(collection: Path) -> dict[str, tuple[Vote, ...]]:
    """Return the votes on each comparison, of all labelers in name order.

    Who voted twice on a pair through different boxes counts once: the first box wins.
    """
    found: dict[str, dict[str, Vote]] = {}
    for path in sorted((collection / FOLDER).glob(f"*/{_BALLOTS}")):
        for ballot in BallotBox(collection, path.parent.name).read():
            votes = found.setdefault(ballot.comparison_id, {})
            for vote in ballot.votes:
                votes.setdefault(vote.annotator, vote)
    return {name: tuple(votes.values()) for name, votes in found.items() if votes}


def _plain(labeler: str) -> str:
    """Return a folder name for a labeler, whose own name may hold slashes and colons."""
    plain = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in labeler)
    if plain == labeler:
        return plain
    return f"{plain}-{hashlib.sha256(labeler.encode()).hexdigest()[:6]}"
