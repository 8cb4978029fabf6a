"""No dropout anywhere: not in modules, and not where a model calls the function itself."""

from pathlib import Path

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from rlhf_core.tokenization.model_folder import loading_options

NOISES = ("dropout", "layerdrop", "_pdrop", "jitter_noise")
"""Parts of the names under which configurations keep a probability of leaving something out, or a
width of noise on what routers of experts see."""


def without_dropout(base: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """Read a model's configuration with every dropout in it set to 0.

    Some models (OPT, Starcoder 2, Falcon) have no dropout module: their layers keep the
    probability as a number and call the function, so it has to be gone before they are built.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        str(base), **loading_options(base, revision)
    )
    _silence(config)
    return config


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout module to 0, so that training and evaluation mode give the same numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _silence(config: PreTrainedConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _silence(value)
        elif isinstance(value, float) and any(noise in name for noise in NOISES):
            setattr(config, name, 0.0)
