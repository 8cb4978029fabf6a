"""Model folders of registered versions: used where they lie, or downloaded once and verified."""

import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.mlflow_client import with_retries
from rlhf_core.errors import RegistryError
from rlhf_core.schema import ModelRef
from rlhf_core.storage.full_disk import writing
from rlhf_core.storage.model_folders import folder_kind


def local_model(directory: Path) -> ModelRef:
    """Reference a model folder that no registry knows; its version is ``local``.

    Raises:
        ModelError: there is no such folder, or no model in it.
    """
    from rlhf_core.models.files import weights_sha256

    kind = folder_kind(directory)
    return ModelRef(
        name=directory.resolve().name,
        version="local",
        uri=str(directory),
        path=directory.resolve(),
        sha256=weights_sha256(directory),
        kind=kind,
        run_id="",
    )


def version_files(where: str, target: Path, *, sha256: str, what: str) -> Path:
    """Return the folder with a version's files, its weights checked against ``sha256``.

    Files on this machine are used where they lie; others are downloaded to ``target`` once, under
    a temporary name first, so that a kill leaves no half a model.

    Args:
        where: artifact address the registry gave.
        target: folder to download to.
        sha256: of the weights, as registered.
        what: how errors call the model.

    Raises:
        RegistryError: the files are gone, or their weights are not those registered.
    """
    parsed = urlparse(where)
    if parsed.scheme in ("", "file"):
        path = Path(unquote(parsed.path))
        if not path.is_dir():
            raise RegistryError(f"{what}: its files are gone, expected them in {path}")
    else:
        path = target
        if not target.is_dir():
            with_retries(f"downloading {what}", lambda: _download(where, target))
    _require_weights(path, sha256=sha256, what=what)
    return path


def _download(where: str, target: Path) -> None:
    from mlflow.artifacts import download_artifacts

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            files = download_artifacts(
                artifact_uri=where,
                dst_path=temporary,
                tracking_uri=load_settings().mlflow_tracking_uri,
            )
            if not target.is_dir():
                Path(files).rename(target)


def _require_weights(path: Path, *, sha256: str, what: str) -> None:
    from rlhf_core.models.files import weights_sha256

    found = weights_sha256(path)
    if found != sha256:
        raise RegistryError(
            f"{what}: weights in {path} have sha256 {found[:12]}, registered were "
            f"{sha256[:12] or 'none'}; the files were changed, register the model again"
        )
