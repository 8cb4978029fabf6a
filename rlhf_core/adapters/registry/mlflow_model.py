"""What makes a registered folder an MLflow model: the files beside the weights that say how.

Two flavors. ``python_function`` answers conversations by this project's sampler, or gives the raw
scores of a reward model or judge; it needs the project where it is loaded. ``transformers``, of
models that answer, needs transformers alone.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.schema import ModelKind
from rlhf_core.storage.full_disk import writing
from rlhf_core.storage.model_folders import folder_kind
from rlhf_core.tokenization.load import TOKENIZER_FILES, read_template, token_ids

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

logger = logging.getLogger(__name__)

PACKAGES = ("rlhf-pipeline", "mlflow", "torch", "transformers", "accelerate")
"""What is needed to load a model, with the versions of whoever stored it."""
TOKENIZER = Path("components") / "tokenizer"
"""Where MLflow looks for the tokenizer; the weights are in the folder itself."""
_OF_TOKENIZER = (
    *TOKENIZER_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
QUESTION = {"messages": [{"role": "user", "content": "When does the library open?"}]}
EXAMPLES: Mapping[ModelKind, Mapping[str, Any]] = {
    "causal": QUESTION,
    "scalar": {
        "messages": [*QUESTION["messages"], {"role": "assistant", "content": "At nine o'clock."}]
    },
}
"""A conversation to answer, and one whose last turn is an answer to score."""
OPTIONS = (
    ("temperature", "double"),
    ("top_p", "double"),
    ("max_tokens", "long"),
    ("seed", "long"),
    ("n", "long"),
)
"""Of a chat request; each may stand beside ``messages``, or among MLflow's ``params``."""


def tokenizer_files(directory: Path) -> list[Path]:
    """Return the files of a model folder that make its tokenizer."""
    return [file for name in _OF_TOKENIZER if (file := directory / name).is_file()]


def describe_model(directory: Path, target: Path, *, name: str, model_id: str, run_id: str) -> None:
    """Write what MLflow has to know of a model folder: MLmodel, example, requirements.

    Args:
        directory: model in ``save_pretrained`` layout; it is left as it is.
        target: folder for the files, which does not exist yet.
        name: that the model is registered under; what it is called in its answers.
        model_id: of MLflow's logged model.
        run_id: of the MLflow run that made it.

    Raises:
        ModelError: ``directory`` holds no model.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    kind = folder_kind(directory)
    said = logging.getLogger("mlflow.pyfunc")
    level = said.level
    said.setLevel(logging.WARNING)  # that the example is checked is nothing a stage has to say
    try:
        mlflow.pyfunc.save_model(
            str(target),
            loader_module="rlhf_core.adapters.pyfunc_model",
            signature=_signature(kind),
            input_example=dict(EXAMPLES[kind]),
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in PACKAGES],
            metadata={"name": name, **_metadata_of(directory, kind)},
        )
    finally:
        said.setLevel(level)
    described = Model.load(str(target))
    _add_transformers(described, directory, kind)
    weights = directory.glob("*.safetensors")
    described.model_size_bytes = sum(file.stat().st_size for file in weights)
    described.model_id, described.run_id = model_id, run_id
    described.save(str(target / "MLmodel"))


def _signature(kind: ModelKind) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import DataType
    from mlflow.types.llm import CHAT_MODEL_OUTPUT_SCHEMA
    from mlflow.types.schema import (
        AnyType,
        Array,
        ColSpec,
        Object,
        ParamSchema,
        ParamSpec,
        Property,
        Schema,
    )

    turn = Object([Property(name, DataType.string) for name in ("role", "content")])
    messages = ColSpec(Array(turn), "messages")
    if kind == "scalar":
        return ModelSignature(Schema([messages]), Schema([ColSpec("double", "score")]))
    # A column of whole numbers with gaps is one of fractions to pandas, which MLflow then refuses.
    options = [ColSpec(AnyType(), name, required=False) for name in (*dict(OPTIONS), "stop")]
    params = ParamSchema([ParamSpec(name, type_, None) for name, type_ in OPTIONS])
    return ModelSignature(Schema([messages, *options]), CHAT_MODEL_OUTPUT_SCHEMA, params)


def _metadata_of(directory: Path, kind: ModelKind) -> dict[str, Any]:
    """Return what people and tools read of a model without loading it."""
    config, generation = (
        _read(directory / name) for name in ("config.json", "generation_config.json")
    )
    template = directory / "chat_template.jinja"
    said = {
        "kind": kind,
        "precision": _precision(config),
        "chat_template": read_template(template) if template.is_file() else None,
    }
    if kind == "scalar":
        return {**said, "reward_shift": config["reward_shift"]}
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    return {**said, "end_token_ids": list(token_ids(ends, f"{directory}: eos_token_id"))}


def _precision(config: Mapping[str, Any]) -> str | None:
    parts = (config, config.get("text_config") or {})
    found = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))
    return next((precision for precision in found if precision), None)


def _add_transformers(described: "Model", directory: Path, kind: ModelKind) -> None:
    """Let `mlflow.transformers` load it, where transformers has its class under a name."""
    import transformers

    if kind == "scalar":
        return  # its pipeline squashes the score into 0 to 1, and knows no shift
    config = _read(directory / "config.json")
    architecture = next(iter(config.get("architectures") or ()), "")
    tokenizer = _read(directory / "tokenizer_config.json").get("tokenizer_class")
    if not hasattr(transformers, architecture or "-") or not tokenizer_files(directory):
        logger.info("no_transformers_flavor model=%s architecture=%s", directory, architecture)
        return
    described.add_flavor(
        "transformers",
        transformers_version=transformers.__version__,
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type=architecture,
        model_binary=".",
        source_model_name="",
        torch_dtype=f"torch.{_precision(config) or 'float32'}",
        components=["tokenizer"],
        tokenizer_type=tokenizer or "PreTrainedTokenizerFast",
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def link_model(directory: Path, location: Path) -> list[Path]:
    """Make the stored model of links to the files of a model folder: nothing is there twice.

    Args:
        directory: model in ``save_pretrained`` layout.
        location: folder of the stored model, on this machine; what an earlier attempt left there
            is completed.

    Returns:
        Files that had to be copied: they lie on another disk, or it knows no links.

    Raises:
        StorageError: the disk is full or refuses; names the file.
    """
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    pairs = [(file, location / file.relative_to(directory)) for file in files]
    pairs += [(file, location / TOKENIZER / file.name) for file in tokenizer_files(directory)]
    return [source for source, target in pairs if not _link(source, target)]


def _link(source: Path, target: Path) -> bool:
    """Put a file at ``target``, by a link if it can be; return whether it could."""
    # Not by atomic_file, which writes bytes: a link has none of its own to write.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with writing(target, temporary):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            linked = _linked(source, temporary)
            if not linked:
                shutil.copy(source, temporary)
            temporary.replace(target)
        finally:
            # Renaming one name of a file to another of the same file leaves both.
            temporary.unlink(missing_ok=True)
    return linked


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except (OSError, AttributeError):  # some systems have no links at all
        return False
    return True
