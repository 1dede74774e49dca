"""Loading teacher and student, and whether they can work together."""

from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    TrainingArguments,
)

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.text.tokenizers import not_loaded, place

# The flag's name, and its newer one.
_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")


def load_model(flag: str, name: str, **kwargs: Any) -> PreTrainedModel:
    """A causal language model from a hub name or a local folder.

    Only safetensors weights are read, and code that comes with a model is not run.

    Args:
        flag: the argument that named it, for messages.
        name: hub name or folder.
        **kwargs: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: it cannot be found or loaded, or weights are missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place(name),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **kwargs,
        )
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, SafetensorError) as error:
        raise InputError(not_loaded(flag, "model", name, error)) from error
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{flag}: {name} lacks {len(missing)} of the model's weights, {missing[0]} for one"
        )
    return model


def context_of(model: PreTrainedModel) -> int | None:
    """How many tokens the model can read; None where it sets no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if limit is not None and limit > 0 else None  # XLNet's is -1


def logits_of_model(model: Any) -> int:
    """How many logits a model gives."""
    return int(model.config.get_text_config().vocab_size)


def base_of(model: Any) -> PreTrainedModel:
    """The model itself, without an adapter around it."""
    model = getattr(model, "adapter_model", model)
    return cast("PreTrainedModel", getattr(model, "get_base_model", lambda: model)())


def check_context(max_length: int, **models: PreTrainedModel) -> None:
    """Raise InputError if a sequence of max_length tokens does not fit a model's context."""
    for role, model in models.items():
        context = context_of(model)
        if context is not None and max_length > context:
            raise InputError(
                f"--max_length {max_length} is longer than the {role}'s context of {context} "
                f"tokens: set --max_length {context} or less"
            )


def checkpoints_as_it_can(args: TrainingArguments, model: PreTrainedModel) -> bool:
    """Switch activation checkpointing off for a model that has none; says whether it did.

    Some families (CTRL, XLNet, CPM-Ant) cannot compute activations again, and the Trainer would
    find out after it has begun.
    """
    asked = any(bool(getattr(args, name, False)) for name in _CHECKPOINTING)
    if not asked:
        return False
    try:
        model.activation_checkpointing_enable()
    except ValueError:
        for name in _CHECKPOINTING:
            if hasattr(args, name):
                setattr(args, name, False)
        return True
    model.activation_checkpointing_disable()
    return False


def freeze_embeddings(model: PreTrainedModel) -> None:
    """Keep the input embeddings, and a head tied to them, as they are."""
    embeddings = model.get_input_embeddings()
    if embeddings is None:
        raise InputError(f"--freeze_embeddings: {type(model).__name__} has no input embeddings")
    embeddings.requires_grad_(False)


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Number of parameters, and of those that train; tied ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def embeddings_of(model: PreTrainedModel) -> int:
    """How many tokens the model has embeddings for."""
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return logits_of_model(model) if size is None else int(size)
