"""Which runs nothing needs any more, and how their folders go: only what the pipeline wrote."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from rlhf_core.adapters.earlier_run import RUN_NOTE
from rlhf_core.adapters.needed_runs import RegistryNeeds, registry_needs, tracked_runs
from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import CheckpointError, RlhfError
from rlhf_core.feedback.collection import MANIFEST, Collection
from rlhf_core.schema import Record, RunContext, StageName, StageResult
from rlhf_core.storage.records import read_record
from rlhf_flows.engine.past_runs import RunSummary, flat_settings, list_runs
from rlhf_flows.engine.run_files import (
    STAGES,
    delete_run,
    foreign_files,
    freed_bytes,
    own_files,
)
from rlhf_flows.engine.run_folder import named_after
from rlhf_flows.engine.runs import CONFIG, MARK, is_worked_on, saved_result, settings_of_run
from rlhf_flows.servers.prefect_server import ask

logger = logging.getLogger(__name__)

_HEX = re.compile("[0-9a-f]{64}")


class Rule(Record):
    """Which runs may go, of those that nothing needs."""

    older_than: timedelta = timedelta(0)
    """Since a run was started."""
    keep_last: int = Field(default=0, ge=0)
    """The newest runs that stay, whatever became of them."""
    unfinished: bool = False
    """Those that were stopped, too: nobody can go on with them then."""


class OldRun(Record):
    """A run, whether it may go, and what went."""

    run_id: str
    started: datetime
    verdict: str
    disk_bytes: int
    freed_bytes: int
    """Of its blocks, those that no other file shares: what the registry links to stays."""
    kept_because: tuple[str, ...] = ()
    """Empty where it may go."""
    deleted: bool = False
    left: tuple[Path, ...] = ()
    """Files in its folder that the pipeline did not write; they stay."""


class Cleaning(Record):
    """All runs of a folder, oldest first."""

    directory: Path
    runs: tuple[OldRun, ...]

    @property
    def safe(self) -> tuple[OldRun, ...]:
        """Those that may go."""
        return tuple(run for run in self.runs if not run.kept_because)


def look_for_old_runs(
    runs: Path, rule: Rule, *, spared: Mapping[str, str] | None = None
) -> Cleaning:
    """Say of every run in a folder whether anything needs it; nothing is changed.

    Args:
        runs: folder of all runs.
        rule: which runs may go.
        spared: runs that may not, each with the reason.

    Raises:
        RegistryError: MLflow does not answer, so that nobody knows what it needs.
        OrchestrationError: the same of Prefect, where PREFECT_API_URL names a server.
    """
    needs, spared = registry_needs(), spared or {}
    found = list_runs(runs, needs.aliases).runs
    contexts = {run.run_id: _context(runs, run.run_id) for run in found}
    at_work = runs_in_prefect()
    why: dict[str, list[str]] = {}
    for place, run in enumerate(found):
        context = contexts[run.run_id]
        why[run.run_id] = [
            *([spared[run.run_id]] if run.run_id in spared else ()),
            *needs.reasons.get(run.run_id, ()),
            *_own_reasons(run, context, needs, rule),
            *(["Prefect has a flow run of it that has not ended"] if run.run_id in at_work else ()),
            *_of_rule(run, len(found) - place, rule),
        ]
    _keep_what_is_named(why, contexts, needs)
    _keep_inputs(why, contexts, needs)
    for run_id, reasons in why.items():
        reasons += [] if reasons else _untracked(run_id, contexts[run_id])
    return Cleaning(
        directory=runs.absolute(),
        runs=tuple(_old_run(run, contexts[run.run_id], why[run.run_id]) for run in found),
    )


def delete_old_runs(
    seen: Cleaning, rule: Rule, *, spared: Mapping[str, str] | None = None
) -> Cleaning:
    """Delete the runs that may go, by what was seen and still now; say what was freed.

    The newest goes first: one that somebody has taken up meanwhile keeps what it was made from.

    Raises:
        RegistryError: MLflow does not answer.
        OrchestrationError: Prefect does not.
        StorageError: a folder takes no changes.
    """
    now = look_for_old_runs(seen.directory, rule, spared=spared)
    chosen = {run.run_id for run in seen.safe}
    done: list[OldRun] = []
    spared = dict(spared or {})
    left = list(now.runs)
    while left:
        run = left.pop()
        if run.run_id not in chosen or run.kept_because:
            done.insert(0, run)
            continue
        try:
            foreign = delete_run(_context(seen.directory, run.run_id))
        except CheckpointError as error:
            spared[run.run_id] = str(error)
            done.insert(0, run.model_copy(update={"kept_because": (str(error),)}))
            again = look_for_old_runs(seen.directory, rule, spared=spared).runs
            before = {each.run_id for each in left}
            left = [each for each in again if each.run_id in before]
            continue
        done.insert(0, run.model_copy(update={"deleted": True, "left": foreign}))
        logger.info("run_deleted run=%s freed_bytes=%d", run.run_id, run.freed_bytes)
    return now.model_copy(update={"runs": tuple(done)})


def runs_in_prefect() -> set[str]:
    """Return the ids of runs that a flow run of Prefect's server has begun and not ended.

    Raises:
        OrchestrationError: the server does not answer.
    """
    url = load_settings().prefect_api_url
    if url is None:
        return set()
    states = ["RUNNING", "PENDING", "PAUSED", "CANCELLING", "SCHEDULED"]
    found: set[str] = set()
    offset = 0
    while True:
        page = ask(
            url,
            "flow_runs/filter",
            {"flow_runs": {"state": {"type": {"any_": states}}}, "limit": 200, "offset": offset},
        )
        for each in page:
            created = datetime.fromisoformat(each["created"])
            found.add(named_after(created, each["id"]))
            inputs = (each.get("parameters") or {}).get("inputs")
            if isinstance(inputs, dict) and inputs.get("run"):
                found.add(Path(str(inputs["run"])).name)
        offset += len(page)
        if len(page) < 200:
            return found


def _context(runs: Path, run_id: str) -> RunContext:
    return RunContext(run_id=run_id, directory=runs.absolute() / run_id)


def _own_reasons(
    run: RunSummary, context: RunContext, needs: RegistryNeeds, rule: Rule
) -> Iterator[str]:
    """Yield what the run's own folder says."""
    if context.directory.is_symlink():
        yield "its folder is a link"
    if is_worked_on(context):
        yield "a process is working on it"
    if (context.directory / MARK).exists():
        return
    if run.verdict == "damaged":
        yield f"damaged, so that nobody knows what it needs: {run.reason}"
        return
    if run.verdict == "unfinished" and not rule.unfinished:
        yield "unfinished: go on with it by --run-id, or give --unfinished"
    evaluated = saved_result(context, "evaluate", StageResult)
    waits = evaluated is not None and evaluated.decision.verdict == "PROMOTE"
    if evaluated and waits and "promote" not in run.stages:
        uri = evaluated.model.uri
        if uri not in needs.refused:
            yield f"{uri} passed its gates and waits for its promotion: rlhf promote {uri}"


def _of_rule(run: RunSummary, place: int, rule: Rule) -> Iterator[str]:
    if place <= rule.keep_last:
        yield f"one of the last {rule.keep_last}"
    age = datetime.now(UTC) - run.started
    if age < rule.older_than:
        yield f"started {_days(age)} ago, less than {_days(rule.older_than)}"


def _days(age: timedelta) -> str:
    days, hours = age.days, age.seconds // 3600
    return f"{days} day{'s' * (days != 1)}" if days else f"{hours} hour{'s' * (hours != 1)}"


def _keep_what_is_named(
    why: dict[str, list[str]], contexts: Mapping[str, RunContext], needs: RegistryNeeds
) -> None:
    """Keep what settings files and collections of this folder name."""
    for path in (*sorted(Path().glob("*.yaml")), *sorted(Path("configs").glob("*.yaml"))):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        words = set(re.findall(r"models:/[\w.-]+/\d+", text))
        named = {needs.run_of[uri] for uri in words if uri in needs.run_of}
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


def _collected(context: RunContext) -> Path:
    try:
        feedback = settings_of_run(context).feedback
    except RlhfError:
        feedback = None
    return Path("data/collected") if feedback is None else feedback.output


def _keep_inputs(
    why: dict[str, list[str]], contexts: Mapping[str, RunContext], needs: RegistryNeeds
) -> None:
    """Keep the runs that kept ones were made from, and so on down."""
    made = {run: set(_made(context)) for run, context in contexts.items()}
    open_ = [run for run, reasons in why.items() if reasons]
    while open_:
        run = open_.pop()
        read = set(_read(contexts[run])) - made[run]
        named = _named_by(contexts[run])
        for other, context in contexts.items():
            folder = f"{context.directory}/"
            used = (
                other in needs.made_from.get(run, ())
                or bool(read & made[other])
                or any(f"{os.path.abspath(name)}/".startswith(folder) for name in named)
                or any(needs.run_of.get(name) == other for name in named)
            )
            if other != run and used:
                if not why[other]:
                    open_.append(other)
                if (reason := f"run {run} was made from it") not in why[other]:
                    why[other].append(reason)


def _made(context: RunContext) -> Iterator[str]:
    """Yield the digests of the models that a run made itself."""
    for stage in STAGES:
        try:
            result = None if stage in ("prepare", "promote") else _result(context, stage)
        except RlhfError:
            continue
        if result and result.model.path.is_relative_to(context.stage_directory(stage)):
            yield result.model.sha256


def _result(context: RunContext, stage: StageName) -> StageResult | None:
    return saved_result(context, stage, StageResult)


def _read(context: RunContext) -> Iterator[str]:
    """Yield the digests of what the stages of a run read."""
    for path in context.directory.glob("*/inputs.json"):
        yield from _HEX.findall(path.read_text(encoding="utf-8", errors="replace"))


def _named_by(context: RunContext) -> set[str]:
    """Return what may be a path or a model in the settings of a run."""
    try:
        config: PipelineConfig = settings_of_run(context)
    except RlhfError:
        return set()
    texts = flat_settings(config.model_dump(mode="json")).values()
    words = {word for text in texts for word in re.findall(r"[^\s'\",()\[\]]+", text)}
    return {word for word in words if "/" in word}


def _untracked(run_id: str, context: RunContext) -> list[str]:
    """Keep a run whose records this MLflow has never heard of: it may be the wrong one."""
    tracked, elsewhere = tracked_runs(run_id)
    if elsewhere:
        return [f"MLflow says that it is worked on: {', '.join(elsewhere)}"]
    # By the ids that MLflow gave: another project may have a run of the same name.
    notes = [path.read_text(encoding="utf-8") for path in context.directory.glob(f"*/{RUN_NOTE}")]
    if not notes or any(note in tracked for note in notes):
        return []
    where = without_credentials(load_settings().mlflow_tracking_uri)
    return [f"MLflow at {where} does not know it; look at MLFLOW_TRACKING_URI"]


def _old_run(run: RunSummary, context: RunContext, reasons: Iterable[str]) -> OldRun:
    foreign = foreign_files(context.directory)
    return OldRun(
        run_id=run.run_id,
        started=run.started,
        verdict=run.verdict,
        disk_bytes=run.disk_bytes,
        freed_bytes=freed_bytes(own_files(context.directory)),
        kept_because=tuple(dict.fromkeys(reasons)),
        left=foreign,
    )


def retain(config: PipelineConfig, context: RunContext) -> None:
    """Delete the earlier runs that ``retention`` of the settings says; a fault costs a warning.

    Only runs of the same project that were begun with the setting are subject to it.

    Args:
        config: settings of the run that has ended.
        context: that run.
    """
    setting = config.retention
    if setting is None:
        return
    rule = Rule(
        older_than=timedelta(days=setting.older_than_days),
        keep_last=setting.keep_last,
        unfinished=True,
    )
    try:
        spared = {context.run_id: "it has just ended"}
        for path in config.runs.glob(f"*/{CONFIG}"):
            other = RunContext(run_id=path.parent.name, directory=path.parent.absolute())
            if not _was_begun_with_retention(other, config.project):
                spared[other.run_id] = "begun without this project's retention"
        seen = look_for_old_runs(config.runs, rule, spared=spared)
        done = delete_old_runs(seen, rule, spared=spared) if seen.safe else seen
    except (RlhfError, OSError) as error:
        logger.warning("old_runs_kept run=%s: %s", context.run_id, error)
        return
    gone = [run for run in done.runs if run.deleted]
    logger.info(
        "old_runs_deleted runs=%d freed_bytes=%d kept=%d",
        len(gone),
        sum(run.freed_bytes for run in gone),
        len(done.runs) - len(gone),
    )


def _was_begun_with_retention(context: RunContext, project: str) -> bool:
    """Of a run whose settings cannot be read nobody knows: it is not."""
    try:
        settings = settings_of_run(context)
    except RlhfError:
        return False
    return settings.retention is not None and settings.project == project
