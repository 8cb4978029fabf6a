"""How `mlflow.pyfunc` loads a registered model: conversations in, answers or raw scores out.

The MLmodel file of every version, of earlier builds too, names this module: it stays where it is,
beside the folders. MLflow calls ``_load_pyfunc`` with the model's folder.
"""

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from rlhf_core.adapters.registry.mlflow_model import OPTIONS
from rlhf_core.adapters.serving.chat_requests import ChatOptions, usage
from rlhf_core.errors import DataError, RlhfError
from rlhf_core.models import load_scalar
from rlhf_core.models.scalar import sequence_scores
from rlhf_core.rollout.chat import ChatModel, ChatRequest, Reply
from rlhf_core.schema import Conversation, Message
from rlhf_core.storage.model_folders import folder_kind
from rlhf_core.tokenization import load_tokenizer, make_renderer, pack_prompts

if TYPE_CHECKING:
    import pandas as pd


def _load_pyfunc(path: str) -> "ChatPredictor | ScorePredictor":
    """Load the model of an MLflow folder."""
    directory = Path(path)
    return (ScorePredictor if folder_kind(directory) == "scalar" else ChatPredictor)(directory)


class ChatPredictor:
    """Answers conversations, each a row, in the form of a chat completion.

    Args:
        directory: of a model that answers.
    """

    def __init__(self, directory: Path) -> None:
        self.chat = ChatModel.load(directory)
        self.name = _name_of(directory)
        self._turn = threading.Lock()

    def predict(
        self, model_input: "pd.DataFrame | dict[str, Any]", params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer every row.

        Args:
            model_input: column ``messages``, and options of the request, as the signature says.
            params: options for all rows; those of a row come first.

        Returns:
            One chat completion a row.

        Raises:
            MlflowException: a row is no conversation, or asks for what there is not.
        """
        with _refused():
            return [self._answer({**_given(params), **row}) for row in _rows(model_input)]

    def _answer(self, row: Mapping[str, Any]) -> dict[str, Any]:
        request = chat_request(row)
        with self._turn:
            return completion(self.chat.answer(request), self.name)


class ScorePredictor:
    """Scores the last turn of conversations, in the reward model's own unit.

    Args:
        directory: of a reward model or judge.
    """

    def __init__(self, directory: Path) -> None:
        self.model = load_scalar(directory, device="auto")
        self.renderer = make_renderer(load_tokenizer(directory))

    def predict(
        self, model_input: "pd.DataFrame | dict[str, Any]", params: dict[str, Any] | None = None
    ) -> "pd.DataFrame":
        """Score every row.

        Args:
            model_input: column ``messages``; the last turn is the assistant's.
            params: there are none.

        Returns:
            Column ``score``; differences between scores of one prompt are log odds.

        Raises:
            MlflowException: a row is no conversation, or does not end with an answer.
        """
        import pandas as pd

        del params
        with _refused():
            return pd.DataFrame({"score": [self._score(row) for row in _rows(model_input)]})

    @torch.inference_mode()
    def _score(self, row: Mapping[str, Any]) -> float:
        messages = conversation(row.get("messages"))
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError("messages: the last turn is scored, expected one of the assistant")
        opened = self.renderer.open(messages[:-1])
        ids = [*opened.ids, *self.renderer.answer_ids(opened, messages[-1].content)]
        batch = pack_prompts([torch.tensor(ids, dtype=torch.int32).numpy()])
        return float(sequence_scores(self.model, batch.to(self.model.device))[0])


def chat_request(row: Mapping[str, Any]) -> ChatRequest:
    """Read a chat request; what it does not say is as OpenAI has it.

    Raises:
        DataError: says which field, and what was expected.
    """
    try:
        options = ChatOptions.model_validate({name: row.get(name) for name, _ in OPTIONS})
    except ValidationError as error:
        first = error.errors()[0]
        expected = first["msg"].removeprefix("Input should be ")
        raise DataError(
            f"{first['loc'][0]}: {first['input']} is not possible, expected {expected}"
        ) from error
    stop = row.get("stop")
    if stop is not None and not isinstance(stop, str):
        stop = [str(text) for text in stop]
    return options.about(conversation(row.get("messages")), stop)


def conversation(messages: object) -> Conversation:
    """Read the turns of a request.

    Raises:
        DataError: they are no list of turns with ``role`` and ``content``.
    """
    if not isinstance(messages, Iterable) or isinstance(messages, str | Mapping):
        raise DataError("messages: expected a list of objects with role and content")
    turns = []
    for number, turn in enumerate(messages):
        try:
            turns.append(Message.model_validate(dict(turn)))
        except (ValidationError, TypeError, ValueError) as error:
            raise DataError(
                f"messages[{number}]: expected an object with role (system, user or assistant) and "
                f"content, a text; found {turn!r:.80}"
            ) from error
    if not turns:
        raise DataError("messages: expected at least one turn")
    return tuple(turns)


def completion(reply: Reply, name: str) -> dict[str, Any]:
    """Return answers in the form of OpenAI's chat completion."""
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(reply.answers)
        ],
        "usage": usage(
            len(reply.prompt_ids), sum(len(answer.token_ids) for answer in reply.answers)
        ),
    }


def _name_of(directory: Path) -> str:
    from mlflow.models import Model

    said = Model.load(str(directory)).metadata or {}
    return str(said.get("name", directory.name))


@contextmanager
def _refused() -> Iterator[None]:
    """Give MLflow's server an error whose message it shows; of others it shows the traceback."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except RlhfError as error:
        raise MlflowException.invalid_parameter_value(str(error)) from error


def _rows(model_input: Any) -> Sequence[Mapping[str, Any]]:
    """Return the rows of what MLflow passes: a table, a request, or several."""
    if isinstance(model_input, Mapping):
        return [_given(model_input)]
    if isinstance(model_input, list):
        return [_given(row) for row in model_input]
    return [_given(row) for row in model_input.to_dict(orient="records")]


def _given(row: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a row says; in a table what was left out is there as a missing value."""
    return {
        str(name): value
        for name, value in (row or {}).items()
        if value is not None and value == value
    }
