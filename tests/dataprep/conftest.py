"""Small raw files, written fresh for each test."""

import gzip
import json
import os
from pathlib import Path

import pytest


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows as JSON lines below the test's folder and return the path."""

    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture
def shared_data() -> Path:
    """The folder with real data, or skip."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RLHF_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RLHF_SHARED_DATA")
    return folder
