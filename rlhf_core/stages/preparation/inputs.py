"""The raw files that the settings name: which they are, by key, and whether they are here."""

from pathlib import Path

from rlhf_core.config import DataConfig, SourceConfig
from rlhf_core.dataprep.sources.containers import file_names, is_hub, source_files
from rlhf_core.dataprep.sources.join import join_files
from rlhf_core.errors import DataError

_MAX_NAMED = 5


def raw_sources(data: DataConfig) -> dict[str, SourceConfig]:
    """Return all sources of comparisons by their key, in the order they are read; batches last.

    Raises:
        DataError: a batch is under DVC but its file is not here: it would be lost silently.
    """
    named = {"data.preferences": data.preferences}
    named |= {f"data.more_preferences.{i}": s for i, s in enumerate(data.more_preferences)}
    if data.batches is None or not data.batches.is_dir():
        return named
    missing = [
        path for path in sorted(data.batches.glob("*.dvc")) if not path.with_suffix("").exists()
    ]
    if missing:
        raise DataError(f"{missing[0].with_suffix('')}: not here; run `dvc pull {missing[0]}`")
    if any(data.batches.glob("*.jsonl")):
        named["data.batches"] = SourceConfig(path=data.batches)
    return named


def raw_files(data: DataConfig) -> list[str]:
    """Return the files, and the datasets of the hub, that comparisons are read from."""
    return [
        file.as_posix()
        for source in raw_sources(data).values()
        for file in ([source.path] if is_hub(source.path) else source_files(source.path))
        + join_files(source.join)
    ]


def names_of_files(data: DataConfig) -> dict[Path, str]:
    """Return what comparisons of each file say of where they come from; no two say the same."""
    paths = [source.path for source in raw_sources(data).values() if not is_hub(source.path)]
    return file_names(file for path in paths for file in source_files(path))


def name_sources(data: DataConfig) -> str:
    """Return what a message about the comparisons as a whole begins with: where they come from."""
    paths = [str(source.path) for source in raw_sources(data).values()]
    more = [f"{len(paths) - _MAX_NAMED} more"] if len(paths) > _MAX_NAMED else []
    return ", ".join([*paths[:_MAX_NAMED], *more])


def require_paths(data: DataConfig) -> dict[str, Path]:
    """Return key and path of all that must lie on this machine.

    Raises:
        DataError: something does not; names the key, and DVC where that has the bytes.
    """
    named = named_paths(data)
    for key, path in named.items():
        if not path.exists():
            raise DataError(f"{path}: no such file; {_how_to_get(path, key)}")
    return named


def named_paths(data: DataConfig) -> dict[str, Path]:
    """Return key and path of every input that is to lie on this machine."""
    paths: dict[str, Path | None] = {
        key if key == "data.batches" else f"{key}.path": source.path
        for key, source in raw_sources(data).items()
        if not is_hub(source.path)
    }
    paths |= {
        f"{key}.join.path": source.join.path
        for key, source in raw_sources(data).items()
        if source.join is not None
    }
    paths |= {f"data.unpaired.{i}.path": file.path for i, file in enumerate(data.unpaired_files)}
    paths |= {
        "data.demonstrations.path": data.demonstrations.path,
        "data.prompts.path": data.prompts.path,
        "data.prompts.heldout_path": data.prompts.heldout_path,
        "data.prompts.production_path": data.prompts.production_path,
    }
    paths |= {
        f"data.cleaning.contamination.{i}": p for i, p in enumerate(data.cleaning.contamination)
    }
    return {key: path for key, path in paths.items() if path is not None}


def _how_to_get(path: Path, key: str) -> str:
    tracked = (Path(f"{place}.dvc") for place in (path, *path.parents))
    known = next((file for file in tracked if file.is_file()), None)
    return f"run `dvc pull {known}`" if known else f"{key} must name an existing file"
