"""No dropout anywhere: not in modules, and not where a model calls the function itself.

What only looks like noise stays: PhiMoE's ``router_jitter_noise`` is how near two experts' scores
must be to share a token, in evaluation too. Its routers draw experts at random in training mode,
so they stay in evaluation mode. RWKV divides its own weights in evaluation mode
(``rescale_every``), for the range of half precision; they would be saved so, as if they were the
model's, and whoever loads them would divide them again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from rlhf_core.tokenization.model_folder import loading_options

NOISES = ("dropout", "layerdrop", "_pdrop", "jitter_noise")
"""Parts of the names under which configurations keep a probability of leaving something out, or a
width of noise on what routers of experts see."""
_NO_NOISE = {"phimoe": "router_jitter_noise"}
_RESCALED = "_rescale_every"
_DRAWING = ("PhimoeTopKRouter",)
"""Modules that draw random numbers in training mode whatever the configuration says."""


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
        elif type(module).__name__ in _DRAWING:
            _keep_in_evaluation(module)
        elif hasattr(module, "layers_are_rescaled"):
            config: Any = module.config
            setattr(model, _RESCALED, config.rescale_every)
            config.rescale_every = 0


@contextmanager
def as_published(model: nn.Module) -> Iterator[None]:
    """Give a configuration back, inside, what was taken out of it for training alone."""
    config: Any = model.config
    kept = getattr(model, _RESCALED, None)
    if kept is None:
        yield
        return
    try:
        config.rescale_every = kept
        yield
    finally:
        config.rescale_every = 0


def _keep_in_evaluation(module: nn.Module) -> None:
    def train(mode: bool = True) -> nn.Module:
        return module

    module.eval()
    module.train = train  # type: ignore[method-assign]


def _silence(config: PreTrainedConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _silence(value)
        elif name == _NO_NOISE.get(config.model_type):
            continue
        elif isinstance(value, float) and any(noise in name for noise in NOISES):
            setattr(config, name, 0.0)
