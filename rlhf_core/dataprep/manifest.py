"""What a prepared directory was made from and what it holds, so that it can be trusted again."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from rlhf_core.dataprep.files import atomic_file, md5_of, sha256_of
from rlhf_core.dataprep.outputs import FILE_NAMES
from rlhf_core.schema import Record

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
    """Version of the dataset: over the prepared files' sha256, in name order."""
    files: dict[str, FileFacts]


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """Return one digest over named parts."""
    text = "\n".join(f"{name}={parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(files: Iterable[Path]) -> str:
    """Return one digest over source files, so that changed code never passes for the old."""
    return fingerprint_of({path.name: sha256_of(path) for path in files})


def write_manifest(directory: Path, fingerprint: str, num_rows: Mapping[str, int]) -> Manifest:
    """Digest the prepared files of ``directory`` and write the manifest beside them."""
    files = {}
    for name in FILE_NAMES:
        path = directory / f"{name}.jsonl"
        files[name] = FileFacts(sha256=sha256_of(path), md5=md5_of(path), num_rows=num_rows[name])
    digest = hashlib.sha256("".join(files[name].sha256 for name in FILE_NAMES).encode())
    manifest = Manifest(fingerprint=fingerprint, sha256=digest.hexdigest(), files=files)
    with atomic_file(directory / NAME) as stream:
        stream.write(manifest.model_dump_json(indent=2).encode() + b"\n")
    return manifest


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest; None where there is none or the files are no longer what it says."""
    try:
        manifest = Manifest.model_validate_json((directory / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    for name, facts in manifest.files.items():
        path = directory / f"{name}.jsonl"
        if not path.is_file() or sha256_of(path) != facts.sha256:
            return None
    return manifest
