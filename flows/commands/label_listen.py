"""`rlhf label listen`: Label Studio says when there are votes, and the pull begins by itself."""

import signal
from typing import Annotated

import typer

from rlhf_core.errors import ConfigError
from rlhf_flows.commands.http import address_of, is_loopback, listen, make_server, own_names
from rlhf_flows.commands.options import ConfigPath, LogLevel, Overrides, begin, read_settings

GRACE_SECONDS = 5
"""So long an event that is being read may take when the receiver is ended."""


def listen_for_labels(
    config: ConfigPath,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8010,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's want a secret.")
    ] = "127.0.0.1",
    at_least: Annotated[
        float | None,
        typer.Option(
            "--at-least",
            metavar="FRACTION",
            help="Publish when this share of a collection's pairs has its votes and is in no "
            "version yet; default: feedback.rounds.min_labelled_fraction.",
        ),
    ] = None,
    overrides: Overrides = None,
    log_level: LogLevel = "info",
) -> None:
    """Receive Label Studio's webhook, and publish a collection when enough of it has its votes.

    Ends on Ctrl-C or SIGTERM, when a publication that was begun is done. RLHF_LABEL_SECRET, where
    it is set, is what the webhook has to send in the header X-RLHF-Secret.
    """
    begin(log_level)
    settings = read_settings(config, overrides).config
    from rlhf_core.adapters.labelling.label_webhook import SECRET, WebhookReceiver
    from rlhf_core.adapters.settings import load_settings
    from rlhf_flows.commands.collect import require_share
    from rlhf_flows.engine.label_listener import LabelListener
    from rlhf_flows.engine.prefect_server import check_prefect

    default = settings.feedback_settings().rounds.min_labelled_fraction
    share = default if at_least is None else require_share(at_least)
    listener = LabelListener(settings, share)
    check_prefect()
    listening = listen(host, port)
    given = load_settings().rlhf_label_secret
    if given is None and not is_loopback(listening):
        raise ConfigError(
            f"--host {host}: other machines can ask there; set RLHF_LABEL_SECRET, and the same in "
            f"the header {SECRET} of Label Studio's webhook"
        )
    secret = None if given is None else given.get_secret_value()
    server = make_server(
        WebhookReceiver(listener.notice, secret, own_names(listening)).app, GRACE_SECONDS
    )
    known = len(listener.collections())
    typer.echo(
        f"listening at {address_of(listening)}/ for {known} collections; published when "
        f"{share:g} of a collection has its votes",
        err=True,
    )
    listener.start()
    server.run(sockets=[listening])
    for number in (signal.SIGTERM, signal.SIGINT):  # whoever asks again means it
        signal.signal(number, signal.SIG_DFL)
    listener.end()
    typer.echo("ended", err=True)
