"""What can be known to be wrong before anything is written or trained."""

from collections.abc import Iterator
from pathlib import Path

from rlhf_core.config import DataConfig, PipelineConfig
from rlhf_core.dataprep.sources.containers import is_hub
from rlhf_core.errors import DataError
from rlhf_core.stages.base_model import base_renderer


def check_inputs(config: PipelineConfig) -> None:
    """Refuse a run whose base model or raw files cannot serve.

    A dataset of the hub is first asked for when it is read, and a published version
    (``data.version``) needs no raw file at all.

    Raises:
        DataError: a raw file does not exist.
        ModelError: the base model has no tokenizer, EOS or chat template.
    """
    if config.data.version is None:
        for key, path in _raw_files(config.data):
            if not path.exists():
                raise DataError(f"{path}: no such file; {key} must name an existing file")
    base_renderer(config.model)


def _raw_files(data: DataConfig) -> Iterator[tuple[str, Path]]:
    """Yield what must lie on this machine, by its key in the settings."""
    sources = [("data.preferences", data.preferences)]
    sources += [(f"data.more_preferences.{i}", s) for i, s in enumerate(data.more_preferences)]
    optional = {
        "data.demonstrations.path": data.demonstrations.path,
        "data.prompts.path": data.prompts.path,
        "data.prompts.heldout_path": data.prompts.heldout_path,
        "data.prompts.production_path": data.prompts.production_path,
    }
    optional |= {
        f"data.cleaning.contamination.{i}": p for i, p in enumerate(data.cleaning.contamination)
    }
    yield from ((f"{key}.path", source.path) for key, source in sources if not is_hub(source.path))
    yield from ((key, path) for key, path in optional.items() if path and not is_hub(path))
