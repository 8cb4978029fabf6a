"""Where files are written."""

import tempfile
from pathlib import Path


def places() -> tuple[Path, ...]:
    """Return where commands and stages write, the likeliest first."""
    here = ("runs", "data", "mlartifacts", "mlflow.db", ".rlhf", ".dvc/cache")
    return (*map(Path, here), Path(tempfile.gettempdir()))
