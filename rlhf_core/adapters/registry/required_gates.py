"""Gates that a project asks of every run: a tag of ``<project>-release``, which promotion owns."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rlhf_core.adapters.registry.access import require_release_rights
from rlhf_core.adapters.registry.releases import SUFFIX, open_journal
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries
from rlhf_core.config import GateConfig, RequiredGates
from rlhf_core.config.evaluation import GATED_STAGES
from rlhf_core.errors import RegistryError
from rlhf_core.schema import Record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

REQUIRED = "rlhf.required_gates"
SET_BY = "rlhf.required_gates_set_by"
APPLIED = "rlhf.gates"
"""Tag of a version: the gates its verdict is about, as JSON."""
_LONGEST_VALUE = 4_500


class Requirement(Record):
    """What a project requires, and who said so."""

    project: str
    gates: dict[str, tuple[str, ...]]
    """Stage to its gates, each as the settings would write it; empty where nothing is required."""
    set_by: str | None
    """Name and time; None where nobody ever has."""


def required_gates(project: str) -> RequiredGates:
    """Return the gates that every run of a project has to pass, whatever its settings say.

    Raises:
        RegistryError: as ``_required_by``; or MLflow does not answer.
    """
    return _required_by(project, _release_model(project))


def _required_by(project: str, model: "RegisteredModel | None") -> RequiredGates:
    """Return the gates in the tag of a project's release model.

    Raises:
        RegistryError: the tag was damaged: then nobody is promoted.
    """
    text = (model.tags if model else {}).get(REQUIRED)
    if not text:
        return RequiredGates()
    try:
        return RequiredGates.model_validate_json(text)
    except ValidationError as error:
        raise RegistryError(
            f"tag {REQUIRED} of {project}{SUFFIX} cannot be read ({error.errors()[0]['msg']}); set "
            f"it again: `rlhf gates --require FILE --project {project}`"
        ) from error


def require_gates(project: str, gates: RequiredGates, *, by: str) -> Requirement:
    """Ask these gates of every run from now on, instead of those that were asked before.

    Args:
        project: prefix of the registered names.
        gates: empty ones ask for nothing.
        by: who says so.

    Raises:
        RegistryError: whoever may not promote may not do this either.
    """
    require_release_rights(project)
    name, text = project + SUFFIX, gates.model_dump_json(exclude_defaults=True)
    if len(text) > _LONGEST_VALUE:
        raise RegistryError(f"{len(text)} characters of required gates, MLflow keeps 4,500")
    said = f"{by}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with_retries(f"opening the journal {name}", lambda: open_journal(name, project))
    for tag, value in ((REQUIRED, text), (SET_BY, said)):
        with_retries(
            f"requiring gates of {project}",
            lambda tag=tag, value=value: mlflow_client().set_registered_model_tag(  # type: ignore[misc]
                name, tag, value
            ),
        )
    return requirement(project)


def requirement(project: str) -> Requirement:
    """Return what a project requires, for people."""
    model = _release_model(project)
    gates = _required_by(project, model)
    return Requirement(
        project=project,
        gates={
            stage: tuple(described(gate) for gate in of_stage)
            for stage, of_stage in gates
            if of_stage
        },
        set_by=(model.tags if model else {}).get(SET_BY),
    )


def described(gate: GateConfig) -> str:
    """Return a gate as one writes it: ``policy/win_rate at_least 0.55 min_samples 300``."""
    fields = gate.model_dump(exclude_defaults=True, exclude={"metric"})
    return " ".join([gate.metric, *(f"{name} {value}" for name, value in fields.items())])


def applied_tag(gates: Sequence[GateConfig]) -> str:
    """Return what a version remembers of the gates it was held to."""
    return json.dumps([gate.model_dump(exclude_defaults=True) for gate in gates])


def require_applied(
    project: str,
    parts: Mapping[str, str | None],
    *,
    models: "Mapping[str, RegisteredModel]",
    tags: Mapping[str, Mapping[str, str] | None],
) -> None:
    """Refuse a release whose verdicts are not about all that the project requires by now.

    Args:
        project: whose champion it would be.
        parts: version of each role.
        models: registered models of the project, by name.
        tags: those of each version, by URI.

    Raises:
        RegistryError: names version and gates.
    """
    required = _required_by(project, models.get(project + SUFFIX))
    for stage in GATED_STAGES:
        uri = parts.get(stage)
        if uri is None or not required.of_stage(stage):
            continue
        text = (tags[uri] or {}).get(APPLIED, "[]")
        try:
            applied = tuple(GateConfig.model_validate(gate) for gate in json.loads(text))
        except ValueError as error:
            raise RegistryError(f"{uri}: tag {APPLIED} cannot be read: {error}") from error
        if missing := required.missing(stage, applied):
            raise RegistryError(
                f"{uri} was not held to what {project} requires: "
                f"{'; '.join(described(gate) for gate in missing)}. `rlhf evaluate` a policy again,"
                " or train the other models again: then they are"
            )


def _release_model(project: str) -> "RegisteredModel | None":
    found = with_retries(
        f"reading what {project} requires",
        lambda: mlflow_client().search_registered_models(f"name = '{project}{SUFFIX}'"),
    )
    return found[0] if found else None
