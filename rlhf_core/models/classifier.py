"""Reward models from elsewhere: ``AutoModelForSequenceClassification`` with one score."""

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_core.errors import ModelError
from rlhf_core.models.device import choose_device, device_of
from rlhf_core.models.files import files_sha256, weights_sha256
from rlhf_core.models.library_output import hide_transformers_output
from rlhf_core.models.text import num_positions
from rlhf_core.schema import Conversation, Message, ModelRef
from rlhf_core.storage.model_folders import folder_kind
from rlhf_core.tokenization.model_folder import loading_options, require_enclosed, tokenizer_files
from rlhf_core.tokenization.template import reads_clock, with_date
from rlhf_core.tokenization.turns import control_pattern, without_control

_DAY = date(2024, 7, 26)
"""What a template that reads the clock is shown: the day that Llama 3's write where there is no
clock. A score that changed at midnight could not be repeated."""


def outside_model(key: str, model: str, revision: str | None = None) -> ModelRef:
    """Return the identity of a reward model that no registry knows: its weights are.

    Args:
        key: of the setting that names it, for messages.
        model: folder or hub name.
        revision: of the hub's files; None takes the newest.

    Raises:
        ModelError: there is no such reward model.
    """
    folder = classifier_folder(key, model, revision)
    require_enclosed(folder)
    return ModelRef(
        name=model,
        version=revision or "local",
        uri=model,
        path=folder,
        sha256=classifier_sha256(folder),
        kind="classifier",
        run_id="",
    )


def classifier_folder(key: str, model: str, revision: str | None) -> Path:
    """Return the folder of a reward model: the one named, or the hub's, downloaded once.

    Raises:
        ModelError: there is no such folder, and the hub does not give one.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision))
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{key}: no folder {model}, and the hub gives no model of that name: {said}"
        ) from error


def classifier_sha256(folder: Path) -> str:
    """Return a digest of what decides its scores: weights, configuration, tokenizer and template.

    Of our own models it is that of the weights, by which the registry knows them.

    Raises:
        ModelError: there are no weights.
    """
    if folder_kind(folder) == "scalar":
        return weights_sha256(folder)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise ModelError(f"{folder}: no weights in it; expected *.safetensors")
    return files_sha256([*weights, folder / "config.json", *tokenizer_files(folder)])


class Classifier:
    """A reward model with its own tokenizer and template."""

    def __init__(self, folder: Path, *, max_length: int | None, device: str = "cpu") -> None:
        """Load it.

        Args:
            folder: in ``save_pretrained`` layout.
            max_length: tokens of the longest conversation; None takes the model's positions.
            device: as ``model.device``.

        Raises:
            ModelError: it cannot be loaded, has no tokenizer, or gives another number of scores.
        """
        self._folder = folder
        options = loading_options(folder, None)
        try:
            with hide_transformers_output():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype="auto", output_loading_info=True, **options
                )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"{folder}: no reward model that can be loaded: {said}") from error
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ModelError(f"{folder}: its files have no weights for {missing}; no reward model")
        if model.config.num_labels != 1:
            raise ModelError(
                f"{folder}: gives {model.config.num_labels} scores; expected one that says how "
                "good an answer is (num_labels 1)"
            )
        template = self._tokenizer.chat_template
        if template and reads_clock(template):
            self._tokenizer.chat_template = with_date(template, _DAY)
        self._control = control_pattern(self._tokenizer)
        self._model = model.eval().to(choose_device(device))
        self.max_length: int | None = max_length or num_positions(model.config)

    @torch.inference_mode()
    def scores(
        self, prompts: Sequence[Conversation], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """Score each answer, [n]; NaN where the conversation is too long to be read."""
        return np.array([self._score(*row) for row in zip(prompts, answers, strict=True)])

    def _score(self, prompt: Conversation, answer: str) -> float:
        read = partial(without_control, control=self._control)
        asked = [turn.model_copy(update={"content": read(turn.content)}) for turn in prompt]
        inputs = self._inputs(asked, read(answer))
        if self.max_length is not None and inputs["input_ids"].shape[1] > self.max_length:
            return float("nan")
        logits = self._model(
            **{name: part.to(device_of(self._model)) for name, part in inputs.items()}
        )
        return float(logits.logits[0, 0].float())

    def _inputs(self, prompt: Sequence[Message], answer: str) -> dict[str, torch.Tensor]:
        """Render by its template; a tokenizer without one gets prompt and answer as two texts."""
        turns = [message.model_dump() for message in prompt]
        if self._tokenizer.chat_template:
            try:
                rendered = self._tokenizer.apply_chat_template(
                    [*turns, {"role": "assistant", "content": answer}],
                    return_tensors="pt",
                    return_dict=True,
                )
            except Exception as error:  # a template raises what it likes
                raise ModelError(
                    f"{self._folder}: its chat template refuses a conversation: {error}"
                ) from error
            return dict(rendered)
        asked = turns[0]["content"] if len(turns) == 1 else _as_text(turns)
        return dict(self._tokenizer(asked, answer, return_tensors="pt"))


def _as_text(turns: Sequence[dict[str, str]]) -> str:
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
