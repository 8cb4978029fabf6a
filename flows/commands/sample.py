"""`rlhf sample`: what a model says, printed or, the best of it, written as demonstrations."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rlhf_core.errors import ConfigError, RlhfError
from rlhf_flows.commands.options import LogLevel, ModelArgument, begin, typed_again
from rlhf_flows.commands.start import exit_status

if TYPE_CHECKING:
    from rlhf_core.schema import ModelRef
    from rlhf_core.stages.rejection_sampling import BestAnswers


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    example = 'rlhf sample models:/rlhf-policy@champion "When does the library open?"'
    app.command(epilog=f"Example: {example}")(sample)


def sample(
    context: typer.Context,
    model: ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(help="What the user says; without it you chat.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="Prompts: a text a line, or as .jsonl, .parquet, .csv a column prompt."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message before every prompt.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Responses.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")
    ] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of",
            metavar="N",
            help="Draw N answers to every prompt of --file, and write the one that --scorer scores "
            "highest to --output: demonstrations for SFT.",
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="MODEL",
            help="Reward model: models:/NAME/VERSION, models:/NAME@ALIAS, a folder or a hub name.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.jsonl", help="A new file.")
    ] = None,
    log_level: LogLevel = "warning",
) -> None:
    """Print responses of a model to a prompt, or to every prompt of a file; several are numbered.

    On a terminal and without a prompt you chat: it remembers the conversation; Ctrl-D ends it.
    With --best-of the best of several answers are written as demonstrations, and none is printed.
    """
    begin(log_level if best_of is None or _is_typed(context, "log_level") else "info")
    if prompt is not None and file is not None:
        raise typer.BadParameter("give a prompt or --file, and not both")
    best = _best_asked(best_of, file, scorer, output)
    if best is None and prompt is None and file is None and not sys.stdin.isatty():
        raise typer.BadParameter("expected a prompt, --file FILE, or a terminal to chat on")
    drawn = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    if best is not None:
        if count != 1:
            raise ConfigError("--count prints so many answers; --best-of says how many are drawn")
        _write_best(context, model, best, system, drawn)
    elif file is None and prompt is None:
        _chat(model, system, drawn)
    else:
        _print_answers(model, prompt, file, system, count, drawn)


class _Best(NamedTuple):
    """What --best-of needs."""

    num_answers: int
    file: Path
    scorer: str
    output: Path


def _best_asked(
    number: int | None, file: Path | None, scorer: str | None, output: Path | None
) -> _Best | None:
    """Return the four options that go together, None where none of the three new ones is there."""
    if number is None and scorer is None and output is None:
        return None
    if number is None or file is None or scorer is None or output is None:
        given = {"--best-of": number, "--file": file, "--scorer": scorer, "--output": output}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ConfigError(
            f"missing {missing}: the best of N answers to every prompt of a file takes "
            "--best-of N --file FILE --scorer MODEL --output FILE.jsonl"
        )
    return _Best(number, file, scorer, output)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _resolve(model: str) -> "ModelRef":
    from rlhf_core.adapters.registry.registry import check_role
    from rlhf_flows.engine.references import resolve_model

    check_role(model, ("sft", "policy"), "only they answer prompts")
    return resolve_model(model)


def _print_answers(
    model: str,
    prompt: str | None,
    file: Path | None,
    system: str | None,
    count: int,
    drawn: Mapping[str, Any],
) -> None:
    from rlhf_core.rollout.chat import ChatModel, first_messages
    from rlhf_core.rollout.prompts import read_prompts
    from rlhf_core.rollout.sample import sample_responses
    from rlhf_flows.commands.tables import show_line

    if file is None:
        asked = [first_messages(system, str(prompt))]
    else:
        asked = [one.prompt for one in read_prompts(file, system)]
    chat = ChatModel.load(_resolve(model).path)
    responses = sample_responses(
        chat.model,
        chat.renderer.tokenizer,
        [conversation for conversation in asked for _ in range(count)],
        **drawn,
    )
    for number, conversation in enumerate(asked, 1):
        if file is not None:
            show_line(f"{number}. {conversation[-1].content}")
        for which, response in enumerate(responses[(number - 1) * count : number * count], 1):
            mark = f"{number}.{which}" if file is not None else f"{which}."
            numbered = count > 1 or file is not None
            show_line(f"{mark} {response.text}" if numbered else response.text)


def _write_best(
    typed: typer.Context, model: str, best: _Best, system: str | None, drawn: Mapping[str, Any]
) -> None:
    from rlhf_core.rollout.prompts import read_prompts
    from rlhf_core.stages.rejection_sampling import best_of, find_scorer, sample_best
    from rlhf_flows.engine.references import resolve_model

    settings = best_of(best.num_answers, **drawn)
    prompts = read_prompts(best.file, system)
    policy, scorer = _resolve(model), find_scorer(best.scorer, resolve_model)
    try:
        written = sample_best(policy, scorer, prompts, settings, best.output)
    except KeyboardInterrupt as stop:
        typer.echo(f"\nstopped; go on with: {typed_again(typed)}", err=True)
        raise typer.Exit(exit_status(stop)) from None
    _show_best(written, settings.num_answers, policy.uri, scorer.uri)


def _show_best(written: "BestAnswers", num_answers: int, policy: str, scorer: str) -> None:
    from rlhf_flows.commands.tables import show_line

    show_line(
        f"{written.demonstrations} demonstrations in {written.output}, each the best of "
        f"{num_answers} answers of {policy} by {scorer}"
    )
    show_line(f"mean score {written.score:.3f}, of a single answer {written.mean_score:.3f}")
    show_line(f"KL from {policy}: at most {written.kl_bound:.2f} nats per response")
    if written.left_out_file is not None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in written.left_out.items())
        show_line(f"left out of {written.prompts}: {reasons}; they are in {written.left_out_file}")
    show_line(f"train on them: rlhf run CONFIG --set data.demonstrations.path={written.output}")


def _chat(model: str, system: str | None, drawn: Mapping[str, Any]) -> None:
    from rlhf_core.rollout.chat import ChatModel, open_chat

    chat = ChatModel.load(_resolve(model).path)
    _talk(
        open_chat(
            chat,
            system,
            temperature=drawn["temperature"],
            max_tokens=drawn["max_new_tokens"],
            seed=drawn["seed"],
        )
    )


def _talk(answer: Callable[[str], str]) -> None:
    """Talk on the terminal until the person ends it."""
    from rlhf_flows.commands.tables import show_line

    number = 0
    while True:
        try:
            said = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if not said:
            continue
        number += 1
        try:
            show_line(f"{number}. {answer(said)}")
        except RlhfError as error:
            show_line(f"not answered: {error}")
