"""The model registry: complete versions only, found by name, alias or folder, moved by alias."""

import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from rlhf_core.adapters.registry.model_files import local_model, version_files
from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.settings import without_credentials
from rlhf_core.adapters.tracking.mlflow_client import (
    ensure_registered_model,
    every_page,
    mlflow_client,
    with_retries,
)
from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.errors import ModelError, RegistryError, RlhfError
from rlhf_core.schema import ModelKind, ModelRef, ModelRole
from rlhf_core.schema.model_uri import is_model_uri, version_uri
from rlhf_core.storage.model_folders import folder_kind

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"


def register_model(
    run: StageRun,
    *,
    directory: Path,
    name: str,
    kind: ModelKind,
    sha256: str,
    tags: Mapping[str, str],
) -> ModelRef:
    """Store ``directory`` and make it the next version of ``name``, with alias ``candidate``.

    The files are stored first and the version made last, so nobody ever sees half a model. Called
    again after a kill, the same pipeline run, stage and weights give the same version.

    Args:
        run: open run of the stage; its lineage tags pass on to the version.
        directory: model in ``save_pretrained`` layout.
        name: registered name, e.g. ``rlhf-sft``.
        kind: what the model computes.
        sha256: over the weight file's bytes.
        tags: further tags of the version, without the prefix ``rlhf.``.

    Raises:
        RegistryError: MLflow refuses, or stays lost.
    """
    carried = {
        **run.lineage,
        **{f"rlhf.{key}": value for key, value in tags.items()},
        "rlhf.sha256": sha256,
        "rlhf.kind": kind,
    }
    version = with_retries(f"registering {name}", lambda: _register(run, directory, name, carried))
    return _model_ref(version, directory.resolve())


def _register(run: StageRun, directory: Path, name: str, tags: Mapping[str, str]) -> "ModelVersion":
    client = mlflow_client()
    version = _registered_version(name, tags)
    if version is None:
        ensure_registered_model(name)
        model_id = _stored_model(run, directory, name, tags)
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            tags=dict(tags),
            model_id=model_id,  # a server refuses the source without it; a local database does not
        )
    if int(version.version) == max(int(other.version) for other in versions_of(name)):
        client.set_registered_model_alias(name, CANDIDATE, str(version.version))
    return version


def versions_of(name: str) -> "list[ModelVersion]":
    """All versions of a registered model."""
    return list(mlflow_client().search_model_versions(f"name = '{name}'"))


def versions_trained_on(dvc_md5: str) -> list[str]:
    """Return the model versions, of all names, that a dataset went into, as URIs.

    Raises:
        RegistryError: MLflow does not answer.
    """
    query = f"tags.`rlhf.dataset_dvc_md5` = '{dvc_md5}'"
    found = with_retries(
        "looking for models of a dataset",
        lambda: list(mlflow_client().search_model_versions(query, max_results=10_000)),
    )
    return sorted(version_uri(version.name, version.version) for version in found)


def aliases_by_run() -> dict[str, list[str]]:
    """Return the aliases of all registered models, ``<name>@<alias>``, by the run they stand at.

    Raises:
        RegistryError: MLflow does not answer.
    """
    client = mlflow_client()
    found: dict[str, list[str]] = {}
    for model in every_page("looking for aliases", client.search_registered_models):
        for alias, number in model.aliases.items():
            version = with_retries(
                f"finding {model.name}@{alias}",
                lambda m=model, n=number: client.get_model_version(m.name, str(n)),  # type: ignore[misc]
            )
            if run := version.tags.get("rlhf.run_id"):
                found.setdefault(run, []).append(f"{model.name}@{alias}")
    return found


def _registered_version(name: str, tags: Mapping[str, str]) -> "ModelVersion | None":
    """The version an earlier attempt of the same stage already made of the same weights."""
    query = f"name = '{name}' and tags.`rlhf.sha256` = '{tags['rlhf.sha256']}'"
    for version in mlflow_client().search_model_versions(query):
        if all(version.tags.get(key) == tags[key] for key in ("rlhf.run_id", "rlhf.stage")):
            return version
    return None


def _stored_model(run: StageRun, directory: Path, name: str, tags: Mapping[str, str]) -> str:
    """Id of the complete logged model; a half-stored one of a killed attempt is completed."""
    client = mlflow_client()
    earlier: list[LoggedModel] = client.search_logged_models(
        [run.experiment_id], f"source_run_id = '{run.run_id}' and name = '{name}'"
    )
    model = next((m for m in earlier if m.tags.get("rlhf.sha256") == tags["rlhf.sha256"]), None)
    if model is None:
        model = client.create_logged_model(
            run.experiment_id,
            name=name,
            source_run_id=run.run_id,
            tags=dict(tags),
            model_type=tags["rlhf.kind"],
        )
    if str(model.status) != "READY":
        _store(run, directory, model)
        client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _store(run: StageRun, directory: Path, model: "LoggedModel") -> None:
    """Put a model where MLflow keeps its files, with those that make it an MLflow model.

    In a folder of this machine they are links to the run's own files. A store that knows no links
    gets copies, and that is said.
    """
    from rlhf_core.adapters.registry.mlflow_model import (
        TOKENIZER,
        describe_model,
        link_model,
        tokenizer_files,
    )

    client, where = mlflow_client(), str(model.artifact_location)
    parsed = urlparse(where)
    with tempfile.TemporaryDirectory() as folder:
        description = Path(folder) / "description"
        describe_model(
            directory,
            description,
            name=model.name,
            model_id=model.model_id,
            run_id=run.run_id,
        )
        if parsed.scheme in ("", "file"):
            copied = link_model(directory, Path(unquote(parsed.path)))
        else:
            client.log_model_artifacts(model.model_id, str(directory))
            beside = description / TOKENIZER
            beside.mkdir(parents=True)
            for file in tokenizer_files(directory):
                shutil.copyfile(file, beside / file.name)
            copied = [directory]
        client.log_model_artifacts(model.model_id, str(description))
    if copied:
        place = without_credentials(where)
        logger.info("model_copied model=%s to=%s: no links can be made there", model.name, place)


def resolve_model(reference: str, *, cache: Path, runs: Path | None = None) -> ModelRef:
    """Find a model by ``models:/name/3``, ``models:/name@alias`` or local folder.

    Args:
        reference: what a person or an earlier stage wrote.
        cache: folder for files that have to be downloaded from a server.
        runs: folder of all runs: a model that was trained here is used where it lies.

    Raises:
        RegistryError: there is no such version or alias, or its weights are not those registered.
        ModelError: the folder holds no model.
    """
    if not is_model_uri(reference):
        return local_model(Path(reference))
    version = find_version(reference)
    where = with_retries(
        f"finding {reference}",
        lambda: mlflow_client().get_model_version_download_uri(version.name, str(version.version)),
    )
    if own := _trained_here(version, runs):
        return _model_ref(version, own)
    path = version_files(
        where,
        cache / version.name / str(version.version),
        sha256=version.tags.get("rlhf.sha256", ""),
        what=reference,
    )
    return _model_ref(version, path)


def look_up_model(reference: str) -> ModelRef:
    """Find a model as ``resolve_model`` does, by what is on record: its files stay where they are.

    Returns:
        Of a registered version all but its folder.

    Raises:
        RegistryError: there is no such version or alias.
        ModelError: the folder holds no model.
    """
    if not is_model_uri(reference):
        return local_model(Path(reference))
    return _model_ref(find_version(reference), Path())


def _trained_here(version: "ModelVersion", runs: Path | None) -> Path | None:
    """Return the folder in which the version was trained, if it lies here with its weights."""
    from rlhf_core.models.files import weights_sha256

    run, stage = version.tags.get("rlhf.run_id"), version.tags.get("rlhf.stage")
    if runs is None or not run or not stage:
        return None
    folder = (runs / run / stage / "model").resolve()
    if not folder.is_dir():
        return None
    try:
        same = weights_sha256(folder) == version.tags.get("rlhf.sha256")
    except (OSError, RlhfError):
        return None
    return folder if same else None


def check_role(reference: str, roles: Collection[ModelRole], why: str) -> None:
    """Refuse a model of another role before anything is done with it.

    Args:
        reference: registered model, or a folder. A folder does not say what it was trained as, only
            what it computes: scores (``reward``, ``judge``) or text (``sft``, ``policy``).
        roles: those that will do.
        why: end of the message, what it was to be used as.

    Raises:
        RegistryError: there is no such version, or it is of another role.
        ModelError: the folder holds no model, or one that computes something else.
    """
    if is_model_uri(reference):
        require_role(find_version(reference), roles, why)
        return
    kind = folder_kind(Path(reference))
    if kind not in {"scalar" if role in ("reward", "judge") else "causal" for role in roles}:
        computes = {"scalar": "scores, and no text", "causal": "text, and no scores"}[kind]
        raise ModelError(f"{reference} gives {computes}, expected {' or '.join(roles)}: {why}")


def require_role(version: "ModelVersion", roles: Collection[str], why: str) -> None:
    """Refuse a version that was trained as something else: what it is, its tags say, not its name.

    Args:
        version: entry of the registry.
        roles: stages (``sft``, ``reward``, ``judge``, ``policy``) whose models will do.
        why: end of the message, what to do or where the model was to be used.

    Raises:
        RegistryError: it is of another role, or was not trained here.
    """
    role = version.tags.get("rlhf.stage")
    if role in roles:
        return
    uri = version_uri(version.name, version.version)
    found = f"was trained as {role}" if role else "was not trained by this pipeline"
    raise RegistryError(f"{uri} {found}, expected {' or '.join(roles)}: {why}")


def _model_ref(version: "ModelVersion", path: Path) -> ModelRef:
    kind: ModelKind = "scalar" if version.tags.get("rlhf.kind") == "scalar" else "causal"
    return ModelRef(
        name=version.name,
        version=str(version.version),
        uri=version_uri(version.name, version.version),
        path=path,
        sha256=version.tags.get("rlhf.sha256", ""),
        kind=kind,
        run_id=version.run_id or "",
    )
