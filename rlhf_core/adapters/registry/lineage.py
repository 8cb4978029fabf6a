"""Where a model comes from: dataset version, runs, versions, gates and aliases in one answer."""

from typing import TYPE_CHECKING

from pydantic import Field

from rlhf_core.adapters.registry.decision import verdict_of
from rlhf_core.adapters.registry.release_state import release_state
from rlhf_core.adapters.registry.releases import PLAN, project_of
from rlhf_core.adapters.registry.versions import find_version, upstream_uris
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries
from rlhf_core.adapters.tracking.stage_run import run_url
from rlhf_core.errors import RegistryError
from rlhf_core.schema import Record
from rlhf_core.schema.model_uri import version_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_GATE = "rlhf.gate."


class Lineage(Record):
    """One model version with all that led to it."""

    model: str
    """``models:/<name>/<version>``."""
    aliases: tuple[str, ...]
    sha256: str
    stage: str
    pipeline_run: str
    """Run id of the pipeline, the folder under ``runs/``."""
    tracking_url: str
    """Where a person looks at the training run."""
    run_status: str
    git_commit: str
    git_dirty: bool
    """True where the commit does not tell the whole code."""
    config_sha256: str
    dataset_path: str
    dataset_sha256: str
    dataset_dvc_md5: str
    dataset_git_revision: str
    verdict: str
    """PROMOTE, HOLD, REJECT; empty where no gate has been applied."""
    gates: dict[str, str]
    """Metric to verdict and reason."""
    reasons: tuple[str, ...] = ()
    """Why the verdict is what it is; gates that one cause holds are one."""
    checkpoint: str = ""
    """Of a policy: which checkpoint of its training it is, and who preferred it; empty where the
    last one is offered."""
    upstream: dict[str, "Lineage"]
    """Role (``sft``, ``reward``, ``judge``) to that model's own lineage."""
    lost: dict[str, str] = Field(default_factory=dict)
    """Role to why nothing can be said of a model that this one was made from: it was deleted."""
    release_problem: str = ""
    """Why the champions of the project are not one release, and what to do; empty if they are.
    Of the model that was asked for alone."""


def trace_lineage(reference: str) -> Lineage:
    """Follow a registered model back to the dataset.

    Args:
        reference: ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.

    Raises:
        RegistryError: there is no such version.
    """
    version = find_version(reference)
    if PLAN in version.tags:
        policy = version.tags.get("rlhf.policy")
        raise RegistryError(f"{reference} is a release and no model; its policy is {policy}")
    return _trace(version).model_copy(update={"release_problem": _release_problem(version.name)})


def _release_problem(name: str) -> str:
    project = project_of(name)
    if project is None:
        return ""
    state = release_state(project)
    return "" if state.healthy else f"{state.found}; fix: {state.fix}"


def _trace(version: "ModelVersion") -> Lineage:
    tags: dict[str, str] = dict(version.tags)

    def tag(name: str) -> str:
        return tags.get(f"rlhf.{name}", "")

    model = version_uri(version.name, version.version)
    upstream, lost = _made_from(model)
    run_id = str(version.run_id)
    run = with_retries(f"reading run {run_id}", lambda: mlflow_client().get_run(run_id))
    return Lineage(
        model=model,
        aliases=tuple(sorted(version.aliases)),
        sha256=tag("sha256"),
        stage=tag("stage"),
        pipeline_run=tag("run_id"),
        tracking_url=run_url(run.info.experiment_id, run_id),
        run_status=run.info.status,
        git_commit=tag("git_commit"),
        git_dirty=tag("git_dirty") == "true",
        config_sha256=tag("config_sha256"),
        dataset_path=tag("dataset_path"),
        dataset_sha256=tag("dataset_sha256"),
        dataset_dvc_md5=tag("dataset_dvc_md5"),
        dataset_git_revision=tag("dataset_git_revision"),
        verdict=tag("verdict"),
        gates={
            name.removeprefix(_GATE): text
            for name, text in sorted(tags.items())
            if name.startswith(_GATE)
        },
        reasons=verdict_of(tags)[1],
        checkpoint=tag("checkpoint"),
        upstream=upstream,
        lost=lost,
    )


def _made_from(model: str) -> tuple[dict[str, Lineage], dict[str, str]]:
    """Return, by role, what a model was made from, and why of some nothing can be said."""
    upstream: dict[str, Lineage] = {}
    lost: dict[str, str] = {}
    for role, uri in upstream_uris(model).items():
        try:
            upstream[role] = _trace(find_version(uri))
        except RegistryError as error:
            lost[role] = str(error)
    return upstream, lost
