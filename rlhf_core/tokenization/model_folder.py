"""A model folder is data: code in it is not run, and its names do not lead out of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlhf_core.config.permissions import MODEL_CODE, trusted_code, trusted_commits
from rlhf_core.errors import ModelError

_TOKENIZER_FILES = (
    "token*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
    "spiece*",
    "*.jinja",
)
_NAMES_CODE = ("config.json", "tokenizer_config.json")
_ELSEWHERE = "--"
"""Between repository and class, where ``auto_map`` names code that lies in another repository."""

_UNMEANT = (ArithmeticError, AttributeError, LookupError, TypeError)
"""Errors of libraries over values that they did not expect; the message alone says little."""


def loading_options(base: str | Path, revision: str | None) -> dict[str, Any]:
    """Return the options with which every ``from_pretrained`` of ours is called.

    ``trust_remote_code`` is always among them: left out, transformers asks the terminal whether to
    run the code, in the middle of a command, and runs it on ``y``.

    Args:
        base: model directory or hub name.
        revision: hub revision; ignored for a directory.

    Raises:
        ConfigError: RLHF_TRUSTED_CODE names neither commit nor digest.
        ModelError: the folder's names lead out of it.
    """
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    trusted = trusted_code()
    folder = Path(base)
    if not folder.is_dir():
        if revision in trusted:
            options |= {"trust_remote_code": True, "code_revision": revision}
        return options
    require_enclosed(folder)
    named = _named_code(folder)
    commits = trusted_commits(trusted)
    if any(_ELSEWHERE in name for name in named):
        # Made from a hub model whose code was trusted: the code is still asked for there.
        if len(commits) == 1:
            options |= {"trust_remote_code": True, "code_revision": next(iter(commits))}
    elif named and code_sha256(folder) in trusted:
        options["trust_remote_code"] = True
    return options


def why_not_loaded(base: str | Path, error: Exception) -> str:
    """Say in one line why transformers refused, and what to do where it was for code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "trust_remote_code" not in str(error):
        said = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
        if said and not isinstance(error, _UNMEANT):
            return said
        return f"{type(error).__name__}: {said}".removesuffix(": ")
    why = "it needs Python code of its own, which is never run unasked; if you have read it and"
    folder = Path(base)
    if folder.is_dir() and not any(_ELSEWHERE in name for name in _named_code(folder)):
        return f"{why} trust it, set {MODEL_CODE}={code_sha256(folder)} in the environment"
    return (
        f"{why} trust it, give its commit as model.revision (a hub name) and as {MODEL_CODE} in "
        "the environment"
    )


def code_sha256(folder: Path) -> str:
    """Return the sha256 over names and bytes of all Python files of a folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that decide how text becomes tokens, the chat template too, by name."""
    found = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def require_enclosed(folder: Path) -> None:
    """Refuse a model folder whose files name weights outside it.

    Raises:
        ModelError: an index of shards names a file elsewhere, or cannot be read; or the folder
            is an adapter, whose base lies elsewhere.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: adapter_config.json: an adapter names a base model outside its folder; "
            "merge it into its base (peft's merge_and_unload) and give the result"
        )
    for index in sorted(folder.glob("*.index.json")):
        for name in _shards(index):
            where = (folder / name).absolute()
            inside = where.is_relative_to(folder.absolute()) and ".." not in Path(name).parts
            if not name or not inside:
                raise ModelError(
                    f"{index}: weight_map names {name!r}, which is not inside the folder; an index "
                    "names files beside it"
                )


def require_whole_files(base: str | Path) -> None:
    """Refuse weights that a copy or a download left damaged, before hours are spent on the way.

    Only the beginning and the size of each file are read.

    Args:
        base: directory with safetensors files; of others, and of a hub name, nothing is known.

    Raises:
        ModelError: names the file.
    """
    for file in sorted(Path(base).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: damaged or not whole ({error}); copy it again") from error


def _shards(index: Path) -> list[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({_as_text(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index}: expected weight_map, an object from weights to files: "
            f"{type(error).__name__}: {error}"
        ) from error


def _as_text(name: object) -> str:
    if not isinstance(name, str) or "\0" in name:
        raise TypeError(f"{name!r} is not a file's name")
    return name


def _named_code(folder: Path) -> list[str]:
    """Return what ``auto_map`` names; files that cannot be read fail when they are loaded."""
    named: list[str] = []
    for file in _NAMES_CODE:
        try:
            found = json.loads((folder / file).read_text(encoding="utf-8"))["auto_map"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        named += _strings(found)
    return named


def _strings(value: object) -> list[str]:
    """Return every text in it: a class's name, or for a tokenizer a list of two."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for part in value for text in _strings(part)] if isinstance(value, list) else []
