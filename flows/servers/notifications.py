"""`rlhf notify`: who is notified of decisions, and of runs that wait for a person or died.

Prefect's own blocks and automations do it: its server sends the messages, whoever runs the flows.
"""

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rlhf_core.errors import ConfigError, OrchestrationError
from rlhf_flows.engine.prefect_server import check_prefect

if TYPE_CHECKING:
    from prefect.blocks.abstract import NotificationBlock
    from prefect.events.schemas.automations import EventTrigger

EXAMPLES = (
    "https://hooks.slack.com/services/A/B/C for Slack, mailtos://USER:PASSWORD@HOST?to=ADDRESS for "
    "e-mail, any other http(s) address for JSON with subject and body"
)
DECISIONS = ("rlhf.gate-failed", "rlhf.kl-spike", "rlhf.promoted")
STATES = ("Suspended", "WAITING", "Failed", "TimedOut", "Crashed")
"""Names of states: somebody is awaited (to approve, to label), or the run died."""
FLOWS = ("rlhf-pipeline", "rlhf-collect", "rlhf-rounds")
"""Their states are notified; a stage that fails in a pipeline fails that as well."""
SUBJECT = "rlhf: {{ event.event | replace('rlhf.', '') | replace('prefect.flow-run.', 'run ') }}"
ABOUT_DECISION = "{% for name, said in event.payload.items() %}{{ name }}: {{ said }}\n{% endfor %}"
ABOUT_RUN = "{{ flow_run.name }}: {{ flow_run.state.message or 'waits' }}\n{{ flow_run | ui_url }}"
TRIAL = "Decisions of the gates, and runs that wait for a person or died, are notified here."


def notify(address: str, name: str, *, trial: bool) -> None:
    """Let the Prefect server of PREFECT_API_URL tell ``address``; repeated, it replaces that.

    Args:
        address: Slack's, a web address, or one of Apprise's, as ``mailtos://...``.
        name: of the receiver; there may be several.
        trial: send a first message from here, before anything is set up.

    Raises:
        ConfigError: nothing can be sent to such an address.
        OrchestrationError: the trial did not arrive, or the server does not answer.
    """
    block = _block(address, name)
    check_prefect()
    if trial:
        _try(block, address)
    from prefect.client.orchestration import get_client
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore

    saved = block.save(f"rlhf-{name}", overwrite=True)
    triggers = {
        f"rlhf: tell {name} of decisions": (_decisions(), ABOUT_DECISION),
        f"rlhf: tell {name} of runs that wait or died": (_runs(), ABOUT_RUN),
    }
    with get_client(sync_client=True) as client:
        for title, (trigger, body) in triggers.items():
            action = SendNotification(block_document_id=saved, subject=SUBJECT, body=body)
            made = AutomationCore(name=title, trigger=trigger, actions=[action])
            if not (found := client.read_automations_by_name(title)):
                client.create_automation(made)
            for automation in found:  # what a person switched off stays so
                kept = made.model_copy(update={"enabled": automation.enabled})
                client.update_automation(automation.id, kept)


def _block(address: str, name: str) -> "NotificationBlock":
    """Return the block of Prefect that sends to an address; both keep it secret."""
    from apprise import Apprise
    from prefect.blocks.fields import SecretDict
    from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
    from pydantic import SecretStr

    log = logging.getLogger("apprise")
    log.disabled = True  # it writes the whole of an address that it does not know
    try:
        is_known = Apprise().add(address)
    finally:
        log.disabled = False
    if is_known:  # this block sends to whatever Apprise knows, mail included
        return SlackWebhook(url=SecretStr(address))
    if urlsplit(address).scheme in ("http", "https") and urlsplit(address).hostname:
        return CustomWebhookNotificationBlock(
            name=name,
            url="{{address}}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
            headers=None,
            secrets=SecretDict({"address": address}),
        )
    raise ConfigError(f"{_shown(address)}: nothing can be sent there; give {EXAMPLES}")


def _try(block: "NotificationBlock", address: str) -> None:
    import httpx
    from prefect.blocks.abstract import NotificationError

    async def send() -> None:
        with block.raise_on_failure():
            await block.notify(TRIAL, "rlhf: notifications")

    try:
        asyncio.run(send())
    except (NotificationError, httpx.HTTPError) as error:
        raise OrchestrationError(
            f"{_shown(address)}: the first message was not taken ({_reason(error)}); correct the "
            "address, or give --no-trial where only the server can reach it"
        ) from error


def _reason(error: Exception) -> str:
    """Say why without the address, whose path may be a password."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"status {answer.status_code}"
    return " ".join(str(getattr(error, "log", "") or type(error).__name__).split()[:40])


def _shown(address: str) -> str:
    """Return how the address begins; the rest of it, user and path, is secret."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname}/..." if parts.hostname else "the address"


def _decisions() -> "EventTrigger":
    return _trigger(DECISIONS, {"prefect.resource.id": "rlhf.*"}, {})


def _runs() -> "EventTrigger":
    return _trigger(
        tuple(f"prefect.flow-run.{state}" for state in STATES),
        {"prefect.resource.id": "prefect.flow-run.*"},
        {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)},
    )


def _trigger(
    events: tuple[str, ...], match: dict[str, str], related: dict[str, str | list[str]]
) -> "EventTrigger":
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    return EventTrigger(
        expect=set(events),
        match=ResourceSpecification(match),
        match_related=ResourceSpecification(related),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
