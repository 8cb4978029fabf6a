"""Stage 1: raw files to a validated, split and versioned dataset."""

import glob
import json
import logging
import shutil
from pathlib import Path

import rlhf_core
from rlhf_core.adapters.datasets.data_docs import FOLDER as DOCS
from rlhf_core.adapters.datasets.data_docs import find_docs
from rlhf_core.config import PipelineConfig, PreparationConfig
from rlhf_core.dataprep.manifest import (
    Manifest,
    code_digest,
    find_manifest,
    fingerprint_of,
    read_manifest,
)
from rlhf_core.dataprep.sources.containers import is_hub, source_files
from rlhf_core.dataprep.sources.hub import hub_fingerprint
from rlhf_core.errors import DataError, RlhfError, StorageError
from rlhf_core.garbage import gc_threshold_raised
from rlhf_core.schema import DatasetSplits
from rlhf_core.stages.models.digests import tokenizer_digest
from rlhf_core.stages.preparation import build as prepare_build
from rlhf_core.stages.preparation import checks as prepare_checks
from rlhf_core.stages.preparation.dataset import DATASET, FAILURES, failures_of, read_splits
from rlhf_core.stages.preparation.inputs import named_paths, raw_sources, require_paths
from rlhf_core.stages.preparation.tokens import load_renderer, prompt_limit
from rlhf_core.stages.versions.versions import fetch_version
from rlhf_core.storage.folders import (
    exclusive,
    put_in_place,
    replacing_directory,
    working_directory,
)
from rlhf_core.storage.full_disk import writing
from rlhf_core.storage.own_folders import RUNS, require_replaceable
from rlhf_core.storage.records import sha256_of

logger = logging.getLogger(__name__)

CODE = (
    "dataprep/**/*.py",
    "stages/prepare.py",
    "stages/preparation/*.py",
    "storage/*.py",
    "tokenization/*.py",
    "schema/*.py",
    "statistics/*.py",
    "config/data.py",
    "config/metric_names.py",
    "config/phrases.py",
    "adapters/datasets/validation.py",
    "adapters/datasets/expectations.py",
    "adapters/datasets/data_docs.py",
    "evaluation/corrected.py",
    "evaluation/gates.py",
    "evaluation/same_cause.py",
    "evaluation/monitors.py",
    "evaluation/reading.py",
    "evaluation/text_metrics.py",
)
"""What decides the output, for the same inputs and settings; a test follows the imports."""

DIGITS = 12
"""Of a digest in the name of a folder."""


@gc_threshold_raised()
def prepare_data(config: PreparationConfig) -> DatasetSplits:
    """Read, validate, resolve, deduplicate and split the raw data into a folder of its own.

    The folder lies beside the output and is named by the dataset's digest, so that no later
    preparation takes it from under a run; the output itself is a copy of the newest, replaced as a
    whole. The same inputs under the same settings give the same bytes; a folder that already holds
    them is verified and used as it is. Two preparations of one output wait for each other.
    Data Docs are part of the dataset, in ``docs``.

    With ``data.version`` set nothing is prepared: that published version is brought back into a
    folder of its own.

    Raises:
        DataError: the output is not ours to replace, or the input cannot be used. The output stays
            as it was; the rows in question, the report and the Data Docs of this attempt are kept
            in ``<output>-failed``.
        MissingMetricError: a gate asks for what this data did not let be measured; kept likewise.
    """
    splits = _prepared(config)
    if isinstance(config, PipelineConfig):
        require_labels(config, splits)
    return splits


def _prepared(config: PreparationConfig) -> DatasetSplits:
    if config.data.version is not None:
        return fetch_version(config.data.version)
    require_own_folders(config)
    output = config.data.output
    with exclusive(output):
        fingerprint = _fingerprint(config)
        limit = prompt_limit(config)
        _keep(output)
        kept = _find_kept(output, fingerprint, limit)
        if kept is None:
            kept = _build(config, fingerprint)
        else:
            logger.info("prepared_data_reused dataset=%s", kept)
        _show_newest(kept, output)
        return read_splits(kept)


def require_labels(config: PipelineConfig, splits: DatasetSplits) -> None:
    """Refuse a dataset that lacks the labels which the policy is to learn from, before training.

    Raises:
        DataError: no labelled response is there, or all are good, or all bad.
    """
    if not config.policy.needs_unpaired:
        return
    if splits.unpaired_train is None:
        raise DataError(
            f"{splits.directory}: no responses with good or bad labels in this dataset, which"
            " policy.train_on asks for; prepare it with data.unpaired"
        )
    counts = json.loads(splits.report.read_text(encoding="utf-8"))["labels"]["sides"]["train"]
    if config.policy.learns_from_pairs or (counts["good"] and counts["bad"]):
        return
    found = f"{counts['good']} good and {counts['bad']} bad"
    raise DataError(
        f"{', '.join(str(file.path) for file in config.data.unpaired_files) or splits.directory}:"
        f" {found} labels to train on; with policy.train_on: unpaired loss kto needs both: name a"
        " file with the others, or take train_on: both"
    )


def find_prepared(config: PreparationConfig) -> DatasetSplits | None:
    """Return what preparation would take as it is, because it was made from the same; look only.

    Raises:
        DataError: a raw file is missing.
    """
    if config.data.version is not None:
        return None
    output, limit = config.data.output, prompt_limit(config)
    fingerprint = _fingerprint(config)
    kept = _find_kept(output, fingerprint, limit)
    manifest = find_manifest(output) if kept is None else None
    if manifest and manifest.fingerprint == fingerprint and manifest.holds_for(limit):
        kept = output if _is_whole(output) else None
    return None if kept is None else read_splits(kept)


def require_own_folders(config: PreparationConfig) -> None:
    """Refuse settings by which preparation would replace what it did not make.

    Raises:
        DataError: ``data.output``, or the folder of failures beside it, is somebody else's.
    """
    data, base = config.data, Path(config.model.base)
    spared = {key: path for key, path in named_paths(data).items() if path.exists()}
    spared |= {"model.base": base} if base.exists() else {}
    spared[RUNS] = config.runs
    require_replaceable(data.output, DATASET, spared)
    require_replaceable(failures_of(data.output), FAILURES, spared)


def _build(config: PreparationConfig, fingerprint: str) -> Path:
    """Prepare into a folder named by the dataset's digest; return it."""
    output, failures = config.data.output, failures_of(config.data.output)
    shutil.rmtree(failures, ignore_errors=True)
    rendering = prepare_build.Rendering(*load_renderer(config))
    with working_directory(output) as work:
        try:
            with writing(output, work):
                manifest = prepare_build.build(config, work, fingerprint, failures, rendering)
        except RlhfError as error:
            _keep_failure(error, work, failures)
            raise
        kept = _folder_for(output, manifest)
        put_in_place(work, kept)
    return kept


def _keep_failure(error: RlhfError, work: Path, failures: Path) -> None:
    """Keep what a refusal of the data is about: all of it, or nothing where the disk is full.

    Raises:
        StorageError: the disk takes no more of it.
    """
    try:
        if isinstance(error, StorageError):
            raise error
        with writing(failures):
            for name in (prepare_build.QUARANTINE, prepare_build.REPORT, DOCS):
                prepare_checks.keep(work / name, failures)
            prepare_checks.mark_failed(failures)
    except StorageError:
        shutil.rmtree(failures, ignore_errors=True)
        raise


def _folder_for(output: Path, manifest: Manifest) -> Path:
    """Return the folder of a dataset beside ``output``, named by the digest of its rows.

    Where the same rows were made from something else, the name says from what as well.
    """
    folder = output.with_name(f"{output.name}-{manifest.sha256[:DIGITS]}")
    there = find_manifest(folder)
    if there is None or there.fingerprint == manifest.fingerprint:
        require_replaceable(folder, DATASET)
        return folder
    return folder.with_name(f"{folder.name}-{manifest.fingerprint[:DIGITS]}")


def _find_kept(output: Path, fingerprint: str, limit: int | None) -> Path | None:
    """Return the folder of the dataset that was made from the same before, if it is whole."""
    for folder in sorted(output.parent.glob(f"{glob.escape(output.name)}-*")):
        manifest = find_manifest(folder)
        if manifest is None or manifest.fingerprint != fingerprint:
            continue
        is_kept = folder == _folder_for(output, manifest)
        if is_kept and manifest.holds_for(limit) and _is_whole(folder):
            return folder
    return None


def _is_whole(folder: Path) -> bool:
    return find_docs(folder) is not None and read_manifest(folder) is not None


def _keep(output: Path) -> None:
    """Keep the dataset that lies in ``output`` in a folder of its own: a run may have begun on it.

    It came by ``dvc pull`` or ``dvc checkout``, or from before datasets had such folders.
    """
    manifest = read_manifest(output)
    if manifest is None or find_docs(output) is None:
        return
    folder = _folder_for(output, manifest)
    if not _is_whole(folder):
        _copy(output, folder)


def _show_newest(kept: Path, output: Path) -> None:
    """Make ``output`` a copy of a dataset, unless it is one.

    No link: DVC takes ``output`` for a folder, and whoever edits it harms no run.
    """
    if find_manifest(output) != find_manifest(kept) or not _is_whole(output):
        _copy(kept, output)


def _copy(source: Path, target: Path) -> None:
    with replacing_directory(target) as work:
        shutil.copytree(source, work, dirs_exist_ok=True)


def _fingerprint(config: PreparationConfig) -> str:
    """Return the digest of all that decides the output: inputs, settings, tokenizer, code."""
    data = config.data
    settings = data.model_dump_json(exclude={"output", "version"})
    package = Path(rlhf_core.__file__).parent
    code = [path for pattern in CODE for path in package.glob(pattern)]
    parts = {"seed": str(config.seed), "settings": settings, "code": code_digest(package, code)}
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
