"""One YAML file, validated once."""

import copy
import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from rlhf_core.config.base import Section
from rlhf_core.config.evaluation import RequiredGates
from rlhf_core.config.pipeline import PipelineConfig, PreparationConfig
from rlhf_core.config.reference import KINDS, InForce, in_force, say_unknown, start_paths
from rlhf_core.config.reward_terms import PATIENCE_OF_TERMS
from rlhf_core.config.rollouts import PATIENCE_OF_ENGINES, result_neutral_rollouts
from rlhf_core.config.written import KeyPath, Places, read_written, shown
from rlhf_core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MAX_PROBLEMS = 8
_SET = "--set "
_CREDENTIALS = re.compile(
    r"(?P<scheme>://)(?:[^/\s'\"]*:[^,'\"]*|[^/\s]*)@"
    r"|(?<![\w.+-])[\w.+-]+:[^/\s'\"][^\s'\"]*@"  # the scheme was left out
)

_Settings = TypeVar("_Settings", bound=Section)


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> PipelineConfig:
    """Read ``path``, apply dotted ``overrides``, validate once.

    A file may begin with ``extends: other.yaml`` (relative to itself) and then says only what
    differs: sections merge key by key, except that a section whose ``algorithm`` or ``kind``
    changes is replaced, for its settings belong to the other one. ``root: .`` (relative to the
    file) is where the relative paths of this file start; without it, and with ``--set``, that is
    the working directory.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value breaks its
            rule; names key and source: file and line, or the change that was applied.
    """
    return _load(PipelineConfig, path, overrides)[0]


def load_with_origins(
    path: Path, overrides: Mapping[str, str] | None = None
) -> tuple[PipelineConfig, list[InForce]]:
    """Load as ``load_config``, and say of each setting where its value comes from.

    Raises:
        ConfigError: as ``load_config``.
    """
    config, places = _load(PipelineConfig, path, overrides)
    return config, list(in_force(config, places))


def load_preparation(
    path: Path, overrides: Mapping[str, str] | None = None, *, home: Path = Path()
) -> PreparationConfig:
    """Read what preparation of data needs, as ``load_config`` does; the rest may be missing.

    Args:
        path: the settings file.
        overrides: as of ``load_config``.
        home: folder in which they are meant to be used: paths become relative to it.

    Raises:
        ConfigError: as ``load_config``; sections that are there are checked all the same.
    """
    return _load(PreparationConfig, path, overrides, home)[0]


def load_required_gates(path: Path) -> RequiredGates:
    """Read a file of gates by stage, written as under ``gates`` in the settings.

    Raises:
        ConfigError: as ``load_config``.
    """
    return _load(RequiredGates, path, None)[0]


def _load(
    kind: type[_Settings],
    path: Path,
    overrides: Mapping[str, str] | None,
    home: Path = Path(),
) -> tuple[_Settings, Places]:
    written, changes = _read_extended(path, home, seen=()), dict(overrides or {})
    raw, places = _changed(*written, changes)
    try:
        return _validated(kind, raw), places
    except ValidationError as error:
        problems = error.errors(include_url=False)
        said = []
        for problem in problems[:_MAX_PROBLEMS]:
            blamed = _blamed(kind, problem, *written, changes)
            said.append(_describe_problem(problem, path, raw, places, blamed))
        if len(problems) > _MAX_PROBLEMS:
            said.append(f"and {len(problems) - _MAX_PROBLEMS} more")
        raise ConfigError("; ".join(said)) from error


_NEEDS_PAIRS = (
    "rows of data.unpaired train the policy alone, while the reward model, the judge and the gates"
    " that rest on it need pairs; name some, and set policy.train_on: unpaired if the policy is not"
    " to learn from them"
)


def _validated(kind: type[_Settings], raw: dict[str, Any]) -> _Settings:
    # Strictly: `true` is no number, and "yes" is not true. As JSON, for lists and paths are written
    # as JSON writes them.
    return kind.model_validate_json(json.dumps(raw), strict=True)


def _blamed(
    kind: type[Section],
    problem: "ErrorDetails",
    raw: dict[str, Any],
    places: Places,
    changes: Mapping[str, str],
) -> str:
    """Return the changes of the command line without which the file has no such problem.

    A rule about two settings is broken by the one that was changed, wherever the other stands.
    """

    def remains(kept: Mapping[str, str]) -> bool:
        try:
            _validated(kind, _changed(raw, places, kept)[0])
        except (ValidationError, ConfigError) as error:
            found = error.errors() if isinstance(error, ValidationError) else []
            return any(_same_problem(problem, other) for other in found)
        return False

    if not changes or remains({}):
        return ""
    alone = {
        key: value
        for key, value in changes.items()
        if not remains({other: changes[other] for other in changes if other != key})
    }
    return ", ".join(_change(*each) for each in (alone or changes).items())


def _same_problem(one: "ErrorDetails", other: "ErrorDetails") -> bool:
    # The words of a rule may name what was found, as a changed value elsewhere.
    return one["loc"] == other["loc"] and one["type"] == other["type"]


def _describe_problem(
    problem: "ErrorDetails", path: Path, raw: dict[str, Any], places: Places, blamed: str
) -> str:
    """Place, key, what is wrong with it, and what was found, unless that is a whole section.

    The place is what the command line changed (``blamed``), or else where the file says it.
    """
    loc, written = problem["loc"], _written_part(problem["loc"], raw)
    # Between the keys stand the names of kinds (an algorithm, a list): they are no keys of theirs.
    named = (*written, loc[-1]) if problem["type"] == "missing" else written
    key = ".".join(shown(str(part)) for part in named)
    if (
        problem["type"] == "missing"
        and loc == ("data", "preferences")
        and raw["data"].get("unpaired")
    ):
        return f"{path}: data.preferences is missing: {_NEEDS_PAIRS}"
    if problem["type"] == "missing" and len(loc) == 1:
        return f"{path}: {key}: no such section in the settings, and this command needs it"
    words = problem["msg"].removeprefix("Value error, ")
    has_section = isinstance(problem["input"], dict)
    found = "" if has_section else f" (found {_shown_value(repr(problem['input']))})"
    if problem["type"] == "union_tag_not_found":
        words = _without_kind(problem)
    if problem["type"] == "extra_forbidden":
        words, found = say_unknown(".".join(map(str, written)), PipelineConfig), ""
    place = places.get(written, str(path)) if key else str(path)
    if blamed and not place.startswith(_SET):
        place = f"{blamed}, with {place}"
    return f"{place}: {key}: {words}{found}" if key else f"{place}: {words}{found}"


def _without_kind(problem: "ErrorDetails") -> str:
    """Say which key is missing, that of the kind of section, and what may stand for it."""
    key = problem["ctx"]["discriminator"].strip("'")
    near = difflib.get_close_matches(key, map(str, problem["input"]), n=1)
    return f"{key} is missing" + (f"; is {shown(near[0])} meant to be it?" if near else "")


def _written_part(loc: tuple[str | int, ...], raw: Any) -> KeyPath:
    """The part of a problem's address that is written down: no default, no name of a kind."""
    at: KeyPath = ()
    for part in loc:
        within = range(len(raw)) if isinstance(raw, list) else raw
        if isinstance(raw, dict | list) and part in within:
            at, raw = (*at, part), raw[part]  # type: ignore[index]
    return at


RESULT_NEUTRAL: dict[str, Any] = {
    "feedback": True,
    "distributed": True,
    "keep_checkpoints": True,
    "retention": True,
    **{stage: {"distributed"} for stage in ("sft", "reward", "judge")},
    "policy": {
        "distributed": True,
        "rollouts": PATIENCE_OF_ENGINES,
        "rewards": {"__all__": PATIENCE_OF_TERMS},
    },
}
"""Settings that decide nothing of a run: no stage reads ``feedback``, the checkpoints of one that
has finished or earlier runs that are deleted, how many processes share the work changes rounding
alone, how long a term of the reward is waited for decides no score, and where an engine is no
response. They may change when a run is resumed."""


def config_digest(config: PipelineConfig) -> str:
    """Return the sha256 of the canonical JSON of all that decides a run."""
    policy = {**RESULT_NEUTRAL["policy"], "rollouts": result_neutral_rollouts(config.policy)}
    decisive = config.model_dump_json(exclude={**RESULT_NEUTRAL, "policy": policy})
    return hashlib.sha256(decisive.encode()).hexdigest()


def _read_mapping(path: Path) -> tuple[dict[str, Any], Places]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, ValueError) as error:  # a name with NUL in it is a ValueError
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    raw, places = read_written(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    return raw, places


def _read_extended(path: Path, home: Path, seen: tuple[str, ...]) -> tuple[dict[str, Any], Places]:
    raw, places = _read_mapping(path)
    root, parent = raw.pop("root", None), raw.pop("extends", None)
    if root is not None:
        if not isinstance(root, str) or not root:
            line = places["root",]
            raise ConfigError(f"{line}: root: expected a folder, found {shown(repr(root))}")
        start_paths(raw, PipelineConfig, path.parent / root, home)
    if parent is None:
        return raw, places
    line = places["extends",]
    if not isinstance(parent, str) or not parent:
        raise ConfigError(f"{line}: extends: expected a file name, found {shown(repr(parent))}")
    extended, chain = path.parent / parent, (*seen, os.path.realpath(path))
    if os.path.realpath(extended) in chain:
        raise ConfigError(f"{line}: {path} extends itself through {' -> '.join(chain)}")
    if not os.path.isfile(extended):  # takes any name, where Path.is_file raises for a long one
        raise ConfigError(f"{line}: extends: {shown(parent)}: no such configuration file")
    base, base_places = _read_extended(extended, home, chain)
    return _merge(base, raw), base_places | places


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    if any(name in change and change[name] != base.get(name) for name in KINDS):
        return change
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        both_sections = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both_sections else value  # type: ignore[arg-type]
    return merged


def _changed(
    raw: dict[str, Any], places: Places, changes: Mapping[str, str]
) -> tuple[dict[str, Any], Places]:
    """Return settings as written, and their places, with dotted changes applied to a copy."""
    raw, places = copy.deepcopy(raw), dict(places)
    for dotted, value in changes.items():
        _apply_override(raw, places, dotted, value)
    return raw, places


def _change(dotted: str, value: str) -> str:
    """Return a change as the command line has it, without the credentials of an address."""
    return f"{_SET}{shown(dotted)}={_shown_value(value)}"


def _shown_value(text: str) -> str:
    """Return a value for a message, without the credentials of an address."""
    return shown(_CREDENTIALS.sub(lambda found: f"{found['scheme'] or ''}...@", text))


def _apply_override(raw: dict[str, Any], places: Places, dotted: str, value: str) -> None:
    *parents, leaf = dotted.split(".")
    section, where = raw, _change(dotted, value)
    for depth, parent in enumerate(parents, start=1):
        if parent not in section:
            section[parent], places[tuple(parents[:depth])] = {}, where
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"{where}: {parent!r} is a value, not a section")
    section[leaf], new = read_written(value, where, has_lines=False)
    keys = (*parents, leaf)
    places.update({(*keys, *path): place for path, place in new.items()})
