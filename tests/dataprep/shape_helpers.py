"""Rows of two responses, files that hold them, and who won in them."""

import csv
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.schema import Comparison

NUM = 12


def user(number: int) -> dict:
    return {"role": "user", "content": f"Question {number}?"}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def sides(number: int) -> tuple[str, str]:
    """The two responses; the good one is the second of every third row."""
    good, bad = f"good {number}", f"bad {number}"
    return (bad, good) if number % 3 == 0 else (good, bad)


def side(number: int, first="a", second="b"):
    return second if number % 3 == 0 else first


def plain(number: int, first: str = "response_a", second: str = "response_b", **more) -> dict:
    one, two = sides(number)
    return {"prompt": f"Question {number}?", first: one, second: two, **more}


def write_table(path, rows: list[dict], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_workbook(path, rows: list[dict]) -> None:
    workbook = openpyxl.Workbook()
    workbook.active.append(["Read the second sheet."])
    sheet = workbook.create_sheet("Votes")
    for cells in (list(rows[0]), *(list(row.values()) for row in rows)):
        sheet.append(cells)
    workbook.save(path)


def winners(items) -> set[str]:
    """First word of what won, over all comparisons."""
    won = set()
    for item in items:
        assert isinstance(item, Comparison), item
        texts = {1: item.response_a, -1: item.response_b, 0: "tie"}
        difference = item.votes_a - item.votes_b
        won.add(texts[(difference > 0) - (difference < 0)].split()[0])
    return won


def read_as_found(found) -> list:
    """The comparisons under the settings, as a YAML file holds them."""
    settings = yaml.safe_load(yaml.safe_dump(found.settings))
    return list(read_comparisons(SourceConfig(**settings)))


def write_as(folder, ending: str, rows: list[dict]):
    """Write rows as the ending says, lists as text where a table takes no others."""
    path = folder / f"rows.{ending}"
    if ending == "csv":
        write_table(path, rows)
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
