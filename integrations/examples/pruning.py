"""Make a student by keeping some of a teacher's decoder layers.

From the command line, on a saved model::

    python integrations/examples/pruning.py --teacher_model_name_or_path teacher \
        --layers 0,1,2,5,8,11 --output_dir student
"""

import argparse
import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from amidmath.integrations.common.storage.whole_files import staged_dir
from amidmath.integrations.common.text.tokenizers import load_tokenizer
from amidmath.integrations.torch_loop.models.model_files import load_model

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

# Config attributes that hold one entry per decoder layer, across the architectures of transformers.
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")


def prune_layers(model: ModelT, layers: Sequence[int]) -> ModelT:
    """Copy a decoder-only causal language model with only some of its decoder layers.

    The copy owns its weights, ties its embeddings where the model does, and can be saved, loaded
    and used for generation like any other. The model itself is left as it was.

    Args:
        model: A Hugging Face causal language model whose decoder layers are ``model.model.layers``.
        layers: The layers to keep, counted from 0, in increasing order.

    Returns:
        A model of the same class with ``len(layers)`` decoder layers.

    Raises:
        ValueError: If the model has no such list of layers, or if ``layers`` is empty, out of range
            or not strictly increasing, or if the model's config cannot describe the result.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4,
        ...     num_attention_heads=2,
        ... )
        >>> student = prune_layers(LlamaForCausalLM(config), [0, 3])
        >>> student.config.num_hidden_layers
        2
    """
    decoder_layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(decoder_layers, nn.ModuleList):
        raise ValueError(
            f"model must keep its decoder layers in model.model.layers, {type(model).__name__} "
            "does not"
        )
    _check_layers(layers, len(decoder_layers))

    # deepcopy takes what the memo already holds, so the dropped layers are never copied, and what
    # the kept layers share with the rest of the model (the config, tied weights) stays shared.
    memo: dict[int, object] = {}
    kept = nn.ModuleList(copy.deepcopy(decoder_layers[index], memo) for index in layers)
    kept.training = decoder_layers.training
    memo[id(decoder_layers)] = kept
    student = copy.deepcopy(model, memo)

    for new_index, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = new_index  # type: ignore[assignment]
    student.config.num_hidden_layers = len(layers)
    for name in _PER_LAYER:
        # Only what is stored: some configs derive these from the number of layers.
        per_layer = vars(student.config).get(name)
        if per_layer is not None:
            setattr(student.config, name, [per_layer[index] for index in layers])
    _check_config(student, layers)
    return student


def _check_layers(layers: Sequence[int], depth: int) -> None:
    if not layers:
        raise ValueError(f"layers must name at least one layer to keep, got {layers!r}")
    for index in layers:
        if not 0 <= index < depth:
            raise ValueError(f"layers must lie in 0..{depth - 1}, got {index}")
    for left, right in pairwise(layers):
        if left >= right:
            raise ValueError(f"layers must be strictly increasing, got {right} after {left}")


def _check_config(student: PreTrainedModel, layers: Sequence[int]) -> None:
    # Some configs place special layers by other means (first_k_dense_replace): loading a saved
    # student would then give misfit layers random weights, with no more than a warning.
    with torch.device("meta"):
        rebuilt = type(student)(copy.deepcopy(student.config)).state_dict()
    state = student.state_dict()
    for name in sorted(state.keys() | rebuilt.keys()):
        if name not in state or name not in rebuilt or state[name].shape != rebuilt[name].shape:
            raise ValueError(
                f"layers {list(layers)} do not make a {type(student).__name__} that its config "
                f"describes, {name} differs"
            )


def _layer_list(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers between commas, got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Prune a saved model from the command line.

    Args:
        argv: The arguments, those of the process by default.

    Raises:
        SystemExit: If the arguments are wrong or the output directory holds something.
    """
    parser = argparse.ArgumentParser(description="Keep some decoder layers of a causal LM.")
    parser.add_argument("--teacher_model_name_or_path", required=True, help="the model to prune")
    parser.add_argument(
        "--layers", required=True, type=_layer_list, help="layers to keep, as in 0,1,2,5"
    )
    parser.add_argument(
        "--output_dir", required=True, type=Path, help="a new directory for model and tokenizer"
    )
    args = parser.parse_args(argv)
    output_dir: Path = args.output_dir
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        parser.error(f"--output_dir {output_dir} is not an empty directory; choose another")

    try:
        flag = "--teacher_model_name_or_path"
        teacher = load_model(flag, args.teacher_model_name_or_path)
        tokenizer = load_tokenizer(flag, args.teacher_model_name_or_path)
        student = prune_layers(teacher, args.layers)
    except ValueError as error:
        parser.error(str(error))
    with staged_dir(output_dir) as stage:
        student.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    print(
        f"Kept {len(args.layers)} of {teacher.config.num_hidden_layers} layers, "
        f"{student.num_parameters() / 1e6:.1f}M of {teacher.num_parameters() / 1e6:.1f}M "
        f"parameters: {output_dir}"
    )


if __name__ == "__main__":
    main()
