"""Tokens nobody reads are left out where the last layer treats each token by itself.

A prompt's final hidden states are never read: only its keys and values are. In the last layer the
attention's output projection and the feed-forward block work on each token alone, so they are
given the tokens that are read and nothing else. What is read stays the same, and so does every
gradient, for a token that is not read sends none back.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

READ = "read_positions"
"""Keyword of the forward pass: [R] int64, no position twice; without it every token is read."""
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")
FEED_FORWARD = "mlp"
ROW_BY_ROW = (nn.Linear, Conv1D, nn.Dropout, nn.Identity)
ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")


def prune_last_layer(model: nn.Module) -> None:
    """Make the last layer of ``model`` use ``read_positions``; other layouts stay as they are."""
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        return
    reading = _Reading()
    layers[-1].register_forward_pre_hook(reading.begin, with_kwargs=True)
    layers[-1].register_forward_hook(reading.end)
    for module in _row_by_row(layers[-1]):
        module.register_forward_pre_hook(reading.gather)
        module.register_forward_hook(reading.scatter)


class _Reading:
    """What is read in the pass under way, from the layer's call to its end."""

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self.num_tokens = 0

    def begin(self, layer: nn.Module, args: Any, options: dict[str, Any]) -> None:
        # Recomputation calls the inner modules again when the layer's own call is long over.
        recomputed = layer.training and getattr(layer, "gradient_checkpointing", False)
        self.positions = None if recomputed else options.get(READ)

    def end(self, *_: Any) -> None:
        self.positions = None

    def gather(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.positions is None:
            return None
        self.num_tokens = args[0].shape[1]
        return (_take(args[0], self.positions), *args[1:])

    def scatter(self, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        if self.positions is None:
            return None
        whole: Tensor = _put(output, self.positions, self.num_tokens)
        return whole


def _row_by_row(layer: nn.Module) -> list[nn.Module]:
    """Return the output projection and the feed-forward block, if they are what they seem."""
    found = []
    for name, module in layer.named_modules():
        *parents, last = name.split(".")
        projection = last in OUTPUT_PROJECTIONS and len(parents) == 1 and parents != [FEED_FORWARD]
        if (projection or name == FEED_FORWARD) and all(map(_is_row_by_row, _leaves(module))):
            found.append(module)
    return found


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [inner for inner in module.modules() if not list(inner.children())]


def _is_row_by_row(leaf: nn.Module) -> bool:
    return isinstance(leaf, ROW_BY_ROW) or type(leaf).__module__ in ACTIVATION_MODULES


# Each is the other's gradient, which only holds because no position comes twice. Without that
# knowledge autograd, and more so the compiler, add up the gradients one row at a time.
@torch.library.custom_op("rlhf::take_rows", mutates_args=())
def _take(states: Tensor, positions: Tensor) -> Tensor:
    """Pick tokens ``positions`` [R] of [1, N, H]: [1, R, H]."""
    return states.index_select(1, positions)


@torch.library.custom_op("rlhf::put_rows", mutates_args=())
def _put(states: Tensor, positions: Tensor, num_tokens: int) -> Tensor:
    """Lay [1, R, H] at ``positions`` among ``num_tokens``, zeros elsewhere: [1, N, H]."""
    whole = states.new_zeros(1, num_tokens, states.shape[-1])
    return whole.index_copy_(1, positions, states)


@_take.register_fake
def _(states: Tensor, positions: Tensor) -> Tensor:
    return states.new_empty(1, len(positions), states.shape[-1])


@_put.register_fake
def _(states: Tensor, positions: Tensor, num_tokens: int) -> Tensor:
    return states.new_empty(1, num_tokens, states.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.num_tokens = inputs[0].shape[1]


_take.register_autograd(
    lambda ctx, grad: (_put(grad, *ctx.saved_tensors, ctx.num_tokens), None), setup_context=_keep
)
_put.register_autograd(
    lambda ctx, grad: (_take(grad, *ctx.saved_tensors), None, None), setup_context=_keep
)
