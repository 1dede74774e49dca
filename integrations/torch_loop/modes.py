"""Modes that a model is put into for a while, and restored from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import GenerationConfig


@contextmanager
def evaluation_mode(*models: torch.nn.Module) -> Iterator[None]:
    """Models in evaluation mode; afterwards every module is in the mode that it had."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


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
