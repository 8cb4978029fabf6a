"""How a model's arithmetic is done: precision, recomputation, compiled layers, adapters."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_core.config import ComputeConfig, LoraConfig
from rlhf_core.errors import ConfigError, ModelError
from rlhf_core.models.device import device_of

logger = logging.getLogger(__name__)

PRECISION = "_forward_precision"
"""Attribute of a transformers model: the autocast dtype of its forward passes."""


def prepare_training(model: nn.Module, compute: ComputeConfig, *, seed: int) -> nn.Module:
    """Return ``model`` ready to be trained as ``compute`` says; undo it with ``finish_training``.

    Args:
        model: a transformers model; adapters are put into it in place.
        compute: what to do.
        seed: of the adapters' random numbers; the global generator is left alone.

    Raises:
        ConfigError: bfloat16 on a GPU without it, or compiled layers without a compiler.
        ModelError: an adapter fits no layer of the model.
    """
    set_precision(model, compute)
    _keep_start(unwrapped(model))
    if compute.gradient_checkpointing:
        unwrapped(model).activation_checkpointing_enable({"use_reentrant": False})
    if compute.lora is not None:
        model = _add_adapters(unwrapped(model), compute.lora, seed=seed)
    if compute.compile_layers:
        _require_compiler()
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)
    return model.train()


def finish_training(model: nn.Module) -> PreTrainedModel:
    """Merge adapters into the weights and switch off what ``prepare_training`` switched on.

    Of a model whose files are of half precision the weights are rounded to it: what is measured
    from here on is what is saved. Where that undoes some of the training, the log says how much.

    Returns:
        The transformers model that ``prepare_training`` was given, the same object.
    """
    for layer in decoder_layers(model):
        layer._compiled_call_impl = None
    if hasattr(model, "merge_and_unload"):
        keep_adapter(model)
        model = model.merge_and_unload()  # type: ignore[operator]
    inner = unwrapped(model)
    inner.activation_checkpointing_disable()
    clear_precision(inner)
    for parameter in inner.parameters():
        parameter.requires_grad_(True)
    kept = round_to_files(inner)
    if kept is not None and kept < MOST_KEPT:
        logger.warning(
            "training_rounded_away: saved in %s, as its base is, %s keeps %.0f%% of what training"
            " changed: most weights moved by less than its last digit; model.save_dtype float32"
            " keeps all of it, and so does a higher learning rate or a longer training keep more",
            str(file_dtype(inner)).removeprefix("torch."),
            type(inner).__name__,
            100 * kept,
        )
    inner.eval()
    return inner


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers can compute again in a backward pass, of towers too."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def set_precision(model: nn.Module, compute: ComputeConfig) -> None:
    """Run the model's forward passes in the precision of ``compute``, the weights as they are.

    Raises:
        ConfigError: bfloat16 on a GPU without it; a CPU is warned of, for it computes it slowly.
    """
    if compute.precision == "bfloat16":
        _check_bfloat16(device_of(model))
        setattr(unwrapped(model), PRECISION, torch.bfloat16)


def clear_precision(model: nn.Module) -> None:
    """Run the model's forward passes in the precision of its weights again."""
    inner = unwrapped(model)
    if hasattr(inner, PRECISION):
        delattr(inner, PRECISION)


@contextmanager
def precision(model: nn.Module, compute: ComputeConfig) -> Iterator[None]:
    """Set the precision of ``compute`` inside, and what was set before again after."""
    before = getattr(unwrapped(model), PRECISION, None)
    set_precision(model, compute)
    try:
        yield
    finally:
        clear_precision(model)
        if before is not None:
            setattr(unwrapped(model), PRECISION, before)


def adapters_off(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the context the model is what it was before its adapters: the reference for free."""
    if hasattr(model, "disable_adapter"):
        context: AbstractContextManager[None] = model.disable_adapter()  # type: ignore[operator]
        return context
    raise ModelError(f"{type(model).__name__} has no adapters to switch off")


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or ``model`` itself.

    PEFT gives the model inside a ``peft_config`` as well, which so tells nothing.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(f"expected a transformers model, found {type(inner).__name__}")
    return inner


@contextmanager
def forward_precision(model: nn.Module) -> Iterator[None]:
    """Run the forward pass inside in the precision that ``prepare_training`` set."""
    inner = unwrapped(model)
    dtype: torch.dtype | None = getattr(inner, PRECISION, None)
    with nullcontext() if dtype is None else torch.autocast(inner.device.type, dtype=dtype):
        yield


FILES = "_file_dtype"
"""Attribute of a transformers model: half precision of the files it came from, if they have it."""
HALVES = (torch.bfloat16, torch.float16)


def file_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the half precision that the model's files have; None for any other."""
    dtype: torch.dtype | None = getattr(unwrapped(model), FILES, None)
    return dtype


START = "_weights_at_start"
"""Attribute of a transformers model: its weights before training, in the precision of its files."""
MOST_KEPT = 0.95
"""Share of a training below which rounding is told of."""


def save_in_float32(model: nn.Module) -> None:
    """Have the model saved as it is trained, whatever precision the files had that it came from."""
    inner = unwrapped(model)
    if hasattr(inner, FILES):
        delattr(inner, FILES)


def _keep_start(model: PreTrainedModel) -> None:
    """Keep a copy in the machine's memory: there is no other way to tell what rounding undoes."""
    if (dtype := file_dtype(model)) is not None:
        start = [weight.detach().to("cpu", dtype) for weight in _of_files(model)]
        setattr(model, START, start)


@torch.no_grad()
def round_to_files(model: nn.Module) -> float | None:
    """Round the weights to the precision of the model's files, their own dtype kept.

    Of a change d since ``prepare_training`` that became r there is left

        sum r d / sum d^2

    Returns:
        That share; None without files of half precision, or without a change.
    """
    dtype, inner = file_dtype(model), unwrapped(model)
    if dtype is None:
        return None
    start = inner.__dict__.pop(START, None)
    left = whole = 0.0
    for place, weight in enumerate(_of_files(model)):
        rounded = weight.to(dtype)
        if start is not None:
            before = start[place].to(weight.device, torch.float32)
            change = weight.float() - before
            left += float(((rounded.float() - before) * change).sum(dtype=torch.float64))
            whole += float(change.square().sum(dtype=torch.float64))
        weight.copy_(rounded)
    return left / whole if whole > 0 else None


@contextmanager
def as_in_files(model: nn.Module) -> Iterator[None]:
    """Hold the weights in the dtype of the model's files inside, rounded, and as before after."""
    dtype = file_dtype(model)
    weights = [] if dtype is None else _of_files(model)
    before = [weight.dtype for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight, own in zip(weights, before, strict=True):
            weight.data = weight.data.to(own)


def _of_files(model: nn.Module) -> list[nn.Parameter]:
    """Weights that are of half precision in the files; some an architecture always keeps whole."""
    inner = unwrapped(model)
    whole = [*(inner._keep_in_fp32_modules or ()), *(inner._keep_in_fp32_modules_strict or ())]
    return [
        weight
        for name, weight in inner.named_parameters()
        if weight.is_floating_point() and not any(part in name for part in whole)
    ]


ADAPTER = "_trained_adapter"
"""Attribute of a transformers model: PEFT's configuration and tensors of what it took in."""


def keep_adapter(model: nn.Module) -> None:
    """Keep a copy of the adapters beside the weights they are about to be merged into."""
    from peft import get_peft_model_state_dict

    adapted: Any = model
    config = adapted.peft_config["default"]
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    kept = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    inner = unwrapped(model)
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    if (head := getattr(inner, "score", None)) is not None:
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        kept["base_model.model.score.weight"] = head.weight.detach().cpu().clone()
    config.base_model_name_or_path = inner.name_or_path
    setattr(inner, ADAPTER, (config, kept))


def _add_adapters(model: PreTrainedModel, lora: LoraConfig, *, seed: int) -> nn.Module:
    import peft

    head = getattr(model, "score", None)
    _require_linear_targets(model, lora)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=_left_out(model) or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted: nn.Module = peft.PeftModel(model, config)
        except ValueError as error:
            raise ModelError(f"compute.lora.targets: {error}") from error
    if lora.targets == "all-linear":
        _name_experts_without_adapters(adapted)
    if head is not None:
        # A fresh reward head has no good weights to adapt: it is trained whole.
        head.requires_grad_(True)
    return adapted


def _left_out(model: PreTrainedModel) -> list[str]:
    """Modules that get no adapter: a reward head, the towers of a composite model, and routers.

    PhiMoE's router is a linear layer with a forward pass of its own, which returns no tensor.
    """
    left_out = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (not module.weight.requires_grad or type(module).forward is not nn.Linear.forward)
    ]
    return [*left_out, *(["score"] if hasattr(model, "score") else [])]


def _require_linear_targets(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Refuse adapters on embeddings: where they are tied, merging one would change the other too.

    Raises:
        ConfigError: a target names an embedding or the output head.
    """
    head = None if hasattr(model, "score") else model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) and module is not head:
            continue
        for target in () if isinstance(lora.targets, str) else lora.targets:
            if name == target or name.endswith(f".{target}"):
                raise ConfigError(
                    f"compute.lora.targets: {target} is an embedding or the output head of "
                    f"{type(model).__name__} ({name}); adapters go on the linear layers between, "
                    "take all-linear or their names"
                )


def _name_experts_without_adapters(adapted: nn.Module) -> None:
    """Log what all-linear passed over: experts that are one tensor, where PEFT knows no better."""
    from peft.tuners.lora.layer import ParamWrapper

    reached = {id(part.get_param()) for part in adapted.modules() if isinstance(part, ParamWrapper)}
    model = unwrapped(adapted)
    left = {
        f"{name}.{parameter_name}": parameter.numel()
        for name, part in model.named_modules()
        if not isinstance(part, nn.modules.conv._ConvNd)
        for parameter_name, parameter in part.named_parameters(recurse=False)
        if parameter.dim() == 3 and id(parameter) not in reached
    }
    if left:
        weights = sum(w.numel() for name, w in model.named_parameters() if ".lora_" not in name)
        logger.warning(
            "compute.lora.targets: all-linear gives experts of %s no adapters, for they are one "
            "tensor (%s and %d more): %.0f%% of the weights stay as they are; without compute.lora "
            "they are trained",
            type(model).__name__,
            next(iter(left)),
            len(left) - 1,
            100 * sum(left.values()) / weights,
        )


def _check_bfloat16(device: torch.device) -> None:
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported():
            raise ConfigError("compute.precision: this GPU has no bfloat16; use float32")
    elif not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning(
            "compute.precision: this processor has no instructions for bfloat16 (AVX-512): torch "
            "computes it all the same, but many times slower than float32"
        )


def _require_compiler() -> None:
    """The first step would end in a traceback, minutes after the settings were read."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compute.compile_layers: no C++ compiler was found; install g++ or set it to false"
        ) from error
