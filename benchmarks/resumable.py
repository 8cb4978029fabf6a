"""Measurements that take hours on the demo: each part is kept as it ends, and never mixed."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from rlhf_core.schema import RunContext, StageResult
from rlhf_core.storage.records import atomic_file, read_record

ROOT = Path(__file__).resolve().parents[1]


def enter(folder: Path) -> None:
    """Work in a folder of results: settings' paths, and where MLflow keeps its runs, start there.

    The raw data are those of the checkout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not Path("data").exists():
        Path("data").symlink_to(ROOT / "data")


def kept(folder: Path, name: str, make: Callable[[RunContext], StageResult]) -> StageResult:
    """Return a stage's result, made now unless it was before."""
    path = folder / f"{name}.json"
    if not path.is_file():
        began = time.process_time()
        result = make(RunContext(run_id="-".join(folder.parts[-2:]), directory=folder))
        with atomic_file(folder / f"{name}.seconds") as stream:
            stream.write(f"{time.process_time() - began:.1f}".encode())
        with atomic_file(path) as stream:
            stream.write(result.model_dump_json().encode())
    return read_record(path, StageResult)


def processor_seconds(folder: Path, name: str) -> float | None:
    """Return what a stage's last attempt took of processors, other work on them left out.

    None where that was not counted.
    """
    path = folder / f"{name}.seconds"
    return float(path.read_text(encoding="utf-8")) if path.is_file() else None


def require_same_settings(folder: Path, settings: BaseModel, name: str = "settings") -> None:
    """Refuse to go on with results of other settings."""
    path, text = folder / f"{name}.json", settings.model_dump_json(indent=2)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path}: these results are of other settings; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
