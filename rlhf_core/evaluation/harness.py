"""Tasks of lm-evaluation-harness: trusted or not, known by a digest, loaded and checked."""

import difflib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rlhf_core.config.permissions import MODEL_CODE, trusted_code
from rlhf_core.config.suites import LmEvalSuiteConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.harness_files import (
    FORMATS,
    FUNCTION,
    TaskFile,
    data_files,
    data_folder,
    digest_of,
    is_file,
    read_task_file,
    with_data_here,
)

FEWSHOT_SEED = 1234
"""The harness's own: its solved examples are part of what a task asks."""
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
        if is_file(entry):
            file = read_task_file(entry, where)
            asked[entry] = digest_of([*file.files, *data_files(file, where)])
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
        loaded = _from_file(entry, where) if is_file(entry) else _by_name(entry, where)
        for name, task in loaded.items():
            if name in found:
                raise ConfigError(f"{where}: {name} is duplicated; name each task once")
            found[name] = _checked(suite, entry, name, task)
    return list(found.values())


def _where(suite: LmEvalSuiteConfig) -> str:
    return f"evaluation.suites: {suite.name}"


def _from_file(entry: str, where: str) -> dict[str, Any]:
    """Load a task file: its code only where the environment names its digest."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    file = read_task_file(entry, where)
    if file.has_code and file.code_sha256 not in trusted_code():
        raise ConfigError(
            f"{where}: {entry} runs Python code ({FUNCTION} or class), which is never run unasked;"
            f" if you have read it and trust it, set {MODEL_CODE}={file.code_sha256} in the "
            "environment"
        )
    _require_plain(file, where)
    with _as_task_error(f"{where}: {entry}"):
        if "class" in file.settings:
            loaded: dict[str, Any] = TaskManager(include_defaults=False).load([entry])["tasks"]
            return loaded
        settings = load_yaml(file.path) if file.has_code else dict(file.settings)
        settings["dataset_kwargs"] = with_data_here(file, where)
        if (folder := data_folder(file)) is not None:
            settings["dataset_path"] = str(folder)
        for key in ("tag", "task_list"):
            settings.pop(key, None)
        return {file.settings["task"]: ConfigurableTask(config=settings)}


def _require_plain(file: TaskFile, where: str) -> None:
    """Refuse what would load code, or data that run, from elsewhere."""
    from lm_eval.api.registry import metric_registry

    entries = file.settings.get("metric_list") or ()
    for metric in entries if isinstance(entries, list | tuple) else ():
        named = metric.get("metric") if isinstance(metric, dict) else metric
        own = isinstance(named, str) and named.startswith(FUNCTION)
        known = named in metric_registry or own or file.settings.get("process_results")
        if not known or (isinstance(metric, dict) and metric.get("hf_evaluate")):
            raise ConfigError(
                f"{where}: {file.path}: metric_list: {named} is no metric of the harness; "
                f"it has {', '.join(sorted(metric_registry))}"
            )
    if file.settings.get("use_prompt") is not None:
        raise ConfigError(
            f"{where}: {file.path}: use_prompt takes a template from elsewhere, which a digest of "
            "the task does not know; write it as doc_to_text"
        )
    path = file.settings.get("dataset_path")
    import datasets

    builders = datasets.packaged_modules._PACKAGED_DATASETS_MODULES
    if path in builders and path not in FORMATS:
        raise ConfigError(
            f"{where}: {file.path}: dataset_path: {path} is not read here; files of a task are "
            f"{', '.join(FORMATS)}"
        )


@cache
def _brought() -> Any:
    """Return the manager of the harness's own tasks: reading its 14,000 files takes 12 s."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _members(manager: Any, entry: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of a task, or those of every task of a group or tag and of its groups."""
    index = manager.task_index
    waiting, seen = [entry], set()
    while waiting:
        name = waiting.pop()
        found = index.get(name) if isinstance(name, str) else None
        if found is None or name in seen:
            continue
        seen.add(name)
        settings = found.cfg or {}
        yield settings
        below = settings.get("task")
        named = [*found.tags] if found.yaml_path is None else []
        for one in below if isinstance(below, list) else ():
            named += [one.get("task"), one.get("group")] if isinstance(one, dict) else [one]
        for one in named:
            waiting += one if isinstance(one, list) else [one]


def _by_name(entry: str, where: str) -> dict[str, Any]:
    manager = _brought()
    if entry not in manager.all_tasks:
        close = difflib.get_close_matches(entry, manager.all_tasks, n=3)
        meant = f"; did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(
            f"{where}: {entry} is no task of lm-evaluation-harness {version('lm_eval')}; a task of "
            f"your own is named by its file (.yaml){meant}"
        )
    # Asked before it is loaded: such a task fetches code of others for its metric.
    if any(settings.get("unsafe_code") for settings in _members(manager, entry)):
        raise ConfigError(f"{where}: {entry} {_UNSAFE}")
    with _as_task_error(f"{where}: {entry}"):
        loaded: dict[str, Any] = manager.load([entry])["tasks"]
        return loaded


@contextmanager
def _as_task_error(where: str) -> Iterator[None]:
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
    part = "" if len(suite.tasks) == 1 else task.config.task if is_file(entry) else entry
    part = "".join(letter if letter.isalnum() or letter in "_-." else "-" for letter in str(part))
    one = HarnessTask(task, part, metric, wanted or filters[0], better[metric] is False, where)
    _refuse_lost_values(one)
    return one


def _refuse_lost_values(one: HarnessTask) -> None:
    """Have a metric raise whose values the harness would lose.

    Of an answer with several references it keeps whether the metric is anything but 0 for any of
    them: all there is to a metric of right and wrong, and nothing of an F1 or a distance.
    """
    task = one.task
    if task.OUTPUT_TYPE != "generate_until" or not getattr(task, "multiple_target", 0):
        return
    measure = task._metric_fn_list.get(one.metric)
    if measure is None or one.metric == "exact_match":
        return

    def measured(*answers: Any, **settings: Any) -> Any:
        found = measure(*answers, **settings)
        value = found[one.metric] if isinstance(found, dict) else found
        if one.lower_is_better or value not in (0, 1):
            raise DataError(
                f"{one.where}: an item has several references, and of each {one.metric} the "
                "harness keeps whether any is above 0; give the task a process_results that takes "
                "the best, or one reference an item"
            )
        return found

    task._metric_fn_list[one.metric] = measured
