"""A few tokens through a fresh model: how it can run, and whether training may rely on it."""

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import PACKED, recorded_windows
from rlhf_core.models.causal import logit_transform, output_head
from rlhf_core.models.compute import decoder_layers
from rlhf_core.models.layout import (
    Layout,
    OwnCache,
    hidden_states,
    sequence_places,
    set_layout,
    whole_states,
)
from rlhf_core.models.text import text_config, text_trunk
from rlhf_core.tokenization.batches import NO_PARENT, TokenBatch

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Largest difference of probe states, relative to their spread, that rounding can explain: it is
below 1e-5 in float32, and a wrong layout gives 1 and more once the layers are trained."""
LOW_PRECISION = 0.02
"""The same for dtypes of half the width."""
LEAK = 2e-6
"""The same between two passes that differ in another sequence alone. Layers of small random weights
leak little, so this is asked more sharply than the numbers themselves."""
TRAINING_PASSES = 3
"""Forward passes in training mode; noise on every token shows in the first."""
PREFIX = 4
"""Tokens of the first sequence of the probe."""


@torch.no_grad()
def choose_layout(model: PreTrainedModel) -> None:
    """Let the model run packed if that gives its own hidden states, else each length by itself.

    Raises:
        ModelError: neither way gives what the model computes for one sequence alone.
    """
    probe = _probe_batch(text_config(model).vocab_size).to(model.device)
    reason = _reason_against_packing(model, probe)
    if reason is None:
        _choose_sampling(model, probe)
        return
    _use_own_attention(model)
    set_layout(model, Layout(packed=False))
    try:
        whole = _own_states(model, probe.input_ids)
        prefix = _own_states(model, probe.input_ids[:PREFIX])
        together = hidden_states(model, probe)[:PREFIX]
    except _FAILURES as error:
        raise ModelError(f"{_called(model)}: cannot run text alone: {_first(error)}") from error
    _require_sound(model, whole)
    for states in (whole[:PREFIX], together):
        if not _gap(states, prefix) < _tolerance(model):
            raise ModelError(
                f"{_called(model)}: a token's hidden state changes with the tokens after it "
                "(it attends both ways, or to whole blocks); answers cannot be trained token by "
                "token; take a causal model"
            )
    set_layout(model, Layout(packed=False, cached=_cache_is_exact(model, probe, whole)), reason)


def _choose_sampling(model: PreTrainedModel, probe: TokenBatch) -> None:
    """Let a model that runs packed be sampled from in a block of keys, unless its layers loop."""
    set_layout(model, Layout())
    layers = decoder_layers(text_trunk(model))
    runs: Counter[nn.Module] = Counter()
    hooks = [layer.register_forward_pre_hook(lambda it, _: runs.update([it])) for layer in layers]
    _require_sound(model, hidden_states(model, probe))
    for hook in hooks:
        hook.remove()
    if max(runs.values(), default=1) > 1:
        whole = _own_states(model, probe.input_ids)
        layout = Layout(once=False, cached=_cache_is_exact(model, probe, whole))
        set_layout(model, layout, "its layers run more than once in a pass")


@torch.no_grad()
def require_known_head(model: PreTrainedModel) -> None:
    """Compare logits made from hidden states with the model's own.

    Raises:
        ModelError: they differ, so the model does to its logits what is not known here.
    """
    probe = _probe_batch(text_config(model).vocab_size).to(model.device)
    tokens = probe.input_ids[None, :PREFIX]
    weight, bias = output_head(model)
    raw = nn.functional.linear(hidden_states(model, probe)[:PREFIX], weight, bias)
    expected = model(input_ids=tokens, use_cache=False).logits[0].float()
    transform = replace(logit_transform(model), left_out=None)
    if not _gap(transform.forward(raw), expected[:, : len(weight)]) < _tolerance(model):
        raise ModelError(
            f"{_called(model)}: its logits are not a linear layer on its last hidden states, "
            "scaled and soft-capped as config.json says; what it does to them is not known here"
        )


@torch.no_grad()
def require_repeatable(model: PreTrainedModel) -> None:
    """Run the probe in training mode and compare: it must be what evaluation mode gives.

    With dropout, dropped layers or routing noise the importance ratio would not be 1 before the
    first update, and a reward would not belong to its text.

    Raises:
        ModelError: the numbers differ.
    """
    probe = _probe_batch(text_config(model).vocab_size).to(model.device)
    expected = hidden_states(model.eval(), probe)
    model.train()
    try:
        passes = [hidden_states(model, probe) for _ in range(TRAINING_PASSES)]
    except _FAILURES as error:
        raise ModelError(f"{_called(model)}: cannot be trained: {_first(error)}") from error
    model.eval()
    gap = max(_gap(states, expected) for states in passes)
    if not gap < LOW_PRECISION:
        raise ModelError(
            f"{_called(model)}: training mode does not repeat the numbers of evaluation mode "
            f"(relative difference {gap:.1e}): some noise of the model cannot be switched off"
        )


_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ModelError)
"""What a forward pass raises that is given what a model does not understand."""


def _reason_against_packing(model: PreTrainedModel, probe: TokenBatch) -> str | None:
    """Say why packed sequences are not this model's own; None where they are.

    The probe is shorter than most windows, so of a window it is asked whether packed attention
    hears of it at all.
    """
    if text_trunk(model).config._attn_implementation != PACKED:
        return "it takes no other attention than its own"
    set_layout(model, Layout())
    other = _probe_batch(text_config(model).vocab_size, first=3).to(model.device)
    try:
        with recorded_windows(text_trunk(model)) as windows:
            packed = hidden_states(model, probe)
        beside = hidden_states(model, other)
    except ModelError as error:
        return str(error)
    except _FAILURES:
        return "its layers do not take packed sequences"
    if sum(window is not None for window in windows) < _num_windows(model):
        return "its attention windows are in its masks alone, which packed sequences do not have"
    second = slice(PREFIX, PREFIX + 3)
    leak = _gap(packed[second], beside[second])
    if not leak < (LEAK if model.dtype in TOLERANCES else LOW_PRECISION):
        return f"packed, neighbours change its hidden states (relative difference {leak:.1e})"
    own = torch.empty_like(packed)
    for places in sequence_places(probe):
        own[places] = _own_states(model, probe.input_ids[places])
    gap = _gap(packed, own)
    if not gap < _tolerance(model):
        return f"packed, its hidden states are not its own (relative difference {gap:.1e})"
    return None


def _own_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return whole_states(text_trunk(model), tokens[None])[0]


def _cache_is_exact(model: PreTrainedModel, probe: TokenBatch, whole: Tensor) -> bool:
    """Read the probe token by token after its first few, two rows of it, and compare."""
    tokens = probe.input_ids.expand(2, -1)
    cache = OwnCache(model)
    try:
        states = [cache.read(tokens[:, :PREFIX])]
        states += [cache.read(tokens[:, i : i + 1]) for i in range(PREFIX, tokens.shape[1])]
    except _FAILURES:
        return False
    return _gap(torch.stack(states)[:, 1], whole[PREFIX - 1 :]) < _tolerance(model)


def _use_own_attention(model: PreTrainedModel) -> None:
    """Give the model the attention that it would have had, were it not asked to run packed."""
    for name in ("sdpa", "eager"):
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError):
            continue
        if model.config._attn_implementation == name:
            return
    # It has one attention; the name in its configuration says what masks that is given.
    model.config._attn_implementation = "eager"


def _tolerance(model: PreTrainedModel) -> float:
    return TOLERANCES.get(model.dtype, LOW_PRECISION)


def _gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the spread of ``expected``; NaN where either is."""
    return float((found - expected).abs().max() / expected.std().clamp_min(1e-6))


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _called(model: PreTrainedModel) -> str:
    name = type(model).__name__
    return f"{model.name_or_path}: {name}" if getattr(model, "name_or_path", None) else name


def _require_sound(model: PreTrainedModel, hidden: Tensor) -> None:
    """Refuse a model that says nothing: its weights or its configuration are damaged."""
    if not hidden.isfinite().all():
        fault = "NaN or infinite"
    elif (hidden == hidden[0]).all() and _tells_no_token_apart(model, hidden):
        fault = "the same for every token"
    else:
        return
    raise ModelError(
        f"{_called(model)}: the hidden states of a probe are {fault}; its weights or its"
        " config.json are damaged"
    )


def _tells_no_token_apart(model: PreTrainedModel, hidden: Tensor) -> bool:
    """Whether no other tokens would do better than the few of the probe."""
    embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return not bool(hidden.any()) or bool((embedding == embedding[0]).all())


def _num_windows(model: PreTrainedModel) -> int:
    """Layers that may not see the whole sequence; where they are not listed, at least one."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return int(getattr(config, "sliding_window", None) is not None)
    return sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)


def _probe_batch(vocab_size: int, *, first: int = 7) -> TokenBatch:
    """Three segments: one of four tokens, one of three, and two more that continue the first.

    ``first`` changes the tokens of the first segment alone.
    """
    lengths, parents = [PREFIX, 3, 2], [NO_PARENT, NO_PARENT, 0]
    positions = [torch.arange(4), torch.arange(3), torch.arange(4, 6)]
    tokens = torch.cat([torch.arange(first, first + 4), torch.arange(11, 16)])
    return TokenBatch(
        input_ids=tokens * 7 % vocab_size,
        position_ids=torch.cat(positions),
        loss_mask=torch.zeros(9, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
        parents=torch.tensor(parents),
    )
