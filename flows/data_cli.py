"""`rlhf data`: dataset versions. Thin; prints what was done and where to look."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.options import JsonOption, begin, write_json

if TYPE_CHECKING:
    from rlhf_core.config import SourceConfig
    from rlhf_core.stages.data_versions import BatchResult, DataVersion

data_app = typer.Typer(
    name="data",
    help="Dataset versions: add annotations, look back, compare, bring back.",
    no_args_is_help=True,
)

VersionArgument = Annotated[
    str, typer.Argument(metavar="VERSION", help="data-vN", show_default=False)
]
KeepOption = Annotated[
    float,
    typer.Option(
        "--min-kept-fraction",
        min=0.0,
        max=1.0,
        help="Refuse a version with fewer rows than this share of the last one's.",
    ),
]
_MAX_SHOWN = 20


@data_app.command(epilog="Example: rlhf data add votes.jsonl.gz")
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New comparisons with votes.")],
    file_format: Annotated[
        str, typer.Option("--format", help="canonical, hh, pairs, ranked, flat or label_studio.")
    ] = "canonical",
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Map a column; may be repeated."),
    ] = None,
    min_kept_fraction: KeepOption = 1.0,
    json_file: JsonOption = None,
) -> None:
    """Publish a batch of annotations: store, prepare, commit, push, tag data-vN."""
    begin("info")
    from rlhf_core.stages.data_versions import publish

    source = _source(file, file_format, column or [])
    _show_published(publish(source, min_kept_fraction=min_kept_fraction), json_file)


@data_app.command("publish", epilog="Example: rlhf data publish")
def publish_command(min_kept_fraction: KeepOption = 1.0, json_file: JsonOption = None) -> None:
    """Publish the committed raw data as it is, with no new batch."""
    begin("info")
    from rlhf_core.stages.data_versions import publish

    _show_published(publish(None, min_kept_fraction=min_kept_fraction), json_file)


@data_app.command(epilog="Example: rlhf data log")
def log() -> None:
    """List the versions: rows, agreement and what changed."""
    begin("warning")
    from flows.tables import show_line
    from rlhf_core.stages.data_versions import list_versions

    versions = list_versions()
    if versions:
        _show_versions(versions)
    else:
        show_line("no version yet; publish one with `rlhf data publish`")


@data_app.command(epilog="Example: rlhf data diff data-v1 data-v2")
def diff(first: VersionArgument, second: VersionArgument, json_file: JsonOption = None) -> None:
    """Say which pairs came, went and changed their winner between two versions."""
    begin("warning")
    from rich.table import Table

    from flows.tables import console, show_line
    from rlhf_core.stages.data_versions import compare

    found = compare(first, second)
    write_json(found, json_file)
    table = Table("change", "pair", "source", "prompt", title=f"{first} to {second}")
    for name, pairs in (("came", found.came), ("went", found.went), ("flip", found.relabelled)):
        for pair in pairs[:_MAX_SHOWN]:
            table.add_row(name, pair.comparison_id, pair.source, pair.prompt[:60])
    console.print(table)
    show_line(
        f"{len(found.came)} came, {len(found.went)} went, {len(found.relabelled)} changed their"
        f" winner, {found.num_same} stayed; all of them: --json FILE"
    )


@data_app.command(epilog="Example: rlhf data get data-v1")
def get(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="data-vN, or the DVC md5 of a model's tags.")
    ],
) -> None:
    """Bring a version back, into a folder of its own."""
    begin("warning")
    from flows.tables import show_splits
    from rlhf_core.stages.data_versions import bring_back, restore

    show_splits(bring_back(version) if version.startswith("data-v") else restore(version))


def _source(file: Path, file_format: str, columns: list[str]) -> "SourceConfig":
    from pydantic import ValidationError

    from rlhf_core.config import SourceConfig
    from rlhf_core.errors import ConfigError

    mapping = dict(column.partition("=")[::2] for column in columns)
    try:
        return SourceConfig.model_validate(
            {"path": file, "format": file_format, "columns": mapping}
        )
    except ValidationError as error:
        raise ConfigError(f"--format {file_format}: {error.errors()[0]['msg']}") from error


def _show_published(result: "BatchResult", json_file: Path | None) -> None:
    from flows.tables import show_line

    write_json(result, json_file)
    _show_versions([result.version])
    for reason, count in result.set_aside.items():
        show_line(f"set aside while reading: {count} {reason}")
    version = result.version.version
    if not result.branch_moved:
        show_line(f"local changes kept your branch where it was; then: git merge {version}")
    show_line(f"train on it: rlhf run CONFIG --set data.version={version}")


def _show_versions(versions: "list[DataVersion]") -> None:
    from rich.table import Table

    from flows.tables import console

    table = Table("version", "date", "commit", "rows", "pairs", "alpha", "changed", "batch")
    for item in versions:
        table.add_row(
            item.version,
            item.date,
            item.commit[:10],
            f"{item.rows:,}",
            f"{item.pairs:,}",
            "-" if item.alpha is None else f"{item.alpha:.3f}",
            f"+{item.came:,} -{item.went:,} ~{item.relabelled:,}",
            item.batch or "-",
        )
    console.print(table)
