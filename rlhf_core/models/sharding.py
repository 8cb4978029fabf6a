"""Decoder layers divided among the processes that train: ``distributed.shard: layers``.

Every process keeps a part of each layer's weights, gradients and moments, and puts a layer together
for as long as it computes (FSDP2's ``fully_shard``, Zhao et al. 2023, arXiv:2304.11277).
Embeddings, norms and heads stay whole in every process, so that tied embeddings stay tied.

A layer is put together by all processes at once. So all have to pass through the model equally
often, and whoever has no rows left passes a token that counts for nothing.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig

from rlhf_core import processes
from rlhf_core.errors import ModelError
from rlhf_core.models.compute import decoder_layers, unwrapped
from rlhf_core.models.device import device_of
from rlhf_core.models.layout import layout_of
from rlhf_core.models.text import text_trunk

Item = TypeVar("Item")
Shard = Literal["none", "layers"]

_UNDIVIDED = "_undivided_trunk"
"""Attribute of a transformers model whose layers are divided: their trunk as it was, with no
weights in its layers."""


def shard_layers(model: nn.Module, shard: Shard) -> None:
    """Divide the decoder layers of ``model`` among the processes; undo it with ``gather_layers``.

    Adapters have to be in it, and whatever reads whole weights has to be done. One process has
    nothing to divide.

    Args:
        model: a transformers model, or one with adapters.
        shard: ``distributed.shard``.

    Raises:
        ModelError: the model's layers cannot be divided.
    """
    if shard == "none" or processes.alone():
        return
    inner, trunk = unwrapped(model), text_trunk(model)
    layers = _outermost_layers(trunk)
    _require_divisible(inner, trunk, layers)
    setattr(inner, _UNDIVIDED, (_without_weights(trunk, layers),))  # in a tuple: no part of inner
    mesh = init_device_mesh(device_of(inner).type, (processes.size(),))
    for layer in layers:
        divided = fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        # Losses are divided by the number of the whole batch: gradients are added, not averaged.
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)
        # Rows choose which experts they reach; a process whose rows reach none still adds zeros.
        divided.set_reduce_scatter_unused_params(True)
    # Without a root over all of them each layer keeps what it was last put together in. The root
    # has no weights of its own: of tied embeddings it would take the one and not the other.
    others = {weight for weight in trunk.parameters() if not is_divided(weight)}
    fully_shard(trunk, mesh=mesh, ignored_params=others)


def gather_layers(model: nn.Module) -> None:
    """Give every process whole layers again, as plain modules; nothing where none are divided."""
    if is_sharded(model):
        inner, divided = unwrapped(model), text_trunk(model)
        (whole,) = getattr(inner, _UNDIVIDED)
        _move_weights(divided, whole)
        inner.set_submodule(_name_of(divided, inner), whole)
        delattr(inner, _UNDIVIDED)


def is_sharded(model: nn.Module) -> bool:
    """Say whether the model's layers are divided."""
    return hasattr(unwrapped(model), _UNDIVIDED)


def in_step(model: nn.Module, runs: Sequence[Sequence[Item]]) -> Sequence[Sequence[Item]]:
    """Return this process's runs, and empty ones until every process has as many.

    A run is what one pass through the model reads. Packed, an empty one is a token that counts for
    nothing. Where the layers are not divided every process passes as often as it likes.
    """
    if not is_sharded(model):
        return runs
    return [*runs, *([()] * (processes.most(len(runs)) - len(runs)))]


def before_pass(model: nn.Module) -> None:
    """Tell the others of a pass whose number nobody could agree on before, as a token's is."""
    if is_sharded(model):
        processes.most(1)


def wait_in_step(model: nn.Module, idle_pass: Callable[[], object]) -> None:
    """Make an idle pass for each that another process tells of, until all wait here."""
    if is_sharded(model):
        while processes.most(0):
            idle_pass()


def without_gradients(*models: nn.Module) -> AbstractContextManager[None]:
    """Inside nothing is kept for a backward pass.

    A layer that is put together in inference mode could not be trained after: what it is put
    together in is kept.
    """
    divided = any(is_sharded(model) for model in models)
    return torch.no_grad() if divided else torch.inference_mode()


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """Return what of ``whole`` this process keeps where ``like`` is divided; else ``whole``."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    # Every process has the whole, so nothing is sent.
    moved = whole.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def is_divided(tensor: Tensor) -> bool:
    """Say whether a process keeps a part of the tensor alone."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process keeps of a tensor, as a plain one that shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _outermost_layers(trunk: nn.Module) -> list[nn.Module]:
    """Decoder layers; one inside another goes with that."""
    layers = decoder_layers(trunk)
    inside = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inside]


def _name_of(module: nn.Module, within: nn.Module) -> str:
    names: list[str] = [name for name, part in within.named_modules() if part is module]
    return names[0]


def _require_divisible(inner: nn.Module, trunk: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Refuse what would hang or train apart.

    Raises:
        ModelError: says why, and what to take instead.
    """
    if not layers or trunk is inner:
        reason = "its decoder layers are not known here"
    elif _share_weights(inner, layers):
        reason = "some of its weights belong to several layers"
    elif not layout_of(inner).once:
        reason = "a pass runs some of its layers more than once"
    elif not layout_of(inner).packed:
        reason = "it runs sequences of equal length together, as often as there are lengths"
    else:
        return
    raise ModelError(
        f"{type(inner).__name__} cannot be trained with distributed.shard: layers, for {reason}; "
        "take shard: none"
    )


def _share_weights(inner: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Say whether a weight of a layer is one of another, or of what is around them."""
    inside = {id(part) for layer in layers for part in layer.modules()}
    around = [part for part in inner.modules() if id(part) not in inside]
    places = [
        *({id(weight) for weight in layer.parameters()} for layer in layers),
        {id(weight) for part in around for weight in part.parameters(recurse=False)},
    ]
    return len(set().union(*places)) < sum(map(len, places))


def _without_weights(trunk: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
    """Copy modules and hooks of a trunk; what stays whole and configurations are the same."""
    same: dict[int, Any] = {id(weight): weight for weight in trunk.parameters()}
    for layer in layers:
        for weight in layer.parameters():
            empty = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
            same[id(weight)] = empty
    for module in trunk.modules():
        same |= {id(v): v for v in vars(module).values() if isinstance(v, PreTrainedConfig)}
    return copy.deepcopy(trunk, same)


@torch.no_grad()
def _move_weights(divided: nn.Module, whole: nn.Module) -> None:
    """Put the weights of divided layers together where they were before; one at a time."""
    for name, weight in divided.named_parameters():
        if isinstance(weight, DTensor):
            owner, _, leaf = name.rpartition(".")
            kept = nn.Parameter(weight.full_tensor(), requires_grad=weight.requires_grad)
            setattr(whole.get_submodule(owner), leaf, kept)
    whole.train(divided.training)
