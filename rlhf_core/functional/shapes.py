"""Refuse tensors that would broadcast into something nobody meant."""

from torch import Tensor

from rlhf_core.errors import ShapeError


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ``ShapeError`` naming every tensor unless all shapes are equal."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"expected one common shape, got {listing}")
