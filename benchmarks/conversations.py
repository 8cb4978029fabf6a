"""Chat formats of published families, as prompts, as training examples and as saved models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from rlhf_core.models import load_causal, save_model
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import Demonstration, Message
from rlhf_core.stages.models.base_model import name_ends
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.tokenization import Renderer, load_tokenizer, make_renderer, published_ends
from tests.tokenization.families import FAMILIES, Family, save_family

QUESTION = (Message(role="user", content="Hello there"),)
DIALOGUE = (
    *QUESTION,
    Message(role="assistant", content="How are you?"),
    Message(role="user", content="Second: 7!"),
)
SYSTEM = (Message(role="system", content="One answer"), *QUESTION)
ANSWERS = ("Hello", "One answer, in two sentences.", "naïve ☕ 7", " two  spaces ", "line\nbreak")
NEW_TOKENS = 24


@dataclass(frozen=True)
class FamilyOutcome:
    """What one family came to: pairs are (how many agree, of how many)."""

    name: str
    turn_end: str
    eos: str
    bos: str
    prompts: tuple[int, int]
    """Prompt ids that are those of ``apply_chat_template``."""
    renderings: tuple[int, int]
    """Prompts and responses that are the template's whole rendering up to the end of the turn."""
    answers: tuple[int, int]
    """Greedy answers of ``generate`` from the saved folder that are the sampler's, ends too."""
    stops: tuple[str, ...]
    """What the saved generation_config.json names."""

    @property
    def works(self) -> bool:
        same = all(found == of for found, of in (self.prompts, self.renderings, self.answers))
        return same and self.turn_end in self.stops


def measure_family(name: str, folder: Path) -> FamilyOutcome:
    """Compare a family's prompts, examples and a saved tiny model with transformers.

    Args:
        name: of ``FAMILIES``.
        folder: receives the models.
    """
    family, base = FAMILIES[name], save_family(name, folder / "base")
    renderer = make_renderer(load_tokenizer(base), published_ends(base))
    talks = [QUESTION, DIALOGUE, *([SYSTEM] if family.system else [])]
    prompts = [
        renderer.prompt_ids(talk).tolist() == _template_ids(renderer, talk, None) for talk in talks
    ]
    renderings = [_is_rendering(renderer, talk, text) for talk in talks for text in ANSWERS]
    model = load_causal(base)
    name_ends(model, renderer)
    save_model(model, renderer.tokenizer, folder / "saved")
    saved = model_renderer(folder / "saved")
    answers = _answers_agree(folder / "saved", talks)
    return FamilyOutcome(
        name=name,
        turn_end=family.turn_end,
        eos=family.eos,
        bos=_bos(family, renderer),
        prompts=(sum(prompts), len(prompts)),
        renderings=(sum(renderings), len(renderings)),
        answers=(sum(answers), len(answers)),
        stops=tuple(saved.tokenizer.convert_ids_to_tokens(list(saved.end_ids))),
    )


def _template_ids(renderer: Renderer, talk: Any, answer: str | None) -> list[int]:
    messages = [message.model_dump() for message in talk]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    ids: list[int] = renderer.tokenizer.apply_chat_template(
        messages, add_generation_prompt=answer is None
    )["input_ids"]
    return ids


def _is_rendering(renderer: Renderer, talk: Any, answer: str) -> bool:
    example = renderer.demonstration(
        Demonstration(demonstration_id="d", prompt=talk, response=answer)
    )
    ids = [*example.prompt_ids.tolist(), *example.response_ids.tolist()]
    whole = _template_ids(renderer, talk, answer)
    if renderer.turns.is_written:
        return whole[: len(ids)] == ids
    # The template leaves an answer open; the end is ours, what stands before it is the template's.
    return whole[: len(ids) - 1] == ids[:-1]


@torch.no_grad()
def _answers_agree(directory: Path, talks: Any) -> list[bool]:
    model, plain = load_causal(directory), hf.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    ours = sample_responses(
        model, tokenizer, talks, max_new_tokens=NEW_TOKENS, temperature=0.0, seed=0
    )
    agree = []
    for talk, answer in zip(talks, ours, strict=True):
        tokens = tokenizer.apply_chat_template(
            [message.model_dump() for message in talk],
            add_generation_prompt=True,
            return_tensors="pt",
        )
        written = plain.generate(**tokens, do_sample=False, max_new_tokens=NEW_TOKENS)
        plain_ids = written[0, tokens["input_ids"].shape[1] :].tolist()
        agree.append(plain_ids == list(answer.token_ids))
    return agree


def _bos(family: Family, renderer: Renderer) -> str:
    if family.bos is None:
        return "none"
    bos = renderer.tokenizer.convert_tokens_to_ids(family.bos)
    count = renderer.prompt_ids(DIALOGUE).tolist().count(bos)
    return f"`{family.bos}`, {'not written' if count == 0 else f'{count} in a dialogue'}"
