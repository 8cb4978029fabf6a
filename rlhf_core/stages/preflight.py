"""What can be known to be wrong before anything is written or trained."""

from pathlib import Path

from rlhf_core.config import PipelineConfig
from rlhf_core.errors import DataError
from rlhf_core.stages.base_model import base_renderer


def check_inputs(config: PipelineConfig) -> None:
    """Refuse a run whose base model or raw files cannot serve.

    Raises:
        DataError: a raw file does not exist.
        ModelError: the base model has no tokenizer, EOS or chat template.
    """
    data = config.data
    paths: dict[str, Path | None] = {
        "data.preferences.path": data.preferences.path,
        "data.demonstrations.path": data.demonstrations.path,
        "data.prompts.path": data.prompts.path,
        "data.prompts.heldout_path": data.prompts.heldout_path,
    }
    for key, path in paths.items():
        if path is not None and not path.exists():
            raise DataError(f"{path}: no such file; {key} must name an existing file")
    base_renderer(config.model)
