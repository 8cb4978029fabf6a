"""Files of prompts, to have a model answer them."""

from pathlib import Path

from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.sources import read_prompts as read_rows
from rlhf_core.dataprep.sources.containers import is_data_file
from rlhf_core.dataprep.sources.rows import FilteredRow, prompt_problem
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation, Message, Prompt
from rlhf_core.storage.records import require_file


def read_prompts(file: Path, system: str | None = None) -> list[Prompt]:
    """Read a text a line or, as ``.jsonl``, ``.parquet``, ``.csv`` and the like, a prompt a row.

    Args:
        file: rows have a column ``prompt``, a text or turns; other columns are not looked at.
        system: message before every prompt.

    Raises:
        DataError: the file cannot be read, a row is no prompt, or there is none; names file and
            line.
    """
    require_file(file, "expected a file of prompts")
    prompts = _rows(file) if is_data_file(file) else _lines(file)
    if not prompts:
        raise DataError(f"{file}: no prompt in it; expected a text a line")
    if system is None:
        return prompts
    return [one.model_copy(update={"prompt": with_system(system, one.prompt)}) for one in prompts]


def with_system(system: str, prompt: Conversation) -> Conversation:
    """Return a conversation behind a system message.

    Raises:
        DataError: it has one of its own.
    """
    if prompt[0].role in ("system", "developer"):
        raise DataError(
            f"the prompt {prompt[-1].content[:60]!r} has a system message of its own; leave the "
            "other one (--system) out"
        )
    return (Message(role="system", content=system), *prompt)


def _lines(file: Path) -> list[Prompt]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    turns = [Message(role="user", content=line) for line in lines if line.strip()]
    return [Prompt(prompt_id=content_id("row", turn.content), prompt=(turn,)) for turn in turns]


def _rows(file: Path) -> list[Prompt]:
    prompts = []
    for line, item in read_rows(file):
        if isinstance(item, FilteredRow):
            raise DataError(f"{item.where}: {item.detail or item.reason}")
        if problem := prompt_problem(item.prompt):
            raise DataError(
                f"{file}, row {line}: {problem.replace('_', ' ')}; expected a text, or turns of "
                "which the last is the user's"
            )
        prompts.append(item)
    return prompts
