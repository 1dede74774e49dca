"""Modes that a model is put into for a while, and restored from."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from transformers import GenerationConfig


@contextmanager
def evaluation_mode(*models: torch.nn.Module) -> Iterator[None]:
    """Models in evaluation mode; afterwards every module is in the mode that it had.

    Where a model's attention takes nothing wider than 16 bits, and its weights are float32, all is
    multiplied in bfloat16: in training accelerate's autocast sees to that, before and after this.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    narrow = [model for model in models if needs_half(model)]
    device = next(narrow[0].parameters()).device.type if narrow else "cpu"
    try:
        for model in models:
            model.eval()
        with torch.autocast(device, dtype=torch.bfloat16) if narrow else nullcontext():
            yield
    finally:
        for module, training in modes:
            module.training = training


def needs_half(model: Any) -> bool:
    """Whether a model's weights are wider than its attention's kernel takes."""
    named = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    return "flash" in named and any(p.dtype == torch.float32 for p in model.parameters())


@contextmanager
def generation_settings(model: torch.nn.Module, config: GenerationConfig) -> Iterator[None]:
    """This configuration in place of the model's own, a PEFT model's base included.

    Passed to ``generate`` it would not do: what it leaves open, the model's own would fill in.
    """
    holders = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [cast("Any", module).generation_config for module in holders]
    try:
        for module in holders:
            cast("Any", module).generation_config = config
        yield
    finally:
        for module, own in zip(holders, before, strict=True):
            cast("Any", module).generation_config = own
