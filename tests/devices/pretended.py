"""A second device that every machine has: real numbers in tensors that claim to be elsewhere.

Where a CUDA device would refuse two tensors of one operation that lie in different places, this one
does too, so that a batch somebody forgot to move is found on a machine without a GPU. It claims to
be torch's ``meta`` device, for autograd and autocast ask nothing of that one.
"""

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
CROSSING = {"to", "_to_copy", "copy_", "_local_scalar_dense", "equal"}
"""Operations that may take tensors of both places."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations whose index tensors may be near where their subject is distant."""


class Distant(torch.Tensor):
    """Claims to be elsewhere; ``near`` holds its numbers."""

    @staticmethod
    def __new__(cls, near):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=ELSEWHERE,
            requires_grad=near.requires_grad,
        )

    def __init__(self, near):
        self.near = near

    def __repr__(self):
        return f"Distant({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return carry_out(func, args, kwargs or {})


def carry_out(func, args, kwargs):
    """Run ``func`` on the numbers, unless its tensors lie in two places."""
    flat = tree_flatten((args, kwargs))[0]
    far = [x for x in flat if isinstance(x, Distant)]
    name = func._schema.name.split("::")[1]
    if far and name not in CROSSING:
        _refuse_two_places(name, args, flat)
    places = [x for x in flat if isinstance(x, torch.device)]
    if not far and ELSEWHERE not in places:
        return func(*args, **kwargs)
    goes_elsewhere = ELSEWHERE in places if places else bool(far)
    if name == "copy_":
        goes_elsewhere = isinstance(args[0], Distant)
    known = {id(x.near): x for x in far}
    result = func(*tree_map(_near, args), **tree_map(_near, kwargs))

    def placed(x):
        if not (isinstance(x, torch.Tensor) and goes_elsewhere):
            return x
        return known[id(x)] if id(x) in known else Distant(x)

    return tree_map(placed, result)


def _refuse_two_places(name, args, flat):
    near = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Distant)]
    if name in INDEXING and isinstance(args[0], Distant):
        near = [x for x in near if not any(x is index for index in args[1])]
    if any(x.dim() > 0 for x in near):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


def _near(x):
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.near if isinstance(x, Distant) else x


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return carry_out(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What fills or reads memory past the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == ELSEWHERE:
            del kwargs["device"]
            return func(*args, **kwargs).to(ELSEWHERE)
        if func is torch.Tensor.tolist and isinstance(args[0], Distant):
            return args[0].near.tolist()
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == ELSEWHERE.type else device_type, *args, **kwargs)


@pytest.fixture
def elsewhere(monkeypatch):
    """The device, while the test lasts."""
    is_enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "autocast", _Autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: is_enabled("cpu"))
    able = ["cpu", "cuda", ELSEWHERE.type]
    optimizers = [m for name, m in list(sys.modules.items()) if name.startswith("torch.optim.")]
    for module in (_foreach_utils, *optimizers):
        for kind in ("foreach", "fused"):
            monkeypatch.setattr(
                module, f"_get_{kind}_kernels_supported_devices", lambda: able, raising=False
            )
    with _Functions(), _Operations():
        yield ELSEWHERE
