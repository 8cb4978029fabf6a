"""`rlhf data`: dataset versions. Thin; prints what was done and where to look."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_flows.commands.options import Commands, JsonOption, KeepOption, begin, write_json

if TYPE_CHECKING:
    from rlhf_core.config import SourceConfig
    from rlhf_core.schema import BatchResult, DataVersion
    from rlhf_core.stages.versions.diff import UnpairedDiff

data_app = typer.Typer(
    name="data",
    cls=Commands,
    help="Dataset versions: add annotations, look back, compare, bring back.",
    no_args_is_help=True,
)

VersionArgument = Annotated[
    str, typer.Argument(metavar="VERSION", help="data-vN", show_default=False)
]
_MAX_SHOWN = 20


def _mapping_option(name: str, metavar: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, help=f"{what}; may be repeated."
    )
    return option


@data_app.command(epilog="Example: rlhf data add votes.jsonl.gz")
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New comparisons with votes.")],
    file_format: Annotated[
        str,
        typer.Option("--format", help="What a row says, such as flat; `rlhf data look` tells."),
    ] = "canonical",
    column: Annotated[
        list[str] | None, _mapping_option("--column", "OURS=THEIRS", "Map a column")
    ] = None,
    choice: Annotated[
        list[str] | None,
        _mapping_option("--choice", "WORD=SIDE", "The source's word for a, b or tie"),
    ] = None,
    strength: Annotated[
        list[str] | None,
        _mapping_option("--strength", "WORD=N", "The source's word for how much better"),
    ] = None,
    quotes: Annotated[
        bool,
        typer.Option("--quotes/--no-quotes", help="Whether double quotes enclose cells of a CSV."),
    ] = True,
    subset: Annotated[
        str | None, typer.Option("--subset", help="Which configuration of a dataset of the hub.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of a dataset of the hub.")] = "train",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the source: sheet=A"),
    ] = None,
    min_kept_fraction: KeepOption = 1.0,
    json_file: JsonOption = None,
) -> None:
    """Publish a batch of annotations: store, prepare, commit, push, tag data-vN."""
    begin("info")
    from rlhf_core.stages.versions.publish import publish

    named = {
        "path": file,
        "format": file_format,
        "columns": _mapping("--column", "OURS=THEIRS", column),
        "choices": _mapping("--choice", "WORD=SIDE", choice),
        "strengths": _mapping("--strength", "WORD=N", strength),
        "quotes": quotes,
        "subset": subset,
        "split": split,
        "revision": revision,
    }
    source = _source(named | _other_settings(others, named))
    _finish(publish(source, min_kept_fraction=min_kept_fraction), json_file)


@data_app.command(epilog="Example: rlhf data look votes.csv")
def look(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Data of any shape.")],
    join: Annotated[
        Path | None, typer.Option("--join", metavar="FILE", help="A second file: texts, or votes.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on", metavar="COLUMN", help="Id that both files have; given twice, its two names."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Say which shape a file has and what it would become, and write the settings for it."""
    begin("info")
    from rlhf_core.config.data import JoinConfig
    from rlhf_core.dataprep.sources.look import look_at
    from rlhf_core.errors import ConfigError
    from rlhf_flows.commands.looks import show_found

    if (join is None) != (not on) or len(on or ()) > 2:
        raise ConfigError("--join FILE and --on COLUMN go together; --on at most twice")
    columns = on or [""]
    joined = None if join is None else JoinConfig(path=join, on=(columns[0], columns[-1]))
    found = look_at(file, joined)
    write_json(found.record(), json_file)
    show_found(found)


@data_app.command("publish", epilog="Example: rlhf data publish")
def publish_command(min_kept_fraction: KeepOption = 1.0, json_file: JsonOption = None) -> None:
    """Publish the committed raw data as it is, with no new batch."""
    begin("info")
    from rlhf_core.stages.versions.publish import publish

    _finish(publish(None, min_kept_fraction=min_kept_fraction), json_file)


@data_app.command(epilog="Example: rlhf data withdraw --annotator w17")
def withdraw(
    annotator: Annotated[
        list[str] | None,
        typer.Option("--annotator", metavar="ID", help="Whose votes go; may be repeated."),
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option("--row", metavar="ID", help="Row that goes; repeatable.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Source whose rows all go; repeatable."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Publish a version without a person's votes, some rows or a source.

    Says which earlier versions hold them and which registered models were made of those. They stay
    where they are: docs/versions.md says how to remove them for good.
    """
    begin("info")
    from rlhf_core.schema import Withdrawal
    from rlhf_core.stages.versions.withdraw import withdraw as take_out
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.engine.events import announce_published

    wanted = Withdrawal(
        annotators=tuple(annotator or ()), rows=tuple(row or ()), sources=tuple(source or ())
    )
    result = take_out(wanted)
    write_json(result, json_file)
    if result.published:
        show_published(result.published)
    else:
        show_line("no row holds it any more; nothing was published")
    for name, count in result.changed_rows.items():
        show_line(f"{name}: {count:,} rows taken out or changed")
    for version in result.versions:
        models = ", ".join(result.models.get(version, ())) or "no registered model"
        show_line(f"{version} still holds it; made from it: {models}")
    show_line("earlier versions and their bytes stay; docs/versions.md: removing them for good")
    if result.published:
        announce_published(result.published)


@data_app.command(epilog="Example: rlhf data log")
def log() -> None:
    """List the versions: rows, agreement and what changed."""
    begin("info")
    from rlhf_core.stages.versions.versions import list_versions
    from rlhf_flows.commands.tables import show_line

    versions = list_versions()
    if versions:
        _show_versions(versions)
    else:
        show_line("no version yet; publish one with `rlhf data publish`")


@data_app.command(epilog="Example: rlhf data diff data-v1 data-v2")
def diff(first: VersionArgument, second: VersionArgument, json_file: JsonOption = None) -> None:
    """Say which pairs and labelled responses came, went and changed between two versions."""
    begin("info")
    from rich.table import Table
    from rich.text import Text

    from rlhf_core.stages.versions.versions import compare
    from rlhf_flows.commands.tables import show_line, show_table

    found = compare(first, second, limit=None if json_file else _MAX_SHOWN)
    write_json(found, json_file)
    table = Table("change", "pair", "source", "prompt", title=f"{first} to {second}")
    for name, pairs in (("came", found.came), ("went", found.went), ("flip", found.relabelled)):
        for pair in pairs[:_MAX_SHOWN]:
            cells = (name, pair.comparison_id, pair.source, pair.prompt[:60])
            table.add_row(*map(Text, cells))
    show_table(table)
    if found.unpaired is not None:
        _show_unpaired_diff(found.unpaired)
    show_line(
        f"{found.num_came:,} came, {found.num_went:,} went, {found.num_relabelled:,} changed their"
        f" winner, {found.num_same:,} stayed; all of them: --json FILE"
    )


def _show_unpaired_diff(found: "UnpairedDiff") -> None:
    from rich.table import Table
    from rich.text import Text

    from rlhf_flows.commands.tables import show_line, show_table

    table = Table("change", "response", "source", "label", "prompt", title="labelled responses")
    for name, rows in (("came", found.came), ("went", found.went), ("flip", found.relabelled)):
        for row in rows[:_MAX_SHOWN]:
            label = "good" if row.label else "bad"
            cells = (name, row.example_id, row.source, label, row.prompt[:60])
            table.add_row(*map(Text, cells))
    show_table(table)
    show_line(
        f"labelled responses: {found.num_came:,} came, {found.num_went:,} went,"
        f" {found.num_relabelled:,} changed their label, {found.num_same:,} stayed"
    )


@data_app.command(epilog="Example: rlhf data get models:/rlhf-policy@champion")
def get(
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="data-vN; or a model, models:/NAME/VERSION or models:/NAME@ALIAS, for what it was"
            " trained on; or a DVC md5.",
        ),
    ],
) -> None:
    """Bring a version back, byte for byte, into a folder of its own."""
    begin("info")
    from rlhf_core.stages.versions.versions import fetch_version, restore, restore_for_model
    from rlhf_flows.commands.tables import show_line, show_splits

    if version.startswith("data-v"):
        splits = fetch_version(version)
    elif version.startswith("models:"):
        splits = restore_for_model(version)
    else:
        splits = restore(version)
    show_splits(splits)
    show_line(f"files: {splits.directory}")


_TEXTS = ("delimiter", "sheet")
"""Settings of a source that are texts, and may be written without quotes."""


def _other_settings(pairs: list[str] | None, named: Mapping[str, object]) -> dict[str, object]:
    """Return what ``--set`` says; what has an option of its own is given by that."""
    from rlhf_core.config.written import read_written, split_settings
    from rlhf_core.errors import ConfigError

    found: dict[str, object] = {}
    for key, value in split_settings(pairs or ()).items():
        said = f"--set {key}={value}"
        if key in named:
            raise ConfigError(f"{said}: {key} has an option of its own; see --help")
        if key in _TEXTS and not value.startswith('"'):
            found[key] = value  # a comma or a bar, which YAML would read as its own, or a number
        else:
            found[key], _ = read_written(value, said, has_lines=False)
    return found


def _source(settings: Mapping[str, object]) -> "SourceConfig":
    from pydantic import ValidationError

    from rlhf_core.config import SourceConfig
    from rlhf_core.errors import ConfigError

    try:
        return SourceConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{place}: {first['msg']}, found {first['input']!r}") from error


def _mapping(option: str, shape: str, pairs: list[str] | None) -> dict[str, str]:
    """Return what the values of an option map; a word of the source may hold ``=`` itself."""
    from rlhf_core.errors import ConfigError

    mapping: dict[str, str] = {}
    for pair in pairs or ():
        ours_first = option == "--column"
        key, sign, value = pair.partition("=") if ours_first else pair.rpartition("=")
        if not (key and sign and value):
            raise ConfigError(f"{option} {pair}: expected {shape}")
        if key in mapping:
            raise ConfigError(f"{option} {pair}: {key} is {mapping[key]} already; keep one")
        mapping[key] = value
    return mapping


def _finish(result: "BatchResult", json_file: Path | None) -> None:
    from rlhf_flows.engine.events import announce_published

    write_json(result, json_file)
    show_published(result)
    announce_published(result)


def show_published(result: "BatchResult") -> None:
    """Print what a new version is and how to train on it."""
    from rlhf_flows.commands.tables import show_line

    version = result.version.version
    _show_versions([result.version])
    for reason, count in result.set_aside.items():
        kept = f"data/raw/set-aside/{result.version.batch}"
        show_line(f"filtered out while reading: {count} {reason}; kept in {kept}")
    if not result.branch_moved:
        show_line(f"local changes kept your branch where it was; then: git merge {version}")
    show_line(f"train on it: rlhf run CONFIG --set data.version={version}")


def _show_versions(versions: "list[DataVersion]") -> None:
    from rich.table import Table

    from rlhf_flows.commands.tables import show_table

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
    show_table(table)
