"""Chat with a model as its users do: whole answers or pieces of them, several requests at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from rlhf_core.errors import NoRoomError
from rlhf_core.models import load_causal
from rlhf_core.models.compute import unwrapped
from rlhf_core.models.text import num_positions, text_config
from rlhf_core.rollout.decode import Sampling, Step, decode_steps, ready_to_decode
from rlhf_core.rollout.sampling import sequence_uniforms
from rlhf_core.schema import Conversation, Message
from rlhf_core.tokenization import Renderer, load_tokenizer, make_renderer, token_ids

DEFAULT_MAX_TOKENS = 1024
"""Longest answer where a request names none, as far as the model has room for it."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class ChatRequest:
    """What one request asks for."""

    messages: Conversation
    """Ends with the turn that is to be answered."""
    num_answers: int = 1
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    seed: int = 0
    """The same request with the same seed has the same answers, whatever else is asked."""
    max_tokens: int | None = None
    """None: what the model has room for, ``DEFAULT_MAX_TOKENS`` at most."""
    stop: Sequence[str] = ()
    """Texts that end an answer; they are no part of it."""


@dataclass
class Answer:
    """One answer, as far as it has come."""

    text: str = ""
    """What may be shown: more of it only ever follows."""
    finish_reason: FinishReason | None = None
    """``stop``: it ended by itself or at a stop text. ``length``: at ``max_tokens``. None: yet."""
    token_ids: list[int] = field(default_factory=list)


class Reply:
    """The answers to one request; iterated, they come a token at a time.

    Args:
        chat: who answers, within ``ChatModel.ready``.
        request: what is asked.

    Raises:
        DataError: the conversation cannot be rendered.
        NoRoomError: it leaves no room for the answer.
    """

    def __init__(self, chat: "ChatModel", request: ChatRequest) -> None:
        self.renderer = chat.renderer
        self.prompt_ids = self.renderer.prompt_ids(request.messages)
        self.stop = [text for text in request.stop if text]
        self.max_tokens = chat.require_room(len(self.prompt_ids), request.max_tokens)
        self.answers = [Answer() for _ in range(request.num_answers)]
        self._steps = decode_steps(
            chat.model,
            self.prompt_ids,
            uniforms=sequence_uniforms(request.seed, range(request.num_answers), self.max_tokens),
            sampling=Sampling(request.temperature, self.renderer.end_ids, top_p=request.top_p),
        )

    def __iter__(self) -> Iterator[list[int]]:
        """Yield, after every token, which answers have more to show or have ended."""
        for step in self._steps:
            yield self._take(step)

    def _take(self, step: Step) -> list[int]:
        changed = []
        for place, (row, token) in enumerate(
            zip(step.rows.tolist(), step.tokens.tolist(), strict=True)
        ):
            answer, before = self.answers[row], self.answers[row].text
            answer.token_ids.append(token)
            said = self.renderer.response_text(answer.token_ids)
            cut = min((at for text in self.stop if (at := said.find(text)) >= 0), default=None)
            if cut is not None:
                answer.text, answer.finish_reason = said[:cut], "stop"
                step.ended[place] = True
            elif step.ended[place]:
                answer.text, answer.finish_reason = said, "stop"
            elif len(answer.token_ids) == self.max_tokens:
                answer.text, answer.finish_reason = said, "length"
            else:
                sure = self._sure_of(said)
                answer.text = sure if sure.startswith(before) else before
            if answer.text != before or answer.finish_reason:
                changed.append(row)
        return changed

    def _sure_of(self, said: str) -> str:
        """Return what no later token changes: no half a letter, no begin of what is cut off."""
        held = len(said) - len(said.rstrip("\ufffd"))
        for text in (*self.stop, self.renderer.shown[1]):
            for length in range(min(len(text), len(said)), held, -1):
                if said.endswith(text[:length]):
                    held = length
                    break
        return said[: len(said) - held]


class ChatModel:
    """A causal model with its tokenizer, loaded to answer.

    Args:
        model: causal model.
        renderer: of its tokenizer.
    """

    def __init__(self, model: nn.Module, renderer: Renderer) -> None:
        self.model = model
        self.renderer = renderer

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> "ChatModel":
        """Load a model folder.

        Raises:
            ModelError: it holds no causal model with a chat template.
        """
        model = load_causal(directory, device=device)
        generation = getattr(unwrapped(model), "generation_config", None)
        ends = token_ids(getattr(generation, "eos_token_id", None), "eos_token_id")
        return cls(model, make_renderer(load_tokenizer(directory), ends))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Let replies be made and read inside the block, in this thread."""
        with ready_to_decode(self.model):
            yield

    def require_room(self, prompt_tokens: int, wanted: int | None) -> int:
        """Return how many tokens an answer may have.

        Raises:
            NoRoomError: prompt and answer do not fit the model's positions.
        """
        limit = num_positions(text_config(self.model))
        if limit is None:
            return wanted or DEFAULT_MAX_TOKENS
        room = limit - prompt_tokens
        if room < (wanted or 1):
            raise NoRoomError(
                f"this model's maximum context length is {limit} tokens; the conversation has "
                f"{prompt_tokens}, and {wanted or 1} were asked for; shorten one of them"
            )
        return wanted or min(room, DEFAULT_MAX_TOKENS)

    def answer(
        self, request: ChatRequest, heard: Callable[[Reply, Iterable[int]], None] | None = None
    ) -> Reply:
        """Answer a request; return when all of its answers have ended.

        Args:
            request: what is asked.
            heard: called after every token with the answers that have more to show.

        Raises:
            DataError: as ``Reply``.
        """
        with self.ready():
            reply = Reply(self, request)
            for changed in reply:
                if heard is not None:
                    heard(reply, changed)
        return reply


def first_messages(system: str | None, text: str) -> Conversation:
    """Return a conversation of one question, after the system message where there is one."""
    before = () if system is None else (Message(role="system", content=system),)
    return (*before, Message(role="user", content=text))


def open_chat(
    chat: ChatModel, system: str | None, *, temperature: float, max_tokens: int, seed: int
) -> Callable[[str], str]:
    """Return what answers the next thing a person says, and remembers the conversation."""
    said: list[Message] = []

    def answer(text: str) -> str:
        asked = (
            (*said, Message(role="user", content=text)) if said else first_messages(system, text)
        )
        request = ChatRequest(
            asked, temperature=temperature, seed=seed + len(said), max_tokens=max_tokens
        )
        (given,) = chat.answer(request).answers
        said[:] = [*asked, Message(role="assistant", content=given.text)]
        return given.text

    return answer
