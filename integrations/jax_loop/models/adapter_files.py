"""LoRA adapters in PEFT's format: written with a tokenizer, read into their base's weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.storage.full_disk import saving
from amidmath.integrations.common.storage.whole_files import staged_dir, write_json
from amidmath.integrations.common.text.tokenizers import place
from amidmath.integrations.jax_loop.devices.processes import is_main, on_host
from amidmath.integrations.jax_loop.models.families import Tensor, family
from amidmath.integrations.jax_loop.models.lora import (
    LoraSettings,
    adapted,
    linears_of,
    module_name,
)

CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Settings that say how an adapter was trained, what is read elsewhere, or which modules it adapts,
# which its weights say too.
_NEUTRAL = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora"),
}
# What the others are where an adapter is a product of two matrices, beside a base as it was; some
# ways to begin take their start out of the base (PiSSA, OLoRA).
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_UNSET: tuple[Any, ...] = (None, False, {}, [])


def save_adapter(
    folder: Path,
    decoder: Any,
    model_type: str,
    base: str,
    revision: str,
    settings: LoraSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a decoder's adapter as ``peft.PeftModel.from_pretrained`` reads it, whole or not.

    On several hosts all must call it; the first writes.

    Args:
        folder: an earlier one is replaced.
        decoder: with the adapter.
        model_type: of its family.
        base: hub name or folder of what it adapts.
        revision: of the base on the hub.
        settings: its rank, factor and matrices.
        tokenizer: written too.

    Raises:
        DiskFullError: there is no room.
    """
    tensors = adapted(family(model_type), settings.lora_target_modules)
    content: dict[str, NDArray[Any]] = {}
    for tensor in tensors:
        pairs = [linear.lora for linear in linears_of(decoder, tensor)]
        if not pairs:
            continue
        down = on_host(pairs[0].down[...])
        layers, rank = down.shape[0], down.shape[-1]
        inputs = down.reshape(layers, -1, rank)
        ups = [on_host(pair.up[...]).reshape(layers, rank, -1) for pair in pairs]
        outputs = np.concatenate(ups, axis=-1)
        for layer in range(layers):
            module = _PREFIX + tensor.name.format(layer).removesuffix(".weight")
            content[f"{module}.lora_A.weight"] = np.ascontiguousarray(inputs[layer].T)
            content[f"{module}.lora_B.weight"] = np.ascontiguousarray(outputs[layer].T)
    if not is_main():
        return
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": place(base),
        "revision": None if Path(base).is_dir() else revision,
        "r": settings.lora_r,
        "lora_alpha": settings.lora_alpha,
        "use_rslora": settings.use_rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": tensors[0].kind == "inputs_first",
        "target_modules": sorted({module_name(tensor) for tensor in tensors}),
        "inference_mode": True,
    }
    with staged_dir(folder) as stage, saving(folder.name, stage):
        save_file(content, stage / _WEIGHTS, metadata={"format": "pt"})
        write_json(stage / CONFIG, config)
        tokenizer.save_pretrained(stage)


@dataclass
class Adapter:
    """An adapter that is added to its base's weights as they are read.

    Args:
        base: hub name or folder of what it adapts.
        revision: of the base on the hub.
        scale: what its products are multiplied by.
        weights: by the names that they have in the file.
    """

    base: str
    revision: str
    scale: float
    weights: dict[str, NDArray[Any]]
    _used: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, folder: Path) -> "Adapter | None":
        """The adapter that a folder holds; None if it holds a model of its own, or nothing.

        Raises:
            InputError: it is no plain LoRA adapter, or damaged.
        """
        if not (folder / CONFIG).is_file():
            return None
        whole = [path.name for path in folder.glob("model*.safetensors*")]
        if whole:
            raise InputError(
                f"it holds a model ({min(whole)}) and an adapter ({CONFIG}), of which one must be "
                "meant: move one of them away"
            )
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            base, rank = config["base_model_name_or_path"], int(config["r"])
            scale = float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise InputError(f"its {CONFIG} does not hold: {error!r}") from error
        for name, value in config.items():
            if name not in _NEUTRAL and value not in _PLAIN.get(name, _UNSET):
                raise InputError(
                    f"it is an adapter with {name} = {value!r}; adapters that are plain LoRA can "
                    "be read: merge this one into its base first (peft's merge_and_unload)"
                )
        if not isinstance(base, str):
            raise InputError(f"its {CONFIG} names no base_model_name_or_path")
        if not (folder / _WEIGHTS).is_file():
            raise InputError(f"it has {CONFIG} and no {_WEIGHTS}")
        weights = load_file(folder / _WEIGHTS)
        return cls(base, config.get("revision") or "main", scale, weights)

    def added(self, name: str, weight: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
        """A weight of the base with what the adapter adds, in float32, if that is anything.

        Raises:
            InputError: the adapter's matrices do not fit it.
        """
        module = _PREFIX + name.removesuffix(".weight")
        names = [f"{module}.lora_{part}.weight" for part in "AB"]
        if not any(name in self.weights for name in names):
            return weight
        try:
            a, b = (self.weights[name].astype(np.float32) for name in names)
            product = self.scale * (b @ a)
            product = product.T if tensor.kind == "inputs_first" else product
            if product.shape != weight.shape:
                raise ValueError(f"{b.shape} times {a.shape} for a weight of {weight.shape}")
        except (KeyError, ValueError) as error:
            raise InputError(f"its adapter does not fit {name}: {error}") from error
        self._used.update(names)
        return weight.astype(np.float32) + product

    def check_used(self) -> None:
        """Raise InputError if it has weights that were not added to anything."""
        left = sorted(self.weights.keys() - self._used)
        if left:
            raise InputError(
                f"its adapter has {len(left)} weights that adapt no matrix of the model's layers, "
                f"{left[0]} for one"
            )
