"""`rlhf rounds`: train, collect, label, train again."""

from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_flows.commands.options import (
    ConfigPath,
    JsonOption,
    LogLevel,
    Overrides,
    begin,
    check_servers,
    read_settings,
    resumable,
    typed_again,
    write_json,
)

if TYPE_CHECKING:
    from rlhf_flows.engine.flow_results import Round, Rounds


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog="Example: rlhf rounds configs/demo-rounds.yaml --rounds 3")(rounds)


def rounds(
    context: typer.Context,
    config: ConfigPath,
    number: Annotated[
        int,
        typer.Option("--rounds", min=1, max=1000, help="Rounds in all, finished ones included."),
    ] = 3,
    overrides: Overrides = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", help="Go on with these rounds: the run of the first one."),
    ] = None,
    json_file: JsonOption = None,
    log_level: LogLevel = "info",
) -> None:
    """Run the pipeline round after round, each on the labelled answers of the one before, too.

    A round runs the whole pipeline, samples pairs of its policy's answers, asks for votes as `rlhf
    label push` does, and publishes them as a dataset version that the next round trains on. Where
    people vote the command ends and says what it awaits; repeated with --run-id it goes on. Exit
    status 1 if the last round's gates say HOLD or REJECT, or votes are awaited.
    """
    begin(log_level)
    settings = read_settings(config, overrides)
    check_servers(settings.config, check_inputs=True)
    with resumable(context, settings, run_id) as run:
        from rlhf_flows.engine.inputs import RoundsInputs
        from rlhf_flows.rounds import rounds_flow

        result = rounds_flow(settings, RoundsInputs(run=run, rounds=number))
    write_json(result, json_file)
    _show(result)
    if result.awaits is not None:
        from rlhf_flows.commands.tables import show_line

        show_line(result.awaits)
        show_line(f"then: {typed_again(context, run_id=result.run_id)}")
    promoted = result.awaits is None and result.rounds[-1].verdict == "PROMOTE"
    raise typer.Exit(0 if promoted else 1)


def _show(result: "Rounds") -> None:
    """Print a row for every round, and where to look."""
    from rich.table import Table

    from rlhf_flows.commands.tables import show_line, show_table
    from rlhf_flows.engine.flow_results import Round
    from rlhf_flows.engine.runs.folder import ROUNDS, ROUNDS_PICTURE

    names = [name for name in Round.SHOWN if any(name in one.metrics for one in result.rounds)]
    table = Table("", *(str(one.number) for one in result.rounds), title="rounds")
    table.add_row("run", *(one.run_id for one in result.rounds))
    table.add_row("data", *(one.data_version or "as set" for one in result.rounds))
    table.add_row("verdict", *(one.verdict or "" for one in result.rounds))
    table.add_row("pairs labelled", *(_labelled(one) for one in result.rounds))
    for name in names:
        table.add_row(name, *(_interval(one, name) for one in result.rounds))
    show_table(table)
    for one in result.rounds:
        if one.choice is not None:
            show_line(
                f"round {one.number}: {one.pairs:,} of {one.choice.drawn:,} pairs chosen; "
                f"disagreement {one.choice.kept_disagreement:.3f}, of all"
                f" {one.choice.disagreement:.3f}"
            )
        for model, found in one.agreement.items():
            show_line(
                f"round {one.number}: {model} is of the voters' mind on {found.value:.2f}"
                f" [{found.low:.2f}, {found.high:.2f}] of {found.num_samples:,} pairs"
            )
        if one.verdict not in (None, "PROMOTE"):
            reasons = (reason for reason in one.reasons if not reason.startswith("PROMOTE"))
            show_line(f"round {one.number}: {'; '.join(reasons)}")
    show_line(f"picture: {result.directory / ROUNDS_PICTURE}; record: {result.directory / ROUNDS}")


def _labelled(one: "Round") -> str:
    return "" if one.labelled is None else f"{one.labelled:,} of {one.pairs or 0:,}"


def _interval(one: "Round", name: str) -> str:
    found = one.metrics.get(name)
    return "" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
