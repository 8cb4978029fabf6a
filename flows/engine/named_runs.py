"""Which runs other files need: settings, collections, links, and the runs that stay themselves."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rlhf_core.adapters.registry.needed_runs import RegistryNeeds
from rlhf_core.errors import ConfigError, RlhfError
from rlhf_core.feedback.collection import MANIFEST, Collection
from rlhf_core.schema import RunContext, StageName, StageResult
from rlhf_core.storage.records import read_record
from rlhf_flows.engine.past_runs import flat_settings
from rlhf_flows.engine.run_files import STAGES
from rlhf_flows.engine.runs import saved_result, settings_of_run

_HEX = re.compile("[0-9a-f]{64}")
_WORD = re.compile(r"[^\s'\",()\[\]{}]+")


def keep_what_is_named(
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


def keep_inputs(
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
    for stage in STAGES:
        try:
            result = None if stage in ("prepare", "promote") else _result(context, stage)
        except RlhfError:
            continue
        folder = context.stage_directory(stage)
        if result and (result.model.path.is_relative_to(folder) or (folder / "model").is_dir()):
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
