"""Prompts that a person wrote into a file, to look at a model's answers."""

import json
from pathlib import Path

from rlhf_core.errors import DataError


def read_prompts(file: Path) -> list[str]:
    """Read a text a line, or, where the name ends in ``.jsonl``, objects with a key ``prompt``.

    Raises:
        DataError: the file cannot be read or holds no prompt; names file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompts.append(_prompt(f"{file}:{number}", line) if file.suffix == ".jsonl" else line)
    if not prompts:
        raise DataError(f"{file}: no prompt in it; expected a text a line")
    return prompts


def _prompt(where: str, line: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON: {error}") from error
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: expected an object with a text under the key prompt")
    return prompt
