"""A tiny model with random weights of every family of transformers that has a causal LM."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from families.settings import SETTINGS, SIZES
from tiny import vocabulary_size
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LARGEST = 20_000_000  # parameters; what is larger has a size that SIZES and SETTINGS do not reach


def every_family() -> list[str]:
    """The model types that transformers has a causal language model of."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The family's own configuration with its sizes made small, and what else is to be changed."""
    cls = CONFIG_MAPPING[model_type]
    own = SETTINGS.get(model_type, {})
    tokens = {"vocab_size": vocabulary_size(), "pad_token_id": 0, "bos_token_id": 1}
    parts = {}
    for name, part in getattr(cls, "sub_configs", {}).items():
        if issubclass(part, PreTrainedConfig):
            parts[name] = _sizes(part) | own.get(name, {})
    settings = _sizes(cls) | parts | tokens | {"eos_token_id": 1} | own | changes
    return cls(**settings)


def _sizes(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    known = cls().to_dict()
    sizes = {name: size for name, size in SIZES.items() if isinstance(known.get(name), int)}
    return sizes | {name: 0.0 for name in known if _is_dropout(name, known[name])}


def _is_dropout(name: str, value: Any) -> bool:
    """Whether it makes a training pass differ from another: no loss could be compared."""
    words = ("drop", "jitter")
    return isinstance(value, float) and any(word in name for word in words)


def tiny_family(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model in float32, evaluated; norms and biases are random too, as in a trained one.

    Raises:
        Exception: whatever the family's code says of a model that cannot be built or run here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_config(model_type, **changes)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise ValueError(f"{size / 1e6:.0f} million parameters")
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    return model.eval()
