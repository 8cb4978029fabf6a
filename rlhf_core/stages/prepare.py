"""Stage 1: raw files to a validated, split and versioned dataset."""

import logging
import shutil
from pathlib import Path
from typing import Any

import rlhf_core
from rlhf_core.adapters import versioning
from rlhf_core.adapters.data_docs import FOLDER as DOCS
from rlhf_core.adapters.data_docs import find_docs
from rlhf_core.config import PreparationConfig
from rlhf_core.dataprep.files import sha256_of
from rlhf_core.dataprep.manifest import code_digest, fingerprint_of, read_manifest
from rlhf_core.dataprep.publish import exclusive, replacing_directory
from rlhf_core.dataprep.sources.containers import is_hub, source_files
from rlhf_core.dataprep.sources.hub import hub_fingerprint
from rlhf_core.errors import DataError, RlhfError
from rlhf_core.schema import DatasetRef, DatasetSplits
from rlhf_core.stages import prepare_build, prepare_checks
from rlhf_core.stages.prepare_inputs import raw_sources, require_paths
from rlhf_core.stages.prepare_tokens import load_renderer, prompt_limit, tokenizer_digest

logger = logging.getLogger(__name__)

_CODE = (
    "dataprep/**/*.py",
    "stages/prepare*.py",
    "tokenization/*.py",
    "schema/text.py",
    "adapters/validation.py",
    "adapters/expectations.py",
    "adapters/data_docs.py",
    "evaluation/gates.py",
)
"""What decides the output, for the same inputs and settings."""


def prepare_data(config: PreparationConfig) -> DatasetSplits:
    """Read, validate, resolve, deduplicate and split the raw data; replace the output as a whole.

    The same inputs under the same settings give the same bytes; an output that already holds
    them is verified and used as it is. Two preparations of one output wait for each other.
    Data Docs are part of the output, in ``docs``.

    With ``data.version`` set nothing is prepared: that published version is brought back into a
    folder of its own.

    Raises:
        DataError: the input cannot be used. The output stays as it was; the rows in question, the
            report and the Data Docs of this attempt are kept in ``<output>-failed``.
        MissingMetricError: a gate asks for what this data did not let be measured; kept likewise.
    """
    if config.data.version is not None:
        from rlhf_core.stages.data_versions import bring_back

        return bring_back(config.data.version)
    output = config.data.output
    failures = output.with_name(f"{output.name}-failed")
    with exclusive(output):
        fingerprint = _fingerprint(config)
        manifest = read_manifest(output)
        if (
            manifest is not None
            and manifest.fingerprint == fingerprint
            and manifest.holds_for(prompt_limit(config))
            and find_docs(output) is not None
        ):
            logger.info("prepared_data_reused output=%s", output)
            return read_splits(output)
        shutil.rmtree(failures, ignore_errors=True)
        renderer, day = load_renderer(config)
        with replacing_directory(output) as work:
            try:
                prepare_build.build(
                    config, work, fingerprint, failures, prepare_build.Rendering(renderer, day)
                )
            except RlhfError:
                for name in (prepare_build.QUARANTINE, prepare_build.REPORT, DOCS):
                    prepare_checks.keep(work / name, failures)
                raise
        return read_splits(output)


def read_splits(directory: Path, revision: str | None = None) -> DatasetSplits:
    """Return the references of a prepared directory.

    Args:
        directory: what preparation made.
        revision: git commit the data belongs to; None takes the one checked out around it.

    Raises:
        DataError: there is no complete dataset in ``directory``.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise DataError(f"{directory}: no complete prepared dataset; run `rlhf prepare` first")
    revision = revision or versioning.git_revision(directory)
    references: dict[str, Any] = {
        name: DatasetRef(
            path=directory / f"{name}.jsonl",
            sha256=facts.sha256,
            num_rows=facts.num_rows,
            dvc_md5=facts.md5,
            git_revision=revision,
        )
        for name, facts in manifest.files.items()
    }
    return DatasetSplits(
        directory=directory,
        sha256=manifest.sha256,
        dvc_md5=versioning.directory_md5(directory),
        git_revision=revision,
        split=manifest.split,
        template_date=manifest.template_date,
        report=directory / prepare_build.REPORT,
        **references,
    )


def _fingerprint(config: PreparationConfig) -> str:
    """Return the digest of all that decides the output: inputs, settings, tokenizer, code."""
    data = config.data
    settings = data.model_dump_json(exclude={"output", "version"})
    room = Path(rlhf_core.__file__).parent
    code = [path for pattern in _CODE for path in room.glob(pattern)]
    parts = {"seed": str(config.seed), "settings": settings, "code": code_digest(room, code)}
    if data.cleaning.tokens:
        parts["tokenizer"] = tokenizer_digest(config.model)
    for key, source in raw_sources(data).items():
        if is_hub(source.path):
            parts[key] = hub_fingerprint(source)
    for key, path in require_paths(data).items():
        parts |= {f"{key}/{file.name}": sha256_of(file) for file in source_files(path)}
    return fingerprint_of(parts)


def prepare_fingerprint(config: PreparationConfig) -> str:
    """Return what decides the dataset: changed raw files, settings or code change it.

    Raises:
        DataError: a raw file is missing.
    """
    return config.data.version or _fingerprint(config)
