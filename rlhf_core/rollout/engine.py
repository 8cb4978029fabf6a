"""Many chats with one model at once: requests take turns, a token each."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rlhf_core.rollout.chat import ChatModel, ChatRequest, FinishReason, Reply

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""Requests that are answered at the same time; more of them wait until one has ended."""


@dataclass(frozen=True)
class Delta:
    """More of one answer."""

    index: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Update:
    """What has become of a request since the last update."""

    deltas: Sequence[Delta] = ()
    usage: tuple[int, int] | None = None
    """Tokens read and said; there with the last of it."""
    error: Exception | None = None
    """Why there is no answer; nothing follows."""

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.usage is not None or self.error is not None


@dataclass(eq=False)
class Ticket:
    """A request that is being answered."""

    request: ChatRequest
    on_update: Callable[[Update], None]
    """Called in the engine's thread."""
    cancelled: bool = False
    """Set by whoever no longer listens."""
    reply: Reply | None = None
    steps: Iterator[list[int]] = field(default_factory=lambda: iter(()))
    shown: dict[int, int] = field(default_factory=dict)


class ChatEngine:
    """A model that answers in a thread of its own, until it is closed.

    What is answered does not depend on what else is asked at the same time.

    Args:
        chat: the model; nobody else may use it.
    """

    def __init__(self, chat: ChatModel) -> None:
        self._chat = chat
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="chat-engine", daemon=True)
        self._thread.start()

    def submit(self, request: ChatRequest, on_update: Callable[[Update], None]) -> Ticket:
        """Begin to answer a request; ``on_update`` is called until something ``is_last``."""
        ticket = Ticket(request, on_update)
        self._waiting.put(ticket)
        return ticket

    def close(self, wait: float | None = None) -> None:
        """End when everything asked so far is answered; nothing may be asked any more."""
        self._waiting.put(None)
        self._thread.join(wait)

    def _work(self) -> None:
        active: list[Ticket] = []
        closing = False
        with self._chat.ready():
            while active or not closing:
                while not closing and len(active) < MOST_AT_ONCE:
                    if active and self._waiting.empty():
                        break
                    ticket = self._waiting.get()
                    closing = ticket is None
                    if ticket is not None:
                        active.append(ticket)
                active = [ticket for ticket in active if self._next_token(ticket)]

    def _next_token(self, ticket: Ticket) -> bool:
        """Take a request a token further; return whether there is more to come."""
        if ticket.cancelled:
            return False
        try:
            if ticket.reply is None:
                ticket.reply = Reply(self._chat, ticket.request)
                ticket.steps = iter(ticket.reply)
            changed = next(ticket.steps, None)
        except Exception as error:  # one request's fault must not end the others
            ticket.on_update(Update(error=error))
            return False
        if changed is None:
            ticket.on_update(Update(usage=_usage(ticket.reply)))
            return False
        if changed:
            ticket.on_update(Update([_delta(ticket, ticket.reply, index) for index in changed]))
        return True


def _delta(ticket: Ticket, reply: Reply, index: int) -> Delta:
    answer = reply.answers[index]
    begin = ticket.shown.get(index, 0)
    ticket.shown[index] = len(answer.text)
    return Delta(index, answer.text[begin:], answer.finish_reason)


def _usage(reply: Reply) -> tuple[int, int]:
    return len(reply.prompt_ids), sum(len(answer.token_ids) for answer in reply.answers)
