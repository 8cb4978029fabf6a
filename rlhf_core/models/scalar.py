"""Reward and value models: a causal trunk with one number per position.

On disk they are ``AutoModelForSequenceClassification`` with one label, so any tool loads them whose
transformers has that class for the architecture (Cohere, Granite and some others have none; here
they get transformers' generic one). The one thing other tools do not know is ``reward_shift`` in
config.json, a constant that this module subtracts from every score; differences between scores do
not depend on it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto import modeling_auto

from rlhf_core.errors import ModelError
from rlhf_core.models.build import build_model
from rlhf_core.models.causal import output_head
from rlhf_core.models.compute import unwrapped
from rlhf_core.models.known_ids import limit_ids
from rlhf_core.models.layout import hidden_states
from rlhf_core.models.library_output import hide_transformers_output
from rlhf_core.models.probe import choose_layout, require_repeatable
from rlhf_core.models.text import CausalClass, text_trunk
from rlhf_core.tokenization.batches import TokenBatch

_CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
_TRUNKS = modeling_auto.MODEL_MAPPING
_CLASSIFIERS = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def scalar_from_causal(
    directory: str | Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Put a fresh scalar head on the trunk of a causal model.

        head ~ Normal(0, 1 / sqrt(H + 1))

    Stiennon et al. (2020), arXiv:2009.01325, appendix; Huang et al. (2024), arXiv:2403.17031.

    Args:
        directory: the causal model, in ``save_pretrained`` layout, or a hub name.
        seed: of the head's random numbers; the global generator is left alone.
        dtype: of the weights.
        device: as ``model.device``; the head's numbers do not depend on it.
    """
    with torch.random.fork_rng(devices=[]), hide_transformers_output(reports=False):
        model = _load(directory, dtype, device, may_lack=("score.weight",))
    generator = torch.Generator().manual_seed(seed)
    weight = scalar_head(model).weight
    noise = torch.randn(weight.shape, generator=generator)
    with torch.no_grad():
        weight.copy_(noise / (weight.shape[1] + 1) ** 0.5)
    set_reward_shift(model, 0.0)
    return model


def load_scalar(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Load a reward model that ``save_model`` wrote.

    Args:
        directory: what ``save_model`` wrote.
        dtype: of the weights.
        device: as ``model.device``.

    Raises:
        ConfigError: the device is not there.
        ModelError: the directory holds no model with a scalar head.
    """
    model = _load(directory, dtype, device)
    if not hasattr(model.config, "reward_shift"):
        raise ModelError(
            f"{directory}: config.json has no reward_shift; not a reward model of ours"
        )
    return model


def sequence_scores(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Score of each sequence, read at its last token: [B] float32."""
    hidden = hidden_states(model, batch, batch.last_positions)
    return scores_from_hidden(model, hidden)


def token_values(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Value before each token that counts, read where that token is predicted: [M] float32."""
    hidden = hidden_states(model, batch, batch.predictor_positions)
    return scores_from_hidden(model, hidden)


def scores_from_hidden(model: nn.Module, hidden: Tensor) -> Tensor:
    """Scalar head on hidden states [M, H], less the shift: [M] float32."""
    scores: Tensor = scalar_head(model)(hidden).squeeze(-1).float()
    return scores - reward_shift(model)


def fresh_value_head(policy: nn.Module) -> nn.Linear:
    """Return a head that values every state at 0, so that it draws nothing at random."""
    weight, _ = output_head(policy)
    head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def value_of_hidden(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden states [M, H] to values [M], float32 under autocast too."""

    def values(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            out: Tensor = head(hidden.float()).squeeze(-1)
        return out

    return values


def scalar_head(model: nn.Module) -> nn.Linear:
    """Return the linear layer [1, H] that gives the score."""
    head = getattr(unwrapped(model), "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(f"{type(model).__name__} has no scalar head named 'score'")
    return head


def reward_shift(model: nn.Module) -> float:
    """Return the constant that is subtracted from every score."""
    return float(unwrapped(model).config.reward_shift)


def set_reward_shift(model: nn.Module, shift: float) -> None:
    """Store the constant in the configuration, and so in the saved files."""
    unwrapped(model).config.reward_shift = float(shift)


class _Classifier:
    """As ``AutoModelForSequenceClassification``, for every causal architecture.

    Of a composite model the text trunk alone is taken: a score needs no towers.
    """

    @staticmethod
    def from_pretrained(directory: str, *, config: PreTrainedConfig, **options: Any) -> Any:
        text = config.get_text_config()
        if text is config:
            if type(config) in _CAUSAL or type(config) in _TRUNKS:
                _classifier(config)
            return AutoModelForSequenceClassification.from_pretrained(
                directory, config=config, **options
            )
        kind = _classifier(text)
        composite, loaded = CausalClass.from_pretrained(directory, config=config, **options)
        trunk = text_trunk(composite)
        trunk.config.num_labels = 1
        with torch.device("meta"):
            model = kind(trunk.config)
        setattr(model, model.base_model_prefix, trunk)
        model.score = nn.Linear(text.hidden_size, 1, bias=False, dtype=options["dtype"])
        return model.eval(), loaded


def _classifier(config: PreTrainedConfig) -> Any:
    """Return the sequence classifier of a text configuration; transformers' generic one if need be.

    Raises:
        ValueError: transformers has no trunk for the configuration either.
    """
    kind = type(config)
    if kind in _CLASSIFIERS:
        return _CLASSIFIERS[kind]
    if kind not in _TRUNKS:
        raise ValueError(f"{config.model_type} has no trunk that a scalar head could be put on")
    with torch.device("meta"):
        make: Any = (_CAUSAL if kind in _CAUSAL else _TRUNKS)[kind]
        model = make(config)
    trunk = text_trunk(model)
    names = [name for name, child in model.named_children() if child is trunk]
    prefix = names[0] if names else "model"
    parent: Any = next(
        base for base in type(model).__mro__ if base.__name__.endswith("PreTrainedModel")
    )
    name = type(model).__name__.removesuffix("ForCausalLM").removesuffix("Model")
    name += "ForSequenceClassification"
    # In a module of its own it would be custom code to transformers, which leaves the buffers of
    # such code unwritten where a trunk computes them (Falcon H1).
    fields = {"config_class": kind, "base_model_prefix": prefix, "__module__": parent.__module__}
    generic = type(name, (GenericForSequenceClassification, parent), fields)
    AutoModelForSequenceClassification.register(kind, generic, exist_ok=True)
    return generic


def _load(
    directory: str | Path,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    may_lack: tuple[str, ...] = (),
) -> PreTrainedModel:
    model = build_model(
        _Classifier,
        directory,
        "as a reward model",
        dtype=dtype,
        device=device,
        may_lack=may_lack,
        num_labels=1,
    )
    scalar_head(model)
    limit_ids(model, directory)
    choose_layout(model)
    require_repeatable(model)
    _refuse_eos_as_pad(model)
    return model


def _refuse_eos_as_pad(model: PreTrainedModel) -> None:
    """Forget a PAD that is also EOS: tools that skip PAD would read the score before the EOS."""
    eos = model.config.eos_token_id
    if model.config.pad_token_id in (eos if isinstance(eos, list) else [eos]):
        model.config.pad_token_id = None
