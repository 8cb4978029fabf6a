"""What a prepared directory was made from and what it holds, so that it can be trusted again."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

from pydantic import Field, ValidationError

from rlhf_core.dataprep.assemble import FILE_NAMES, UNPAIRED_FILES
from rlhf_core.schema import Record
from rlhf_core.storage.records import md5_of, sha256_of, write_record

NAME = "manifest.json"


class FileFacts(Record):
    """One prepared file."""

    sha256: str
    md5: str
    num_rows: int = Field(ge=0)


class Manifest(Record):
    """Lies in the prepared directory as ``manifest.json``."""

    fingerprint: str
    """Over the bytes of all inputs, the settings that matter, and the code that prepared."""
    sha256: str
    """Version of the dataset: over the prepared files' sha256, in name order, and the template's
    date if it has one."""
    files: dict[str, FileFacts]
    split: str = ""
    """Rule by which dialogues were split; empty in datasets that are older than this field."""
    longest_prompt: int = 0
    """Tokens of the longest prompt to sample from; 0 where tokens were not looked at."""
    shortest_left_out: int | None = None
    """Tokens of the shortest prompt that left no room to answer; None where all had room."""
    template_date: date | None = None
    """What a chat template that reads the clock takes for today; None where none reads it."""

    def holds_for(self, limit: int | None) -> bool:
        """Tell whether prompts of at most ``limit`` tokens are just those that are here."""
        if limit is None:
            return self.shortest_left_out is None
        return self.longest_prompt <= limit and (
            self.shortest_left_out is None or limit < self.shortest_left_out
        )


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """Return one digest over named parts."""
    text = "\n".join(f"{name}={parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(root: Path, files: Iterable[Path]) -> str:
    """Return one digest over source files, so that changed code never passes for the old."""
    return fingerprint_of({str(path.relative_to(root)): sha256_of(path) for path in files})


def write_manifest(
    directory: Path,
    fingerprint: str,
    num_rows: Mapping[str, int],
    room: tuple[int, int | None] = (0, None),
    split: str = "",
    template_date: date | None = None,
) -> Manifest:
    """Digest the prepared files of ``directory`` and write the manifest beside them.

    Args:
        directory: holds the files.
        fingerprint: of all that decided them.
        num_rows: rows of each file.
        room: tokens of the longest prompt kept and of the shortest left out.
        split: rule by which dialogues were split.
        template_date: what a chat template that reads the clock takes for today; it decides the
            prompts, so it is part of the dataset's version.
    """
    files = {}
    names = [*FILE_NAMES, *(name for name in UNPAIRED_FILES if name in num_rows)]
    for name in names:
        path = directory / f"{name}.jsonl"
        files[name] = FileFacts(sha256=sha256_of(path), md5=md5_of(path), num_rows=num_rows[name])
    digest = hashlib.sha256("".join(files[name].sha256 for name in names).encode())
    if template_date is not None:
        digest.update(template_date.isoformat().encode())
    manifest = Manifest(
        fingerprint=fingerprint,
        sha256=digest.hexdigest(),
        files=files,
        split=split,
        longest_prompt=room[0],
        shortest_left_out=room[1],
        template_date=template_date,
    )
    write_record(directory / NAME, manifest)
    return manifest


def find_manifest(directory: Path) -> Manifest | None:
    """Return the manifest as it is written, whatever became of the files; None without one."""
    try:
        return Manifest.model_validate_json((directory / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError):
        return None


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest; None where there is none or the files are no longer what it says."""
    manifest = find_manifest(directory)
    if manifest is None:
        return None
    for name, facts in manifest.files.items():
        path = directory / f"{name}.jsonl"
        if not path.is_file() or sha256_of(path) != facts.sha256:
            return None
    return manifest
