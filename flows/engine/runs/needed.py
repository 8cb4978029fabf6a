"""Why a run must stay: the registry, Prefect, its own folder, files or other runs need it.

``cleaning`` deletes the others; here nothing is changed.
"""

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from rlhf_core.adapters.registry.needed_runs import RegistryNeeds, tracked_runs
from rlhf_core.adapters.settings import mlflow_address
from rlhf_core.adapters.tracking.earlier_run import RUN_NOTE
from rlhf_core.config.stages import STAGES
from rlhf_core.errors import ConfigError, RlhfError
from rlhf_core.feedback.collection import MANIFEST, Collection
from rlhf_core.schema import Record, RunContext, StageResult
from rlhf_core.storage.records import read_record
from rlhf_flows.engine.flow_results import Rounds
from rlhf_flows.engine.runs.folder import INPUTS, MARK, ROUNDS, settings_of_run
from rlhf_flows.engine.runs.in_prefect import runs_in_prefect
from rlhf_flows.engine.runs.locks import is_worked_on
from rlhf_flows.engine.runs.overview import RunList, RunSummary
from rlhf_flows.engine.runs.settings import flat_settings
from rlhf_flows.engine.runs.stage_folder import saved_result

_HEX = re.compile("[0-9a-f]{64}")
_WORD = re.compile(r"[^\s'\",()\[\]{}]+")


class Rule(Record):
    """Which runs may go, of those that nothing needs."""

    older_than: timedelta = timedelta(0)
    """Since a run was started."""
    keep_last: int = Field(default=0, ge=0)
    """The newest runs that stay, whatever became of them."""
    unfinished: bool = False
    """Those that were stopped, too: nobody can go on with them then."""


def why_kept(
    found: RunList,
    needs: RegistryNeeds,
    rule: Rule,
    *,
    spared: Mapping[str, str],
    held: Container[str],
) -> dict[str, list[str]]:
    """Return why each run must stay; of a run that may go nothing.

    Args:
        found: all runs of a folder.
        needs: what the registry says.
        rule: which runs may go.
        spared: runs that may not, each with the reason.
        held: runs that the caller keeps everybody out of.

    Raises:
        RegistryError: MLflow does not answer.
        OrchestrationError: the same of Prefect, where PREFECT_API_URL names a server.
        ConfigError: a settings file cannot be read, so that nobody knows what it names.
    """
    contexts = {
        run.run_id: RunContext(run_id=run.run_id, directory=found.directory / run.run_id)
        for run in found.runs
    }
    at_work = runs_in_prefect()
    why: dict[str, list[str]] = {}
    for place, run in enumerate(found.runs):
        context = contexts[run.run_id]
        taken = run.run_id not in held and is_worked_on(context)
        why[run.run_id] = [
            *([spared[run.run_id]] if run.run_id in spared else ()),
            *needs.reasons.get(run.run_id, ()),
            *_own_reasons(run, context, needs, rule),
            *(["a process is working on it"] if taken else ()),
            *(["Prefect has a flow run of it that has not ended"] if run.run_id in at_work else ()),
            *_of_rule(run, len(found.runs) - place, rule),
        ]
    _keep_what_is_named(why, contexts, needs)
    _keep_inputs(why, contexts, needs)
    for run_id, reasons in why.items():
        reasons += [] if reasons else _untracked(run_id, contexts[run_id])
    return why


def _own_reasons(
    run: RunSummary, context: RunContext, needs: RegistryNeeds, rule: Rule
) -> Iterator[str]:
    """Yield what the run's own folder says."""
    if context.directory.is_symlink():
        yield "its folder is a link"
    if (context.directory / MARK).exists():
        return
    if run.verdict == "damaged":
        yield f"damaged, so that nobody knows what it needs: {run.reason}"
        return
    yield from _of_rounds(context, rule)
    if run.verdict == "unfinished" and not rule.unfinished:
        yield "unfinished: go on with it by --run-id, or give --unfinished"
    evaluated = saved_result(context, "evaluate", StageResult)
    waits = evaluated is not None and evaluated.verdict == "PROMOTE"
    if evaluated and waits and "promote" not in run.stages:
        uri = evaluated.model.uri
        if uri not in needs.refused:
            yield f"{uri} passed its gates and waits for its promotion: rlhf promote {uri}"


def _of_rounds(context: RunContext, rule: Rule) -> Iterator[str]:
    """Yield why the first run of `rlhf rounds` is needed: all that is known of them lies there."""
    path = context.directory / ROUNDS
    if not path.exists():
        return
    try:
        rounds = read_record(path, Rounds)
    except RlhfError:
        yield f"{ROUNDS} is damaged, so that nobody knows whether its rounds have ended"
        return
    if rounds.awaits is not None:
        yield f"its rounds wait for labels: rlhf rounds CONFIG --run-id {context.run_id} goes on"
    elif rounds.is_stopped and not rule.unfinished:
        yield "its rounds were stopped: go on with them by --run-id, or give --unfinished"


def _of_rule(run: RunSummary, place: int, rule: Rule) -> Iterator[str]:
    if place <= rule.keep_last:
        yield f"one of the last {rule.keep_last}"
    age = datetime.now(UTC) - run.started
    if age < rule.older_than:
        yield f"started {_days(age)} ago, less than {_days(rule.older_than)}"


def _days(age: timedelta) -> str:
    days, hours = age.days, age.seconds // 3600
    return f"{days} day{'s' * (days != 1)}" if days else f"{hours} hour{'s' * (hours != 1)}"


def _untracked(run_id: str, context: RunContext) -> list[str]:
    """Keep a run whose records this MLflow has never heard of: it may be the wrong one."""
    tracked, elsewhere = tracked_runs(run_id)
    if elsewhere:
        return [f"MLflow says that it is worked on: {', '.join(elsewhere)}"]
    # By the ids that MLflow gave: another project may have a run of the same name.
    notes = [path.read_text(encoding="utf-8") for path in context.directory.glob(f"*/{RUN_NOTE}")]
    if not notes or any(note in tracked for note in notes):
        return []
    where = mlflow_address()
    return [f"MLflow at {where} does not know it; look at MLFLOW_TRACKING_URI"]


def _keep_what_is_named(
    why: dict[str, list[str]], contexts: Mapping[str, RunContext], needs: RegistryNeeds
) -> None:
    """Keep what settings files and collections of this folder name.

    Args:
        why: reasons by run; they are added to.
        contexts: by run.
        needs: what the registry says.

    Raises:
        ConfigError: a settings file cannot be read, so that nobody knows what it names.
    """
    for path in _settings_files():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}: nobody knows which runs it names; let it be read, or "
                "take it away"
            ) from error
        words = set(_WORD.findall(text))
        named = {needs.run_of[uri] for uri in words if uri in needs.run_of}
        named |= _runs_at(_places(words, (Path(), path.parent)), contexts)
        for run, context in contexts.items():
            place = re.escape(f"{context.directory.parent.name}/{run}")
            named |= {run} if re.search(rf"{place}(?![\w-])", text) else set()
        for run in sorted(named & set(why)):
            why[run].append(f"{path} names it")
    outputs = {Path("data/collected"), *(_collected(context) for context in contexts.values())}
    for path in sorted(path for output in outputs for path in output.glob(f"*/{MANIFEST}")):
        try:
            about = read_record(path, Collection).evaluation
        except RlhfError:
            continue
        if about and about.run_id in why:
            why[about.run_id].append(f"people are asked about its answers: {path.parent}")


def _settings_files() -> list[Path]:
    """Return what may be a settings file of this folder, by either of YAML's endings."""
    found = [*Path().glob("*.y*ml"), *Path("configs").rglob("*.y*ml")]
    return sorted(path for path in found if path.suffix in (".yaml", ".yml") and path.is_file())


def _places(words: Iterable[str], folders: Iterable[Path]) -> set[str]:
    """Return where words lead that may be paths, by their names and by the links they go through.

    Args:
        words: of settings.
        folders: that relative ones may start from.
    """
    found = set()
    for folder in folders:
        for path in (os.path.join(folder, os.path.expanduser(word)) for word in words):
            found |= {os.path.abspath(path)}
            if len(path) < 4096 and "\0" not in path and os.path.lexists(path):
                found |= {os.path.realpath(path)}
    return found


def _runs_at(places: Iterable[str], contexts: Mapping[str, RunContext]) -> set[str]:
    """Return the runs whose folders places are, or lie in."""
    parents = {context.directory.parent for context in contexts.values()}
    roots = {f"{root}/" for parent in parents for root in (parent, parent.resolve())}
    below = (place[len(root) :] for place in places for root in roots if place.startswith(root))
    return {name for path in below if (name := path.partition("/")[0]) in contexts}


def _collected(context: RunContext) -> Path:
    try:
        feedback = settings_of_run(context).feedback
    except RlhfError:
        feedback = None
    return Path("data/collected") if feedback is None else feedback.output


def _keep_inputs(
    why: dict[str, list[str]], contexts: Mapping[str, RunContext], needs: RegistryNeeds
) -> None:
    """Keep the runs that kept ones were made from or hold links to, and so on down.

    Args:
        why: reasons by run; they are added to.
        contexts: by run.
        needs: what the registry says.
    """
    made = {run: set(_made(context)) for run, context in contexts.items()}
    open_ = [run for run, reasons in why.items() if reasons]
    while open_:
        run = open_.pop()
        read = set(_read(contexts[run])) - made[run]
        words = _named_by(contexts[run])
        linked = _runs_at(_links(contexts[run]), contexts)
        named = _runs_at(_places(words, (Path(),)), contexts)
        for other in contexts:
            used = (
                other in needs.made_from.get(run, ())
                or bool(read & made[other])
                or other in named
                or any(needs.run_of.get(name) == other for name in words)
            )
            reasons = [f"run {run} was made from it"] if used else []
            reasons += [f"a link in run {run} leads into it"] if other in linked else []
            new = [reason for reason in reasons if reason not in why[other]]
            if other != run and new:
                if not why[other]:
                    open_.append(other)
                why[other] += new


def _made(context: RunContext) -> Iterator[str]:
    """Yield the digests of the models that a run made itself, wherever its folder was then."""
    for stage, kind in STAGES.items():
        try:
            result = saved_result(context, stage, StageResult) if kind.works_on_models else None
        except RlhfError:
            continue
        folder = context.stage_directory(stage)
        if result and (result.model.path.is_relative_to(folder) or (folder / "model").is_dir()):
            yield result.model.sha256


def _read(context: RunContext) -> Iterator[str]:
    """Yield the digests of what the stages of a run read."""
    for path in context.directory.glob(f"*/{INPUTS}"):
        yield from _HEX.findall(path.read_text(encoding="utf-8", errors="replace"))


def _named_by(context: RunContext) -> set[str]:
    """Return what may be a path or a model in the settings of a run."""
    try:
        config = settings_of_run(context)
    except RlhfError:
        return set()
    texts = flat_settings(config.model_dump(mode="json")).values()
    return {word for text in texts for word in _WORD.findall(text)}


def _links(context: RunContext) -> set[str]:
    """Return where the symbolic links of a run's folder lead."""
    return {
        os.path.realpath(os.path.join(folder, name))
        for folder, folders, files in os.walk(context.directory)
        for name in (*folders, *files)
        if os.path.islink(os.path.join(folder, name))
    }
