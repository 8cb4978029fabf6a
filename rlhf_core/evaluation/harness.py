"""Tasks of lm-evaluation-harness: read, trusted or not, known by a digest, loaded and checked."""

import difflib
import glob
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from rlhf_core.config.permissions import MODEL_CODE, trusted_code
from rlhf_core.config.suites import LmEvalSuiteConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.storage.records import shorten

FEWSHOT_SEED = 1234
"""The harness's own: its solved examples are part of what a task asks."""
_ENDINGS = (".yaml", ".yml")
_FORMATS = ("arrow", "csv", "json", "parquet", "text", "xml")
"""Builders of ``datasets`` that read files as data; others unpickle, or ask a server."""
_FUNCTION = "!function"
_UNSAFE = "runs code that a model writes, which is never done here"


@dataclass(frozen=True)
class HarnessTask:
    """One task, loaded."""

    task: Any
    """The harness's ``Task``."""
    part: str
    """Names its metrics among those of several: the entry of ``tasks`` it came from."""
    metric: str
    filter: str
    lower_is_better: bool
    where: str
    """For messages."""


@dataclass(frozen=True)
class _TaskFile:
    path: Path
    settings: dict[str, Any]
    """Keys of the file over those that it includes; functions are not loaded."""
    files: tuple[Path, ...]
    """The file and what it includes."""
    has_code: bool

    @property
    def code_sha256(self) -> str:
        """Digest of names and bytes of these files and of all Python files beside the first."""
        return _sha256_of(self.files + tuple(sorted(self.path.parent.rglob("*.py"))))


def harness(where: str) -> Any:
    """Return the package ``lm_eval``, its templates kept from reaching what is not the item's.

    Raises:
        ConfigError: it is not installed.
    """
    harness_version(where)
    return _prepared()


@cache
def _prepared() -> Any:
    import datasets
    import lm_eval
    import lm_eval.api.metrics
    import lm_eval.tasks
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # A template of a task file is data here: in jinja's plain environment it is a program.
    plain = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= plain.filters
    lm_eval.utils.env = sandbox
    # Its warnings are about its own command line, its progress is told by ours.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda rows, **_: rows
    datasets.disable_progress_bars()
    return lm_eval


def harness_version(where: str) -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise ConfigError(
            f"{where}: kind lm_eval needs lm-evaluation-harness, which is not installed; "
            "pip install 'rlhf-pipeline[suites]'"
        ) from error


def tasks_digest(suite: LmEvalSuiteConfig) -> str:
    """Return sha256 of what a suite's tasks ask: their files, data files, code and the harness.

    Of a task that the harness brings, its name and the harness's version: its data come from a hub.

    Raises:
        ConfigError: the harness is not installed, or a file cannot be read.
    """
    where = _where(suite)
    asked: dict[str, str] = {"lm_eval": harness_version(where)}
    for entry in suite.tasks:
        asked[entry] = ""
        if _is_file(entry):
            file = _read_file(entry, where)
            asked[entry] = _sha256_of([*file.files, *_data_files(file, where)])
            asked[entry] += file.code_sha256 if file.has_code else ""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def load_tasks(suite: LmEvalSuiteConfig) -> list[HarnessTask]:
    """Load every task with its data, before anything is computed.

    Raises:
        ConfigError: the harness is not installed; there is no such task; a file is no task, or
            has code that this process was not told to trust; the metric is not a task's.
        DataError: a task's data cannot be had, or hold no item.
    """
    where = _where(suite)
    harness(where)
    found: dict[str, HarnessTask] = {}
    for entry in suite.tasks:
        loaded = _from_file(entry, where) if _is_file(entry) else _by_name(entry, where)
        for name, task in loaded.items():
            if name in found:
                raise ConfigError(f"{where}: {name} is there twice; name each task once")
            found[name] = _checked(suite, entry, name, task)
    return list(found.values())


def _where(suite: LmEvalSuiteConfig) -> str:
    return f"evaluation.suites: {suite.name}"


def _is_file(entry: str) -> bool:
    return entry.endswith(_ENDINGS)


def _read_file(entry: str, where: str) -> _TaskFile:
    """Read a task file and what it includes, as data."""
    files: list[Path] = []
    marks: list[str] = []
    settings = _with_included(Path(entry).expanduser(), where, files, marks)
    if "group" in settings or isinstance(settings.get("task"), list):
        raise ConfigError(
            f"{where}: {entry} is a group of tasks; name the files of its tasks under tasks"
        )
    task = settings.get("task")
    if not isinstance(task, str) or not task:
        raise ConfigError(
            f"{where}: {entry}: task: expected the task's name, found {shorten(task)}"
        )
    return _TaskFile(Path(entry), settings, tuple(files), bool(marks) or "class" in settings)


def _with_included(path: Path, where: str, files: list[Path], marks: list[str]) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """As the harness's, but a function is only noted."""

    def note(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        marks.append(str(node.value))
        return f"{_FUNCTION} {node.value}"

    Loader.add_constructor(_FUNCTION, note)
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


def _data_files(file: _TaskFile, where: str) -> list[Path]:
    """Return the files of a task's data set, where it is made of files."""
    return [Path(one) for one in _strings(_with_data_here(file, where).get("data_files"))]


def _with_data_here(file: _TaskFile, where: str) -> dict[str, Any]:
    """Return the task's ``dataset_kwargs`` with the files found: from here, or beside the task."""
    kwargs = file.settings.get("dataset_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ConfigError(f"{where}: {file.path}: dataset_kwargs: expected keys, as data_files")
    if file.settings.get("dataset_path") not in _FORMATS:
        return kwargs
    if "data_files" not in kwargs:
        raise ConfigError(f"{where}: {file.path}: dataset_kwargs: names no data_files")
    return {**kwargs, "data_files": _located(kwargs["data_files"], file, where)}


def _located(named: Any, file: _TaskFile, where: str) -> Any:
    if isinstance(named, dict):
        return {split: _located(one, file, where) for split, one in named.items()}
    if isinstance(named, list):
        return [path for one in named for path in _located(one, file, where)]
    for start in (Path(), file.path.parent):
        if found := sorted(glob.glob(str(start / str(named)))):
            return found
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


def _sha256_of(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _from_file(entry: str, where: str) -> dict[str, Any]:
    """Load a task file: its code only where the environment names its digest."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    file = _read_file(entry, where)
    if file.has_code and file.code_sha256 not in trusted_code():
        raise ConfigError(
            f"{where}: {entry} runs Python code ({_FUNCTION} or class), which is never run unasked;"
            f" if you have read it and trust it, set {MODEL_CODE}={file.code_sha256} in the "
            "environment"
        )
    _require_plain(file, where)
    with _told(f"{where}: {entry}"):
        if "class" in file.settings:
            loaded: dict[str, Any] = TaskManager(include_defaults=False).load([entry])["tasks"]
            return loaded
        settings = load_yaml(file.path) if file.has_code else dict(file.settings)
        settings["dataset_kwargs"] = _with_data_here(file, where)
        for key in ("tag", "task_list"):
            settings.pop(key, None)
        return {file.settings["task"]: ConfigurableTask(config=settings)}


def _require_plain(file: _TaskFile, where: str) -> None:
    """Refuse what would load code, or data that run, from elsewhere."""
    from lm_eval.api.registry import metric_registry

    entries = file.settings.get("metric_list") or ()
    for metric in entries if isinstance(entries, list | tuple) else ():
        named = metric.get("metric") if isinstance(metric, dict) else metric
        own = isinstance(named, str) and named.startswith(_FUNCTION)
        known = named in metric_registry or own or file.settings.get("process_results")
        if not known or (isinstance(metric, dict) and metric.get("hf_evaluate")):
            raise ConfigError(
                f"{where}: {file.path}: metric_list: {named} is no metric of the harness; "
                f"it has {', '.join(sorted(metric_registry))}"
            )
    path = file.settings.get("dataset_path")
    import datasets

    builders = datasets.packaged_modules._PACKAGED_DATASETS_MODULES
    if path in builders and path not in _FORMATS:
        raise ConfigError(
            f"{where}: {file.path}: dataset_path: {path} is not read here; files of a task are "
            f"{', '.join(_FORMATS)}"
        )


def _by_name(entry: str, where: str) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if entry not in manager.all_tasks:
        close = difflib.get_close_matches(entry, manager.all_tasks, n=3)
        meant = f"; did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(
            f"{where}: {entry} is no task of lm-evaluation-harness {version('lm_eval')}; a task of "
            f"your own is named by its file (.yaml){meant}"
        )
    # Asked before it is loaded: such a task fetches code of others for its metric.
    if (manager._index[entry].cfg or {}).get("unsafe_code"):
        raise ConfigError(f"{where}: {entry} {_UNSAFE}")
    with _told(f"{where}: {entry}"):
        loaded: dict[str, Any] = manager.load([entry])["tasks"]
        return loaded


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Tell in one line what a task raises while it is loaded: it is about the task."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if _is_about_hub(error):
            raise DataError(
                f"{where}: its data come from a hub, which cannot be reached or does not have "
                f"them ({said}); a task file with dataset_path: json and data_files needs none"
            ) from error
        raise DataError(f"{where}: the task cannot be used: {said}") from error


def _is_about_hub(error: BaseException | None) -> bool:
    names = ("ConnectionError", "OfflineModeIsEnabled", "DatasetNotFoundError", "ConnectError")
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {*names, "HfHubHTTPError", "LocalEntryNotFoundError", "TimeoutException"}:
            return True
        error = error.__cause__ or error.__context__
    return False


def _checked(suite: LmEvalSuiteConfig, entry: str, name: str, task: Any) -> HarnessTask:
    where = f"{_where(suite)}: {name}"
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"{where} {_UNSAFE}")
    if getattr(task, "MULTIMODAL", False) or task.OUTPUT_TYPE == "loglikelihood_rolling":
        what = "asks about images or sound" if getattr(task, "MULTIMODAL", False) else (
            "measures the perplexity of whole texts"
        )  # fmt: skip
        raise ConfigError(f"{where} {what}; a suite needs items with a score from 0 to 1")
    better: Mapping[str, Any] = task.higher_is_better()
    filters = [one.name for one in task._filters]
    metric, _, wanted = (suite.metric or next(iter(better), "")).partition(",")
    if metric not in better or (wanted or filters[0]) not in filters:
        of_filters = f" after the filters {', '.join(filters)}" if filters != ["none"] else ""
        raise ConfigError(
            f"{where} does not measure {suite.metric}; it has {', '.join(better) or 'no metric'}"
            f"{of_filters}"
        )
    if suite.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=suite.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    part = "" if len(suite.tasks) == 1 else task.config.task if _is_file(entry) else entry
    part = "".join(letter if letter.isalnum() or letter in "_-." else "-" for letter in str(part))
    return HarnessTask(task, part, metric, wanted or filters[0], better[metric] is False, where)
