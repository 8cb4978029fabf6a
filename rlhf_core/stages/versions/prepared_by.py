"""What the preparation of a repository is told: the configurations that its dvc.yaml names."""

import logging
import shlex
from pathlib import Path

import yaml

from rlhf_core.config import DataConfig, load_preparation
from rlhf_core.errors import ConfigError

logger = logging.getLogger(__name__)


def prepared_by(clone: Path) -> list[DataConfig]:
    """Return the settings of the data that dvc.yaml prepares; nothing where it says nothing.

    Relative paths in them start from the clone.
    """
    try:
        stages = yaml.safe_load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        words = [word for stage in stages.values() for word in shlex.split(str(stage.get("cmd")))]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return []
    found: list[DataConfig] = []
    for word in words:
        if word.endswith((".yaml", ".yml")) and (clone / word).is_file():
            try:
                found.append(load_preparation(clone / word, home=clone).data)
            except ConfigError as error:
                logger.warning("columns are taken as they are named in the files: %s", error)
    return found
