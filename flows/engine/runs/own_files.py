"""Which files of a run's folder the pipeline wrote, their bytes and deletion; all others stay."""

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from rlhf_core.config.stages import STAGES
from rlhf_core.schema import RunContext
from rlhf_core.storage.full_disk import writing
from rlhf_flows.engine.runs.folder import CONFIG, INPUTS, MARK, RESULT, ROUNDS, ROUNDS_PICTURE
from rlhf_flows.engine.runs.locks import CLEANING

_IN_RUN = (
    *(CONFIG, "report.html", MARK, ".*.lock", ".*.forced-by", ".approval-*.deadline"),
    *(ROUNDS, ROUNDS_PICTURE),
)
_IN_STAGE = (
    *(INPUTS, RESULT, "record.json", "rows.json", "mlflow-run", "mlflow-address.txt"),
    *("set-aside-*.jsonl", "samples.jsonl", "watched-answers.jsonl", "selection-answers.jsonl"),
    *(
        "suites/*.jsonl",
        "suite-answers/*.jsonl",
        "drawn-answers/*.jsonl",
        "votes/*/*.jsonl",
        "votes/*/*.json",
        "processes/*",
    ),
    *(
        f"{folder}/{pattern}"
        for folder in ("checkpoints", "checkpoints/kept")
        # Tensors of divided layers are in as many files as there were processes.
        for pattern in ("step-*/*.safetensors", "step-*/values.json", "step-*/manifest.json")
    ),
    *("checkpoints/.step-*/*", "checkpoints/kept/.step-*/*"),
)
_IN_MODEL = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.*", "merges.txt", "*.model", "*_config.json", "additional_chat_templates/*.jinja"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"),
)
"""What the pipeline writes; whatever else lies in the folder is a person's, and stays."""


def freed_bytes(files: Iterable[Path]) -> int:
    """Return the bytes of blocks that are free once these files are gone."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for path in files:
        try:
            stat = path.lstat()
        except FileNotFoundError:
            continue
        key = (stat.st_dev, stat.st_ino)
        names, links, size = found.get(key, (0, stat.st_nlink, stat.st_blocks * 512))
        found[key] = (names + 1, links, size)
    return sum(size for names, links, size in found.values() if names == links)


def own_files(directory: Path) -> list[Path]:
    """Return the files of a run's folder that the pipeline wrote."""
    return [path for path in _files(directory) if _is_ours(path.relative_to(directory))]


def foreign_files(directory: Path) -> tuple[Path, ...]:
    """Return the files of a run's folder that somebody else put there."""
    return tuple(path for path in _files(directory) if not _is_ours(path.relative_to(directory)))


def _files(directory: Path) -> list[Path]:
    """Return all that is no folder: links are not followed."""
    found = []
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder, name) for name in (*files, *links)]
    return sorted(found)


def _is_ours(path: Path) -> bool:
    """Return whether a file is one that the pipeline writes, by its place in the run's folder."""
    if any(part.startswith(".") and part.endswith((".tmp", ".old")) for part in path.parts):
        return True
    if len(path.parts) == 1:
        return _is_one_of(path, _IN_RUN)
    stage, number = path.parts[0], ""
    if "." in stage:
        stage, _, number = stage.partition(".")
    if stage not in STAGES or (number and not number.isdigit()):
        return False
    inner = Path(*path.parts[1:])
    if inner.parts[0] == "model" and len(inner.parts) > 1:
        return _is_one_of(Path(*inner.parts[1:]), _IN_MODEL)
    return _is_one_of(inner, _IN_STAGE) or inner.parts[0] == "processes"


def _is_one_of(path: Path, patterns: Iterable[str]) -> bool:
    """Match part by part: a star does not reach into folders."""
    for pattern in patterns:
        parts = pattern.split("/")
        if len(parts) == len(path.parts) and all(map(fnmatch, path.parts, parts)):
            return True
    return False


def delete_run(context: RunContext) -> tuple[Path, ...]:
    """Delete what is ours of a run's folder, results first, settings last; return what stays.

    The caller holds the run.
    """
    directory = context.directory
    with writing(directory):
        (directory / MARK).touch()
        own = own_files(directory)
        last = [path for path in own if path.parent == directory]
        # The lock of cleaning goes when there is nothing left that somebody could go on with.
        ends = (CONFIG, MARK, CLEANING)
        last.sort(key=lambda path: ends.index(path.name) if path.name in ends else -1)
        for path in sorted(set(own) - set(last), key=lambda path: (path.name != RESULT, path)):
            path.unlink(missing_ok=True)
        for path in last:
            path.unlink(missing_ok=True)
        for folder, _, _ in os.walk(directory, topdown=False):
            if not os.listdir(folder):
                os.rmdir(folder)
    return foreign_files(directory)
