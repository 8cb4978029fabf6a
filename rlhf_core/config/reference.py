"""Every setting there is, from the classes that read them; those in force, and their origin."""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf_core.config.written import KeyPath, Places

KINDS = ("algorithm", "kind", "engine")
"""Keys that say which of several sections one is."""
REQUIRED = "(required)"


@dataclass(frozen=True)
class Setting:
    """One key of the settings file."""

    key: str
    """Dotted, as ``--set`` takes it; ``[]`` stands for an item of a list, ``*`` for any name."""
    default: str
    """As YAML writes it on one line, or ``(required)``."""
    description: str
    only_with: str = ""
    """``algorithm: ppo`` where only one of several sections has it."""


@dataclass(frozen=True)
class InForce:
    """What a setting is in one configuration."""

    key: str
    value: str
    origin: str
    """File and line, ``--set``, or ``default``."""


def all_settings(section: type[BaseModel]) -> list[Setting]:
    """Return every setting below a section, in the order of the code."""
    return list(_below(section, None, "", ""))


def _below(
    section: type[BaseModel], usual: BaseModel | None, prefix: str, only_with: str
) -> Iterator[Setting]:
    """Yield the settings of a section; ``usual`` is what it is where nobody writes it."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        default = _default(field) if usual is None else getattr(usual, name)
        inner = list(_sections(field.annotation))
        if not inner or default is None:  # else its own settings say what it is by default
            yield Setting(key, _written(default), _one_line(field.description), only_with)
        for path, kind in inner:
            label = next((word for word in KINDS if word in kind.model_fields), None)
            several = len(inner) > 1 and label is not None
            mark = (
                f"{label}: {kind.model_fields[label].default}" if several and label else only_with
            )
            yield from _below(
                kind, default if isinstance(default, kind) else None, f"{key}{path}.", mark
            )


def in_force(config: BaseModel, places: Places) -> Iterator[InForce]:
    """Yield every setting of a configuration with its value and where that was written."""
    for path, value in _leaves(config.model_dump(mode="json")):
        yield InForce(".".join(map(str, path)), _yaml(value), places.get(path, "default"))


def unusual(section: BaseModel, usual: BaseModel | None = None) -> dict[str, Any]:
    """Return, as JSON has it, what a section of a configuration has otherwise than by default.

    Args:
        section: as it was read.
        usual: what it is where nobody writes it, if that is not what its class says: an
            optimizer's schedule is another for DPO than for SFT.
    """
    found: dict[str, Any] = {}
    whole = section.model_dump(mode="json")
    terse = section.model_dump(mode="json", exclude_defaults=True)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        default = _default(field) if usual is None else getattr(usual, name)
        if value == default:
            continue
        if isinstance(value, BaseModel):
            found[name] = unusual(value, default if type(default) is type(value) else None)
        else:
            found[name] = terse.get(name, whole[name])
    return found


def nearest(key: str, root: type[BaseModel]) -> str | None:
    """Return the setting or section that an unknown key may stand for.

    It is misspelt, or a setting that is in another section.
    """
    known = {setting.key for setting in all_settings(root)}
    known |= {key[:end] for key in known for end, letter in enumerate(key) if letter == "."}
    plain = {other for other in known if not set("[]*") & set(other)}
    key = re.sub(r"[.][0-9]+(?=[.])", "[]", key)  # as the items of a list are listed
    section, _, leaf = key.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.75):
        return close[0]
    same = sorted(other for other in plain if other.rpartition(".")[2] == leaf)
    if same:
        return same[0] if len(same) == 1 else ", ".join(same[:3])
    close = difflib.get_close_matches(key, sorted(plain), n=1, cutoff=0.75)
    return close[0] if close else None


def say_unknown(key: str, root: type[BaseModel]) -> str:
    """Return what to say of a key that is no setting, or one of another kind of section."""
    only_with = [one.only_with for one in all_settings(root) if one.key == key and one.only_with]
    if only_with:
        return f"no such setting here; it goes with {' or '.join(only_with)}"
    meant = nearest(key, root)
    return "no such setting" + (f"; did you mean {meant}?" if meant else "")


def start_paths(raw: Any, section: type[BaseModel], root: Path, home: Path = Path()) -> None:
    """Let the relative paths among some settings as written start from a folder; changes them.

    They become relative to ``home``, so that a run in that folder has the paths that its file
    says. A model's name (``model.base``, ``models`` of a reward's term) is a path where
    the folder is there, a function's (``rewards.py:no_lists``) where it names a file.

    Args:
        raw: settings of a section, as YAML gives them, right or wrong.
        section: whose they are.
        root: folder where the paths start.
        home: where the settings will be used, by default the working directory.
    """
    if not isinstance(raw, dict):
        return
    start = partial(_from_here, root=root, home=home)
    for name, field in section.model_fields.items():
        written = raw.get(name)
        if name in raw and _holds_paths(field.annotation):
            raw[name] = start(written)
        elif name in raw and name in _MAY_BE_FUNCTIONS:
            raw[name] = _function_from_here(written, start)
        elif name in raw and name in _MAY_BE_FOLDERS:
            raw[name] = _named_from_here(written, root, start)
        for path, inner in _sections(field.annotation):
            listed = isinstance(written, list) and path == "[]"
            for part in written if listed else [written]:  # type: ignore[union-attr]
                start_paths(part, inner, root, home)


_MAY_BE_FOLDERS = ("base", "model", "models", "tasks")
_ENDS_FILE = (".yaml", ".yml")
"""Of a task's file; other names of tasks are names."""
_MAY_BE_FUNCTIONS = ("function", "rater", "annotators")


def _holds_paths(annotation: Any) -> bool:
    return annotation is Path or any(_holds_paths(part) for part in get_args(annotation))


def _from_here(written: Any, root: Path, home: Path) -> Any:
    if isinstance(written, list):
        return [_from_here(one, root, home) for one in written]
    is_path = isinstance(written, str) and not written.startswith("hf:")
    if not is_path or os.path.isabs(written):
        return written
    return os.path.relpath(root / written, home)


def _named_from_here(written: Any, root: Path, start: Callable[[Any], Any]) -> Any:
    """Do so with what names a model, or tasks, where that is a folder or a file."""
    if isinstance(written, list):
        return [_named_from_here(one, root, start) for one in written]
    if not isinstance(written, str):
        return written
    is_path = written.endswith(_ENDS_FILE) or (root / written).is_dir()
    return start(written) if is_path else written


def _function_from_here(written: Any, start: Callable[[Any], Any]) -> Any:
    """Do so with the file of a function."""
    if not isinstance(written, str):
        return written
    file, colon, function = written.rpartition(":")
    return f"{start(file)}{colon}{function}" if file.endswith(".py") else written


def _sections(annotation: Any, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections an annotation names, with what stands for their place in a container."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield path, annotation
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _sections(part, path)
    elif origin is Annotated:
        yield from _sections(get_args(annotation)[0], path)
    elif origin in (tuple, list):
        yield from _sections(get_args(annotation)[0], f"{path}[]")
    elif origin in (dict, Mapping):
        yield from _sections(get_args(annotation)[1], f"{path}.*")


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return PydanticUndefined
    return field.get_default(call_default_factory=True, validated_data={})


def _written(default: Any) -> str:
    return REQUIRED if default is PydanticUndefined else _yaml(default)


def _yaml(value: Any) -> str:
    """Write a value on one line as JSON does, which is YAML; a plain text as it is."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and value and value.isprintable() and value.strip() == value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value
