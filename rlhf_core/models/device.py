"""Where a model computes."""

import torch

from rlhf_core.errors import ConfigError


def choose_device(wanted: str | torch.device) -> torch.device:
    """Return the device that ``model.device`` names; ``auto`` is the GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for where torch sees none.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"model.device is {wanted}, but torch {torch.__version__} sees no CUDA device here; "
            "use auto or cpu, or install a torch built for the driver"
        )
    return device


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of the model's weights, where its batches have to be."""
    return next(model.parameters()).device
