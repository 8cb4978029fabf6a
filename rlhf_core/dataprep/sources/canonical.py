"""The project's own format: the fields of the records themselves.

Two liberties: ``prompt`` may be plain text (one user turn), and ids may be left out. A null where a
column may be left out is the same as none.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from rlhf_core.dataprep.files import describe
from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.rows import RawRow, as_json
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Demonstration, Prompt, Record

AnyRecord = TypeVar("AnyRecord", bound=Record)


def parse_comparisons(rows: Iterable[RawRow]) -> Iterator[Comparison]:
    """Yield comparisons; each remembers its source and line, or those it came with."""
    for row in rows:
        value = _with_turns(row)
        _give_id(value, "comparison_id", "prompt", "response_a", "response_b")
        if not (value.get("source") and value.get("line")):
            value["line"] = row.line
        value["source"] = value.get("source") or row.source
        yield _validated(Comparison, value, row)


def parse_demonstrations(rows: Iterable[RawRow]) -> Iterator[tuple[int, Demonstration]]:
    """Yield ``(line, demonstration)``."""
    for row in rows:
        value = _with_turns(row)
        _give_id(value, "demonstration_id", "prompt", "response")
        value["source"] = value.get("source") or row.source
        yield row.line, _validated(Demonstration, value, row)


def parse_prompts(rows: Iterable[RawRow]) -> Iterator[tuple[int, Prompt]]:
    """Yield ``(line, prompt)``."""
    for row in rows:
        value = _with_turns(row)
        _give_id(value, "prompt_id", "prompt")
        yield row.line, _validated(Prompt, value, row)


def _with_turns(row: RawRow) -> dict[str, Any]:
    value = dict(row.value)
    if isinstance(value.get("prompt"), str):
        value["prompt"] = [{"role": "user", "content": value["prompt"]}]
    return value


def _give_id(value: dict[str, Any], column: str, *content: str) -> None:
    """Fill in an id that depends on the row's content, where the row brings none."""
    if value.get(column) is None:
        value[column] = content_id("row", *(as_json(value.get(name)) for name in content))


def _validated(kind: type[AnyRecord], value: dict[str, Any], row: RawRow) -> AnyRecord:
    optional = {name for name, field in kind.model_fields.items() if not field.is_required()}
    given = {name: part for name, part in value.items() if part is not None or name not in optional}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        columns = ", ".join(kind.model_fields)
        raise DataError(
            f"{row.where}: {describe(error)}; expected the columns {columns}"
        ) from error
