"""`rlhf collect`, `rlhf label push`, `rlhf label pull`: from a model's answers back to data."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_core.errors import ConfigError
from rlhf_flows.commands.label_listen import listen_for_labels
from rlhf_flows.commands.options import (
    Commands,
    ConfigPath,
    DatasetOption,
    JsonOption,
    KeepOption,
    LogLevel,
    Overrides,
    begin,
    read_settings,
    write_json,
)

if TYPE_CHECKING:
    from rlhf_core.config import PipelineConfig
    from rlhf_core.feedback.collection import Evaluated
    from rlhf_core.feedback.results import CollectedPairs, PullResult, PushResult
    from rlhf_core.schema import Estimate

label_app = typer.Typer(
    name="label",
    cls=Commands,
    help="Votes on collected pairs: ask people or an AI judge, bring their votes back as data.",
    no_args_is_help=True,
)

CollectionArgument = Annotated[
    str,
    typer.Argument(
        metavar="COLLECTION", help="Id of a collection, or its folder.", show_default=False
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    example = "rlhf collect configs/demo.yaml --set feedback.num_prompts=50"
    app.command(epilog=f"Example: {example}")(collect)
    example = "rlhf label listen configs/demo.yaml --port 8010"
    label_app.command("listen", epilog=f"Example: {example}")(listen_for_labels)
    app.add_typer(label_app)


def collect(
    config: ConfigPath,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Model that answers: models:/NAME/VERSION, models:/NAME@ALIAS or a directory; "
            "default: the policy's champion.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="Another model: each of the two answers once, on a side drawn for each pair.",
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--evaluation",
            metavar="RUN",
            help="Ask about answers that the evaluation of this run judged: votes on them correct "
            "the judge's win rate, and train nothing.",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            min=1,
            metavar="N",
            help="With --evaluation: pairs drawn at random; default: what --half-width needs.",
        ),
    ] = None,
    half_width: Annotated[
        float | None,
        typer.Option(
            "--half-width",
            metavar="W",
            help="With --evaluation: the corrected win rate is wanted this close; default: 0.05.",
        ),
    ] = None,
    dataset: DatasetOption = None,
    overrides: Overrides = None,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Sample two different answers to each of some prompts, for somebody to compare.

    The prompts are those of the feedback section, else what users send
    (data.prompts.production_path), else the training prompts; held-out dialogues are left out.
    The same settings and seed make the same collection, so that a repeated command finds it;
    --set feedback.seed=1 draws another one.
    """
    settings = _load(config, overrides, log_level)
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_flows.collect import sample_pairs
    from rlhf_flows.engine.inputs import CollectInputs

    check_server()
    if half_width is not None and not 0.0 < half_width < 0.5:
        raise ConfigError(f"--half-width {half_width:g}: expected a number between 0 and 0.5")
    inputs = CollectInputs(
        model=model,
        against=against,
        dataset=dataset,
        evaluation=evaluation,
        pairs=pairs,
        half_width=half_width,
    )
    found = sample_pairs(settings, inputs)
    write_json(found, json_file)
    _show_collected(found, config, overrides)


@label_app.command(epilog="Example: rlhf label push 3f2a9c0d1b4e configs/demo.yaml")
def push(
    collection: CollectionArgument,
    config: ConfigPath,
    again: Annotated[
        bool,
        typer.Option("--again", help="Ask again about pairs without a readable verdict, too."),
    ] = False,
    overrides: Overrides = None,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Ask for votes on the pairs, from whom feedback.labeler names.

    Simulated annotators and an AI judge answer at once; people get tasks in Label Studio. A push
    that was stopped, or is repeated, asks only for what is missing.
    """
    settings = _load(config, overrides, log_level)
    from rlhf_core.stages.labels.push import push_labels

    result = push_labels(settings, collection, again=again)
    write_json(result, json_file)
    _show_pushed(result, config, overrides)


@label_app.command(epilog="Example: rlhf label pull 3f2a9c0d1b4e configs/demo.yaml")
def pull(
    collection: CollectionArgument,
    config: ConfigPath,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Only write the batch here; publish nothing."
        ),
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option(
            "--votes",
            metavar="FILE",
            help="Bring in votes from a file instead of asking a server: JSON lines of pair, "
            "annotator and winner (a, b or tie).",
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(
            "--at-least",
            metavar="FRACTION",
            help="Publish nothing, and end with status 1, while a smaller share of the "
            "collection's pairs has its votes and is in no version yet.",
        ),
    ] = None,
    min_kept_fraction: KeepOption = 1.0,
    overrides: Overrides = None,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Publish the pairs that have enough votes as a new dataset version, as `rlhf data add` does.

    A pair is published once, when it has feedback.votes_per_pair votes; the others wait for the
    next pull. Votes on the answers of an evaluation are kept with it and never published.
    """
    settings = _load(config, overrides, log_level)
    from rlhf_core.stages.labels.pull import pull_labels
    from rlhf_flows.engine.events import announce_published

    result = pull_labels(
        settings,
        collection,
        output=output,
        votes=votes,
        at_least=require_share(at_least),
        min_kept_fraction=min_kept_fraction,
    )
    write_json(result, json_file)
    if at_least and result.published is None and result.ready < result.needed:
        typer.echo(
            f"collection {result.collection_id}: {result.ready:,} of {result.pairs:,} pairs have "
            f"the votes they need ({result.votes_per_pair}) and are in no version yet; "
            f"{result.needed:,} are needed (--at-least {at_least:g}); nothing was published",
            err=True,
        )
        raise typer.Exit(1)
    _show_pulled(result, config, overrides)
    if result.published is not None:
        announce_published(result.published)


def require_share(at_least: float | None) -> float:
    """Return the share of pairs that a person asks for; 0 where nobody does.

    Raises:
        ConfigError: it is no share.
    """
    if at_least is None:
        return 0.0
    if not 0.0 < at_least <= 1.0:
        raise ConfigError(f"--at-least {at_least:g}: expected a share, above 0 and at most 1")
    return at_least


def _load(config: Path, overrides: list[str] | None, log_level: str) -> "PipelineConfig":
    begin(log_level)
    return read_settings(config, overrides).config


def _show_collected(found: "CollectedPairs", config: Path, overrides: list[str] | None) -> None:
    from rlhf_flows.commands.tables import show_line

    collection, counts = found.collection, found.collection.counts
    models = " and ".join(model.uri for model in collection.models)
    show_line(f"collection {collection.collection_id}: {counts.pairs:,} pairs by {models}")
    if collection.evaluation is not None:
        _show_needed(collection.evaluation, counts.indistinct)
        show_line(f"files: {found.folder}")
        show_line(f"next: {_next('push', collection.collection_id, config, overrides)}")
        return
    show_line(
        f"prompts: {counts.prompts:,} in {collection.prompts}; left out {counts.heldout:,} of"
        f" held-out dialogues and {counts.unfitting:,} that do not fit; {counts.asked:,} asked"
    )
    if counts.compared:
        show_line(f"left out because a pair is about their dialogue: {counts.compared:,}")
    show_line(
        f"answers: {counts.resampled:,} prompts asked again because both were alike, "
        f"{counts.indistinct:,} left out because they stayed so; {counts.unfinished:,} answers cut"
    )
    if (choice := collection.choice) is not None:
        by = " and ".join(model.uri for model in choice.models)
        show_line(
            f"chosen by {by}: {counts.pairs:,} of {choice.drawn:,} pairs, disagreement"
            f" {choice.kept_disagreement:.3f}; over all of them {choice.disagreement:.3f}"
        )
    show_line(f"files: {found.folder}")
    show_line(f"next: {_next('push', collection.collection_id, config, overrides)}")


def _show_needed(about: "Evaluated", alike: int) -> None:
    """Say how many pairs need votes, and from what that was counted."""
    from rlhf_flows.commands.tables import show_line

    known = f"accuracy {about.accuracy:.2f}" if about.accuracy is not None else "unknown accuracy"
    counted = f"a win rate within {about.half_width:g}, by a judge of {known}"
    if about.needed is None:
        show_line(f"labels needed for {counted}: more than the {about.judged:,} pairs it judged")
    else:
        show_line(f"labels needed for {counted}: {about.needed:,} of {about.judged:,} pairs")
    show_line(
        f"drawn at random (seed {about.seed}): {about.drawn:,}; {alike:,} of two equal answers are"
        " ties and not asked about"
    )


def _show_pushed(result: "PushResult", config: Path, overrides: list[str] | None) -> None:
    from rlhf_flows.commands.tables import show_line

    verb = "sent" if result.waits else "asked about"
    counted = (
        f"{result.pairs:,} pairs wait for votes; nothing is sent"
        if result.waits and not (result.asked or result.before)
        else f"{result.asked:,} pairs {verb} now, {result.before:,} before, of {result.pairs:,}"
    )
    show_line(f"{result.labeler}: {counted}")
    if result.order_dependent is not None:
        show_line(
            f"verdicts that changed with the order, and count as ties: {result.order_dependent:.1%}"
        )
    if result.without_vote:
        show_line(
            f"pairs without a readable verdict: {result.without_vote:,}; their reason is kept,"
            " and --again asks about them again"
        )
    if result.tokens is not None:
        show_line(f"tokens of this push: {result.tokens:,}")
    if result.place is not None:
        show_line(f"people label at: {result.place}")
    when = "when there are votes" if result.waits else "next"
    show_line(f"{when}: {_next('pull', result.collection_id, config, overrides)}")


def _next(command: str, collection: str, config: Path, overrides: list[str] | None) -> str:
    """Return what to type next, with the settings that were changed this time."""
    return _line(("rlhf", "label", command, collection, str(config)), overrides)


def _line(words: Sequence[str], overrides: list[str] | None) -> str:
    changes = [word for change in overrides or () for word in ("--set", change)]
    return shlex.join([*words, *changes])


def _show_pulled(result: "PullResult", config: Path, overrides: list[str] | None) -> None:
    from rlhf_flows.commands.tables import show_line

    by_votes = ", ".join(f"{votes}: {pairs:,}" for votes, pairs in result.pairs_by_votes.items())
    show_line(f"collection {result.collection_id}: pairs by number of votes: {by_votes}")
    if result.set_aside:
        show_line(
            f"annotations that cannot be read: {result.set_aside:,}; why is in set-aside.jsonl of"
            " the collection's votes"
        )
    if result.alpha is not None:
        show_line(f"Krippendorff's alpha: {_interval(result.alpha)}")
    for judge, alpha in result.judges.items():
        show_line(f"{judge} against people: alpha {_interval(alpha)}, n = {alpha.num_samples:,}")
    if result.preferred:
        votes = ", ".join(f"{name} {count:,}" for name, count in result.preferred.items())
        show_line(f"votes by model: {votes}")
    if result.evaluation is not None:
        show_line(f"kept with the evaluation of run {result.evaluation}: {result.kept:,} pairs")
        words = ("rlhf", "evaluate", str(config), "--run-id", result.evaluation)
        show_line(f"when there are enough: {_line(words, overrides)}")
    else:
        _show_published(result)


def _show_published(result: "PullResult") -> None:
    from rlhf_flows.commands.data import show_published
    from rlhf_flows.commands.tables import show_line

    if result.late_votes:
        show_line(
            f"votes on published pairs that came later and change nothing: {result.late_votes:,}"
        )
    show_line(
        f"pairs with the votes they need ({result.votes_per_pair}): {result.ready:,} new,"
        f" {result.published_before:,} published before"
    )
    if result.output is not None and result.ready:
        show_line(f"batch: {result.output}; publish it with: rlhf data add {result.output}")
    elif result.published is not None:
        show_published(result.published)
    else:
        show_line("nothing new to publish")


def _interval(alpha: "Estimate") -> str:
    return f"{alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}]"
