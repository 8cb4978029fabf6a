"""Export: a registered model as a plain folder that anybody's tools read, with a card."""

import shutil
from pathlib import Path

import jinja2

from rlhf_core.adapters.hub import license_of
from rlhf_core.adapters.registry.decision import EVALUATION
from rlhf_core.adapters.registry.lineage import Lineage, trace_lineage
from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.tracking.tracking import look_up_run
from rlhf_core.errors import DataError
from rlhf_core.schema import ModelRef
from rlhf_core.storage.folders import replacing_directory

OF_MLFLOW = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
        "registered_model_meta",
        "components",
    }
)
"""What lies beside a registered model for MLflow alone."""
CARD = Path(__file__).with_name("model_card.md.jinja")


def require_free(directory: Path) -> None:
    """Refuse a target that holds anything: nothing of anybody is overwritten.

    Raises:
        DataError: it is a file, or a folder that is not empty.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        raise DataError(f"{directory} is there already; name a new or an empty folder")


def export_model(model: ModelRef, directory: Path, licence: str | None = None) -> Path:
    """Write a model with its card; whole, or not at all.

    Args:
        model: registered, or a folder.
        directory: to make; an empty one may be there.
        licence: of the result; None: that which the base model's own card names.

    Raises:
        DataError: something is there already.
        RegistryError: MLflow does not answer.
        StorageError: the disk is full or refuses; names the file.
    """
    require_free(directory)
    card = model_card(model, licence)
    with replacing_directory(directory.absolute()) as temporary:
        shutil.copytree(
            model.path,
            temporary,
            ignore=lambda _, names: OF_MLFLOW.intersection(names),
            dirs_exist_ok=True,
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")
        require_free(directory)  # asked again: what came meanwhile would be replaced
    return directory


def model_card(model: ModelRef, licence: str | None = None) -> str:
    """Return the card of a model: data, gates, measurements, limits, licence of the base."""
    lineage = trace_lineage(model.uri) if model.registered else None
    tags = find_version(model.uri).tags if model.registered else {}
    base = _base(lineage)
    of_base = license_of(base) if base else None
    named = licence or of_base
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(CARD.read_text(encoding="utf-8")).render(
        model=model,
        lineage=lineage,
        header=_header(model, base, named),
        base=base,
        licence=named,
        of_base=named is not None and named == of_base,
        dataset=tags.get("rlhf.dataset_version"),
        metrics=_metrics(tags.get(EVALUATION), model.name.rpartition("-")[2]),
        gates={name: _one_line(text) for name, text in (lineage.gates if lineage else {}).items()},
    )


def _header(model: ModelRef, base: str | None, licence: str | None) -> str:
    """Return what hubs read of a card, as YAML."""
    from huggingface_hub import ModelCardData

    scores = model.kind == "scalar"
    on_a_hub = base is not None and not Path(base).exists() and base.count("/") == 1
    return ModelCardData(
        license=licence or "unknown",
        library_name="transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        base_model=base if on_a_hub else None,
        tags=["rlhf", *(["reward-model"] if scores else ["conversational"])],
    ).to_yaml()


def _base(lineage: Lineage | None) -> str | None:
    """Return the model that the SFT model of this one started from."""
    if lineage is None:
        return None
    sft = lineage.upstream.get("sft", lineage)
    return find_version(sft.model).tags.get("rlhf.base")


def _metrics(evaluation: str | None, stage: str) -> list[tuple[str, str]]:
    """Return what the evaluation measured, each with its interval where it has one."""
    if not evaluation:
        return []
    _, found = look_up_run(evaluation)
    rows = []
    for name, value in sorted(found.items()):
        if not name.startswith(f"{stage}/") or name.endswith(("/low", "/high")):
            continue
        low, high = found.get(f"{name}/low"), found.get(f"{name}/high")
        interval = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
        rows.append((name, f"{value:.3g}{interval}"))
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
