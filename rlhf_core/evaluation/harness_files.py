"""Task files of lm-evaluation-harness: read as data, with the files their items come from."""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_core.errors import ConfigError
from rlhf_core.storage.records import sha256_of, shorten

_ENDINGS = (".yaml", ".yml")
FORMATS = ("arrow", "csv", "json", "parquet", "text", "xml")
"""Builders of ``datasets`` that read files as data; others unpickle, or ask a server."""
FUNCTION = "!function"


@dataclass(frozen=True)
class TaskFile:
    """A task's settings, as written."""

    path: Path
    settings: dict[str, Any]
    """Keys of the file over those that it includes; functions are not loaded."""
    files: tuple[Path, ...]
    """The file and what it includes."""
    has_code: bool
    """It names Python code that a run would load."""

    @property
    def code_sha256(self) -> str:
        """Digest of names and bytes of these files and of all Python files beside the first."""
        return digest_of(self.files + tuple(sorted(self.path.parent.rglob("*.py"))))


def is_file(entry: str) -> bool:
    """Say whether an entry of ``tasks`` is a file; else it names a task that the harness brings."""
    return entry.endswith(_ENDINGS)


def read_task_file(entry: str, where: str) -> TaskFile:
    """Read a task file and what it includes, as data.

    Args:
        entry: its path; ``~`` is the home folder.
        where: for messages.

    Raises:
        ConfigError: it cannot be read, or holds no single task.
    """
    files: list[Path] = []
    marks: list[str] = []
    path = Path(entry).expanduser()
    settings = _with_included(path, where, files, marks)
    if "group" in settings or isinstance(settings.get("task"), list):
        raise ConfigError(
            f"{where}: {entry} is a group of tasks; name the files of its tasks under tasks"
        )
    task = settings.get("task")
    if not isinstance(task, str) or not task:
        raise ConfigError(
            f"{where}: {entry}: task: expected the task's name, found {shorten(task)}"
        )
    return TaskFile(path, settings, tuple(files), bool(marks) or "class" in settings)


def _with_included(path: Path, where: str, files: list[Path], marks: list[str]) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """As the harness's, but a function is only noted."""

    def note(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        marks.append(str(node.value))
        return f"{FUNCTION} {node.value}"

    Loader.add_constructor(FUNCTION, note)
    if path.resolve() in (one.resolve() for one in files):
        raise ConfigError(f"{where}: {path} includes itself")
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise ConfigError(f"{where}: {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{where}: {path}: expected the keys of a task (task, dataset_path, doc_to_text, ...), "
            f"found {shorten(found)}"
        )
    files.append(path)
    included = found.pop("include", [])
    below: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        below |= _with_included(path.parent / str(name), where, files, marks)
    return {**below, **found}


def data_files(file: TaskFile, where: str) -> list[Path]:
    """Return the files of a task's data set, where it is made of files or a folder of them.

    Raises:
        ConfigError: one that the task names is not there.
    """
    named = [Path(one) for one in _strings(with_data_here(file, where).get("data_files"))]
    folder = data_folder(file)
    below = sorted(folder.rglob("*")) if folder else []
    return named + [path for path in below if path.is_file()]


def data_folder(file: TaskFile) -> Path | None:
    """Return the folder that ``dataset_path`` names, from here or beside the task file."""
    named = file.settings.get("dataset_path")
    if not isinstance(named, str) or not named or named in FORMATS:
        return None
    places = (start / named for start in (Path(), file.path.parent))
    return next((place for place in places if place.is_dir()), None)


def with_data_here(file: TaskFile, where: str) -> dict[str, Any]:
    """Return the task's ``dataset_kwargs`` with the files found: from here, or beside the task.

    Raises:
        ConfigError: they name no file, or one that is not there.
    """
    kwargs = file.settings.get("dataset_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ConfigError(f"{where}: {file.path}: dataset_kwargs: expected keys, as data_files")
    if file.settings.get("dataset_path") not in FORMATS:
        return kwargs
    if "data_files" not in kwargs:
        raise ConfigError(f"{where}: {file.path}: dataset_kwargs: names no data_files")
    return {**kwargs, "data_files": _located(kwargs["data_files"], file, where)}


def _located(named: Any, file: TaskFile, where: str) -> Any:
    if isinstance(named, dict):
        return {split: _located(one, file, where) for split, one in named.items()}
    if isinstance(named, list):
        return [path for one in named for path in _located(one, file, where)]
    for start in (Path(), file.path.parent):
        found = sorted(glob.glob(str(start / str(named))))
        if files := [path for path in found if Path(path).is_file()]:
            return files
    raise ConfigError(
        f"{where}: {file.path}: data_files: there is no file {named}, neither from here nor beside "
        "the task file"
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value or ():
        if part is not value and not isinstance(value, str):
            yield from _strings(part)


def digest_of(files: Sequence[Path]) -> str:
    """Return sha256 of the names and bytes of files, in their order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()
