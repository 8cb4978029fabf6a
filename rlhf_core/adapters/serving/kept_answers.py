"""What a served model was asked, what it answered and how people rated it, as lines of JSON.

A line is written when an answer is complete, and the same line again with every rating; the last
line of an answer counts (``dataprep.sources.ratings`` reads them). Lines are only ever added.
Nothing of the request but the chat is kept.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from rlhf_core.errors import ConfigError, DataError
from rlhf_core.schema import Conversation, Record
from rlhf_core.storage.full_disk import writing
from rlhf_core.storage.locks import locked

ENDINGS = (".jsonl", ".ndjson")
Rating = Literal["up", "down"]


class KeptAnswer(Record):
    """One answer, and its rating once it has one."""

    id: str
    """Of the completion."""
    index: int
    """Which of the completion's answers."""
    created: int
    """Seconds since 1970."""
    model: str
    """URI of the version that answered."""
    prompt: Conversation
    completion: str
    finish_reason: str
    label: bool | None = None
    """True: rated up."""
    rating: Rating | None = None
    comment: str | None = None
    rated: int | None = None
    """Seconds since 1970."""


class UnknownAnswerError(DataError):
    """No such answer is kept."""


class KeptAnswers:
    """The file, or the folder with a file a day, to which several servers may add.

    Args:
        place: a ``.jsonl`` file, or a folder. What is made is readable by its owner alone; what is
            there keeps its permissions.

    Raises:
        ConfigError: it cannot be written or read.
    """

    def __init__(self, place: Path) -> None:
        self.place, self._is_file = place, place.suffix.lower() in ENDINGS
        self._lock = threading.Lock()
        self._places: dict[str, dict[int, tuple[Path, int]]] = {}
        """Id to index to file and offset of the answer's first line."""
        self._read: dict[Path, tuple[int, int]] = {}
        """File to its inode and how much of it is read."""
        try:
            self._make_folder()
            if self._is_file:
                os.close(_open(place))
            self._catch_up()
        except OSError as error:
            raise ConfigError(
                f"--feedback {place}: cannot be written: {error.strerror or error}; name a .jsonl"
                " file or a folder that this account may write"
            ) from error

    def keep(self, answers: Sequence[KeptAnswer]) -> None:
        """Add answers.

        Raises:
            StorageError: the disk takes them not; none of them is kept then.
        """
        lines = b"".join(answer.model_dump_json().encode() + b"\n" for answer in answers)
        path = self.place if self._is_file else self.place / f"feedback-{_today()}.jsonl"
        with writing(path), locked(path.with_name(f".{path.name}.lock")):
            _append(_open(path), lines)

    def rate(self, id_: str, index: int | None, rating: Rating, comment: str | None) -> KeptAnswer:
        """Add a rating of an answer, whichever server gave it; the last one of several counts.

        Args:
            id_: of the completion.
            index: which of its answers; None where it has one.
            rating: what people think of it.
            comment: why, in their words.

        Raises:
            UnknownAnswerError: there is no such answer.
            DataError: the completion has several answers and none is named.
            StorageError: the disk does not take it.
        """
        answer = self._find(id_, index)
        rated = answer.model_copy(
            update={
                "label": rating == "up",
                "rating": rating,
                "comment": comment,
                "rated": int(time.time()),
            }
        )
        self.keep([rated])
        return rated

    def _find(self, id_: str, index: int | None) -> KeptAnswer:
        with self._lock:
            answer = self._look_up(id_, index)
            if answer is None:  # the file is another one now
                self._read.clear()
                self._places.clear()
                answer = self._look_up(id_, index)
        if answer is None:
            raise _unknown(id_, index)
        return answer

    def _look_up(self, id_: str, index: int | None) -> KeptAnswer | None:
        """Return the answer; None where another stands in its place by now."""
        self._catch_up()
        known = self._places.get(id_, {})
        if index is None and len(known) > 1:
            raise DataError(f"{id_} has {len(known)} answers; say which by index, from 0")
        if (0 if index is None else index) not in known:
            raise _unknown(id_, index)
        answer = _read_at(*known[0 if index is None else index])
        is_it = answer is not None and (answer.id, answer.index) == (id_, index or 0)
        return answer if is_it else None

    def _catch_up(self) -> None:
        """Read what was added since, by other servers too."""
        for path in self._files():
            with path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                inode, start = self._read.get(path, (found.st_ino, 0))
                start = start if inode == found.st_ino and start <= found.st_size else 0
                stream.seek(start)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    if (answer := _parsed(line)) is not None:
                        by_index = self._places.setdefault(answer.id, {})
                        by_index.setdefault(answer.index, (path, start))
                    start += len(line)
                self._read[path] = found.st_ino, start

    def _files(self) -> Iterator[Path]:
        if self._is_file:
            yield from [self.place] if self.place.exists() else []
        else:
            yield from sorted(self.place.glob("feedback-*.jsonl"))

    def _make_folder(self) -> None:
        folder = self.place.parent if self._is_file else self.place
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _unknown(id_: str, index: int | None) -> UnknownAnswerError:
    which = "" if index is None else f" with index {index}"
    return UnknownAnswerError(f"no answer {id_!r}{which} is kept here")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _append(file: int, lines: bytes) -> None:
    """Write whole lines or nothing, on a line of their own, whatever a killed writer left."""
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        lines = b"\n" + lines if torn else lines
        written = 0
        try:
            while written < len(lines):
                written += os.write(file, lines[written:])
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _read_at(path: Path, offset: int) -> KeptAnswer | None:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return _parsed(stream.readline())
    except FileNotFoundError:
        return None


def _parsed(line: bytes) -> KeptAnswer | None:
    """Return what a line holds; None for what a killed writer left, or somebody else wrote."""
    try:
        return KeptAnswer.model_validate_json(line)
    except ValidationError:
        return None


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
