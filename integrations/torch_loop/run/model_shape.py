"""The sizes of a model that its memory depends on."""

from dataclasses import dataclass
from typing import Any

import torch

from amidmath.integrations.torch_loop.models.model_files import base_of, parameter_counts
from amidmath.integrations.torch_loop.models.states import gives_logits


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on.

    Args:
        parameters: how many, tied ones once.
        trainable: how many of them train.
        weight_bytes: of all parameters, as they are held.
        trained_bytes: of those that train.
        largest_bytes: of the largest module that is gathered at once when weights are shared out.
        hidden: size of a hidden state.
        intermediate: size of the MLP's inner layer.
        key_values: of keys, and as much of values, for a token and layer.
        layers: how many.
        vocabulary: how many logits.
        whole_logits: they are made whole, not chunk by chunk.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    trained_bytes: int
    largest_bytes: int
    hidden: int
    intermediate: int
    key_values: int
    layers: int
    vocabulary: int
    whole_logits: bool = False

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """The shape of a transformers model."""
        config = model.config.get_text_config()
        # Some families have no heads, or keep a list of them; one of the width is near enough.
        heads = _number(config, "num_attention_heads", 1)
        hidden = _number(config, "hidden_size", 1)
        dimension = _number(config, "head_dim", hidden // heads)
        parameters, trainable = parameter_counts(model)
        blocks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
        largest = max((_bytes(layer) for block in blocks for layer in block), default=0)
        embeddings = model.get_input_embeddings()
        return cls(
            parameters=parameters,
            trainable=trainable,
            weight_bytes=_bytes(model),
            trained_bytes=_bytes(model, trained=True),
            largest_bytes=max(largest, 0 if embeddings is None else _bytes(embeddings)),
            hidden=hidden,
            intermediate=_number(config, "intermediate_size", 4 * hidden),
            key_values=_number(config, "num_key_value_heads", heads) * dimension,
            layers=_number(config, "num_hidden_layers", max(map(len, blocks), default=1)),
            vocabulary=config.vocab_size,
            whole_logits=gives_logits(base_of(model)),
        )

    def layer_elements(self) -> int:
        """Numbers that one layer keeps of a token for its backward pass.

        Each of the two norms keeps what it reads, that normalised, and what it gives (6 h); the
        attention keeps q, k, v, what it gives and that in the order of the next product (3 h +
        2 k); the MLP the gate, its activation, the other factor and the product (4 i).
        """
        return 9 * self.hidden + 2 * self.key_values + 4 * self.intermediate


def _number(config: Any, name: str, otherwise: int) -> int:
    """A size of a configuration; the largest where every layer has its own."""
    value = getattr(config, name, None)
    if isinstance(value, list | tuple):
        value = max(value, default=None)
    return int(value) if isinstance(value, int) and value > 0 else otherwise


def _bytes(module: torch.nn.Module, trained: bool = False) -> int:
    chosen = (p for p in module.parameters() if p.requires_grad or not trained)
    return sum(p.numel() * p.element_size() for p in chosen)
