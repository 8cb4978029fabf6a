"""`rlhf serve`, `rlhf export`: what was promoted, for those who use it."""

import logging
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_core.errors import ConfigError, RlhfError
from rlhf_flows.commands.http import address_of, is_loopback, listen, make_server, own_names
from rlhf_flows.commands.options import LogLevel, ModelArgument, begin

if TYPE_CHECKING:
    from rlhf_core.adapters.serving.chat_server import Found
    from rlhf_core.adapters.serving.kept_answers import KeptAnswers

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30
"""So long answers that were begun may take when the server is ended."""


class Engine(StrEnum):
    """What computes the answers."""

    AUTO = "auto"
    RLHF = "rlhf"
    VLLM = "vllm"


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command, example in (
        (serve, "rlhf serve models:/rlhf-policy@champion --port 8000"),
        (export, "rlhf export models:/rlhf-policy@champion exported"),
    ):
        app.command(epilog=f"Example: {example}")(command)


def export(
    model: ModelArgument,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="New or empty folder.", show_default=False)
    ],
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Push it to the hub, HF_ENDPOINT's, as well."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see what is made on the hub.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="For the card; default: what the base model's card names."),
    ] = None,
    log_level: LogLevel = "warning",
) -> None:
    """Write a model as a plain Hugging Face folder with a model card.

    The card says data version, gates, measurements, limits and the licence of the base model.
    """
    begin(log_level)
    from rlhf_core.adapters.hub import push_folder
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.schema.model_uri import is_model_uri
    from rlhf_core.stages.export import export_model, require_free
    from rlhf_flows.commands.tables import show_line
    from rlhf_flows.engine.references import resolve_model

    require_free(directory)
    if is_model_uri(model):
        check_server()
    found = resolve_model(model)
    export_model(found, directory, licence)
    show_line(f"exported {found.uri} to {directory}")
    show_line(f"model card: {directory / 'README.md'}")
    if push is not None:
        show_line(f"pushed to {push_folder(directory, push, private=not public)}")


def serve(
    model: ModelArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: every one of this machine.")
    ] = "127.0.0.1",
    engine: Annotated[
        Engine, typer.Option(help="auto: vLLM where it is installed and there is a GPU.")
    ] = Engine.AUTO,
    follow: Annotated[
        bool, typer.Option("--follow", help="Load the new model when the alias moves.")
    ] = False,
    look_every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often the alias is looked at.")
    ] = 10.0,
    feedback: Annotated[
        Path | None,
        typer.Option(
            "--feedback",
            metavar="FILE|DIR",
            help="Keep prompts, answers and thumbs (POST /v1/feedback) there; off by default.",
        ),
    ] = None,
    log_level: LogLevel = "warning",
) -> None:
    """Serve a model to clients of the OpenAI API: chat completions, streamed or whole.

    Ends on Ctrl-C or SIGTERM when what it is answering is answered. RLHF_SERVE_API_KEY, where it
    is set, is what clients have to send.
    """
    begin(log_level)
    from rlhf_core.adapters.tracking.tracking import check_server
    from rlhf_core.schema.model_uri import is_model_uri

    if is_model_uri(model):
        check_server()
    found = _find(model)
    by_vllm = engine is Engine.VLLM or (engine is Engine.AUTO and _has_gpu() and not feedback)
    line = _vllm_line(model, found, host, port)
    if by_vllm and (shutil.which("vllm") or engine is Engine.VLLM):
        if feedback:
            raise ConfigError(
                "--feedback: vLLM keeps none; serve with --engine rlhf, or leave it out"
            )
        if follow:
            raise ConfigError(
                "--follow: vLLM serves one model as long as it lives; leave it out, and restart "
                "when the alias has moved"
            )
        raise typer.Exit(_serve_by_vllm(line, model, found, look_every))
    if by_vllm:
        typer.echo(f"this machine has a GPU; with vLLM installed: {shlex.join(line)}")
    listening = listen(host, port)
    _require_key(listening, host, keeps=feedback is not None)
    kept = None if feedback is None else _keep_in(feedback)
    _serve_ourselves(model, found, listening, follow=follow, look_every=look_every, kept=kept)


def _require_key(listening: socket.socket, host: str, *, keeps: bool) -> None:
    """Let strangers rate no answers: what is kept may become training data."""
    from rlhf_core.adapters.settings import load_settings

    if load_settings().rlhf_serve_api_key is not None or is_loopback(listening):
        return
    if keeps:
        raise ConfigError(
            f"--host {host} with --feedback: whoever reaches this machine could write what is "
            "trained on; set RLHF_SERVE_API_KEY"
        )
    typer.echo(
        f"--host {host}: whoever reaches this machine may ask; RLHF_SERVE_API_KEY asks for a key",
        err=True,
    )


def _keep_in(place: Path) -> "KeptAnswers":
    from rlhf_core.adapters.serving.kept_answers import KeptAnswers

    kept = KeptAnswers(place)
    typer.echo(
        f"--feedback: every prompt and answer is kept in {place}, for whoever may read that; people"
        " rate answers by POST /v1/feedback",
        err=True,
    )
    return kept


def _find(reference: str, known: str | None = None) -> "Found":
    """Return the model that a reference stands for now; its files only where it is not ``known``.

    Args:
        reference: of a model that answers prompts.
        known: URI of the model that is served already.
    """
    from rlhf_core.adapters.registry.registry import check_role
    from rlhf_core.adapters.registry.versions import find_version
    from rlhf_core.adapters.serving.chat_server import Found
    from rlhf_core.schema.model_uri import version_uri
    from rlhf_flows.engine.references import resolve_model

    if known is not None:
        version = find_version(reference)
        uri = version_uri(version.name, version.version)
        if uri == known:
            return Found(uri, version.name, "", Path())
    check_role(reference, ("sft", "policy"), "only they answer prompts")
    model = resolve_model(reference)
    return Found(model.uri, model.name, model.sha256, model.path)


def _serve_ourselves(
    model: str,
    found: "Found",
    listening: socket.socket,
    *,
    follow: bool,
    look_every: float,
    kept: "KeptAnswers | None",
) -> None:
    from rlhf_core.adapters.serving.chat_server import ApiServer, ServedModel
    from rlhf_core.adapters.settings import load_settings

    served = ServedModel(model, found)
    key = load_settings().rlhf_serve_api_key
    secret = None if key is None else key.get_secret_value()
    server = make_server(ApiServer(served, secret, own_names(listening), kept).app, GRACE_SECONDS)

    def moved(now: "Found") -> None:
        if not follow:
            _say_moved(model, served.found.uri, now.uri, "restart, or serve with --follow")
            served.now = now.uri
            return
        typer.echo(f"{model} is now {now.uri}; loading it", err=True)
        served.replace(now)
        typer.echo(f"serving {now.name} ({now.uri})", err=True)

    typer.echo(f"serving {found.name} ({found.uri}) at {address_of(listening)}/v1", err=True)
    with _Watch(model, found, look_every, moved):
        server.run(sockets=[listening])
    typer.echo("ended", err=True)


def _serve_by_vllm(line: list[str], model: str, found: "Found", look_every: float) -> int:
    """Run vLLM until it ends or this command is ended; return its status."""
    typer.echo(shlex.join(line))
    if shutil.which(line[0]) is None:
        raise ConfigError(
            "vLLM is not installed here; install it in an environment of its own (it asks for "
            "another torch), put its commands on PATH, or run the line above there"
        )

    def moved(now: "Found") -> None:
        _say_moved(model, found.uri, now.uri, "restart")

    process = subprocess.Popen(line)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.terminate())
    with _Watch(model, found, look_every, moved):
        status = process.wait()
    return 0 if status in (0, -signal.SIGTERM) else 2


def _say_moved(model: str, served: str, now: str, advice: str) -> None:
    typer.echo(f"{model} is now {now}; still serving {served}: {advice}", err=True)


def _vllm_line(model: str, found: "Found", host: str, port: int) -> list[str]:
    """Return the command that serves the model by vLLM, under every name of it.

    vLLM takes ends, precision and chat template from the model's own folder.
    """
    from rlhf_core.schema.model_uri import without_scheme

    names = dict.fromkeys((found.name, model, without_scheme(model), found.uri))
    where = ["--host", host, "--port", str(port)]
    return ["vllm", "serve", str(found.path), "--served-model-name", *names, *where]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class _Watch:
    """Looks at a reference now and then, in a thread, and tells when it stands for another model.

    Args:
        model: the reference; only an alias can move.
        found: what it stands for.
        every: seconds between looks.
        moved: called with the other model; if it fails it is called again.
    """

    def __init__(
        self, model: str, found: "Found", every: float, moved: Callable[["Found"], None]
    ) -> None:
        self._model, self._known, self._every, self._moved = model, found.uri, every, moved
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alias", daemon=True)

    def __enter__(self) -> None:
        if "@" in self._model:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self._every)

    def _work(self) -> None:
        problem = ""
        while not self._ended.wait(self._every):
            try:
                now = _find(self._model, known=self._known)
                if now.uri != self._known:
                    self._moved(now)
                    self._known = now.uri
                problem = ""
            except Exception as error:  # files, memory, libraries: or nobody would look again
                found = str(error) if isinstance(error, RlhfError) else f"{error!r}"
                if found != problem:
                    typer.echo(f"{self._model} cannot be followed now: {found}", err=True)
                problem = found
