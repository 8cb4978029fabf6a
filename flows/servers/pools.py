"""Which work pools there are, as ``prefect.yaml`` says: the one place that names them.

``definitions`` gives each role (orchestration, pipelines, training) a pool, and ``limits`` how many
runs of a role one machine takes at once. Two roles may share a pool.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from rlhf_core.config.written import yaml_problem
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Record

FILE = Path("prefect.yaml")
MIN_ORCHESTRATION = 2
"""A pipeline holds one place while its prepare or promote stage needs another."""


class Pools(Record):
    """Work pools by role."""

    orchestration: str
    """Prepare, promote and the pipelines themselves."""
    training: str
    """SFT, reward models, policy, evaluation; may be machines with a GPU."""
    pipeline_queue: str
    """Queue of the orchestration pool that lets one pipeline run at a time."""
    orchestration_limit: int = Field(ge=MIN_ORCHESTRATION)
    training_limit: int = Field(ge=1)
    deployments: tuple[str, ...]
    """Entry point and name of each, e.g. ``flows/stages.py:sft_stage stage``."""

    @property
    def limits(self) -> dict[str, int]:
        """How many runs this machine takes from each pool at once."""
        found = {self.orchestration: self.orchestration_limit}
        found[self.training] = found.get(self.training, 0) + self.training_limit
        return found


def read_pools(path: Path = FILE) -> Pools:
    """Read the pools and deployments of a ``prefect.yaml``.

    Raises:
        ConfigError: the file is missing, or does not say what is needed; names the key.
    """
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        definitions = content["definitions"]
        pipelines, limits = definitions["pipelines"], definitions["limits"]
        if pipelines["name"] != definitions["orchestration"]["name"]:
            raise ConfigError(
                f"{path}: definitions.pipelines.name: expected the pool of orchestration, "
                f"{definitions['orchestration']['name']!r}, found {pipelines['name']!r}"
            )
        return Pools(
            orchestration=definitions["orchestration"]["name"],
            training=definitions["training"]["name"],
            pipeline_queue=pipelines["work_queue_name"],
            orchestration_limit=limits["orchestration"],
            training_limit=limits["training"],
            deployments=tuple(
                f"{item['entrypoint']} {item['name']}" for item in content["deployments"]
            ),
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.absolute()}: no such file; run from the project's folder"
        ) from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: definitions: missing or malformed: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {yaml_problem(error)}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def deployed_settings(path: Path = FILE) -> Path | None:
    """Return the first settings file that the deployments of a ``prefect.yaml`` run, if any."""
    try:
        deployments = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
        chosen = [item["parameters"].get("settings") or {} for item in deployments]
        return next((Path(settings["file"]) for settings in chosen if settings.get("file")), None)
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return None  # what is wrong with the file, `read_pools` says
