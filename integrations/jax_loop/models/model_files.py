"""Models from Hugging Face folders and the hub, and back."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub import snapshot_download
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from amidmath.integrations.common.errors import InputError, first_paragraph
from amidmath.integrations.common.storage.full_disk import saving
from amidmath.integrations.common.storage.whole_files import staged_dir, write_json
from amidmath.integrations.jax_loop.devices.processes import is_main, put
from amidmath.integrations.jax_loop.models.adapter_files import Adapter
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.families import Family, Tensor, family, read_config
from amidmath.integrations.jax_loop.models.layers import Axes
from amidmath.integrations.jax_loop.models.weight_files import (
    INDEX,
    WEIGHTS,
    Parts,
    Stored,
    open_files,
    read_json,
    written,
)

ShardingOf: TypeAlias = Callable[[Axes, tuple[int, ...]], jax.sharding.Sharding | None]
_GENERATION = "generation_config.json"
_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class LoadedModel:
    """A decoder, and what else belongs to it in the Hugging Face format.

    Args:
        decoder: the model.
        hf_config: its config.json.
        generation_config: its generation_config.json, if it has one.
        adapts: where it was an adapter's folder, the name of its base.
    """

    decoder: Decoder
    hf_config: PreTrainedConfig
    generation_config: dict[str, Any] | None = None
    adapts: str | None = None


def load_model(
    flag: str,
    name: str,
    *,
    revision: str = "main",
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    sharding_of: ShardingOf | None = None,
) -> LoadedModel:
    """A causal language model from a folder or the hub, from safetensors.

    A folder that holds a plain LoRA adapter is its base, with the adapter in its weights.

    The weights of all layers are read one parameter after the other, each put where it belongs
    before the next is read; code that comes with a model is not run.

    Args:
        flag: the argument that named it, for messages.
        name: folder or hub name.
        revision: branch, tag or commit on the hub.
        dtype: what the model computes in.
        param_dtype: what its weights are kept in.
        remat: see :class:`~.decoder.Decoder`.
        sharding_of: where a parameter goes, by the names of its axes and its shape; None for the
            default device.

    Raises:
        InputError: it cannot be found or read, its family or one of its settings is not supported,
            or its weights are not all, or not only, those of its configuration.
    """
    folder = _folder(flag, name, revision)
    try:
        adapter = Adapter.open(folder)
        if adapter is not None:
            folder = _folder(flag, adapter.base, adapter.revision)
        hf_config = _config(folder)
        config = read_config(hf_config)
        abstract = nnx.eval_shape(
            lambda: Decoder(
                config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, remat=remat
            )
        )
        parameters = _parameters(abstract)
        found = {
            path: parameters[path].replace(_placed(value, parameters[path], sharding_of))
            for path, value in _read(folder, family(hf_config.model_type), parameters, adapter)
        }
        if adapter is not None:
            adapter.check_used()
        generation_config = (
            read_json(folder / _GENERATION) if (folder / _GENERATION).is_file() else None
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{flag}: {name} holds no model that can be loaded: {first_paragraph(error)}"
        ) from error
    flat = {tuple(path.split(".")): value for path, value in found.items()}
    decoder = nnx.merge(nnx.graphdef(abstract), nnx.from_flat_state(cast("Any", flat)))
    adapts = None if adapter is None else adapter.base
    return LoadedModel(decoder, hf_config, generation_config, adapts)


def save_model(
    folder: Path,
    model: LoadedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write a model as transformers reads it, whole or not at all.

    On several hosts all must call it; the first writes.

    Args:
        folder: an earlier one is replaced.
        model: its weights are written in the dtype that they have.
        tokenizer: written too, if given.
        shard_bytes: weights beyond this size are spread over several files.

    Raises:
        DiskFullError: there is no room.
    """
    parameters = _parameters(model.decoder)
    known = family(model.hf_config.model_type)
    shards = _shards(_present(known, parameters), parameters, shard_bytes)
    if not is_main():
        for tensor in chain.from_iterable(shards):
            deque(written(tensor, parameters), maxlen=0)
        return
    with staged_dir(folder) as stage, saving(folder.name, stage):
        places: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(shards, start=1):
            several = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = WEIGHTS if len(shards) == 1 else several
            content = dict(chain.from_iterable(written(tensor, parameters) for tensor in shard))
            save_file(content, stage / file, metadata={"format": "pt"})
            places |= dict.fromkeys(content, file)
            total += sum(value.nbytes for value in content.values())
        if len(shards) > 1:
            write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        config = copy.deepcopy(model.hf_config)
        config.dtype = str(next(iter(parameters.values())).dtype)
        config.architectures = [known.architecture]
        config.save_pretrained(stage)
        if model.generation_config is not None:
            write_json(stage / _GENERATION, model.generation_config)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)


def _folder(flag: str, name: str, revision: str) -> Path:
    """Where the model lies on this machine."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors"],
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{flag}: {name!r} is neither a folder here nor a model that could be loaded from the "
            f"hub: {first_paragraph(error)}"
        ) from error


def _config(folder: Path) -> PreTrainedConfig:
    content = read_json(folder / "config.json")
    family(content.get("model_type"))  # before transformers' own complaint
    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # its checks raise what they like
        raise InputError(f"its config.json does not hold: {first_paragraph(error)}") from error


def _parameters(decoder: Decoder) -> dict[str, Any]:
    """The parameters of a decoder, by their paths."""
    state = nnx.to_flat_state(nnx.state(decoder, nnx.Param))
    return {".".join(map(str, path)): parameter for path, parameter in state}


def _present(known: Family, parameters: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a family that a decoder has; each parameter is in one of them."""
    found = [tensor for tensor in known.tensors if tensor.paths[0] in parameters]
    homeless = set(parameters) - {path for tensor in found for path in tensor.paths}
    if homeless:
        raise ValueError(f"no tensor of the family holds {', '.join(sorted(homeless))}")
    return found


def _read(
    folder: Path, known: Family, parameters: Mapping[str, Any], adapter: Adapter | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Paths and values of all parameters, one tensor's after the other."""
    with ExitStack() as stack:
        files = open_files(folder, known.prefix, stack)
        tensors = [(tensor, Parts.of(tensor, parameters)) for tensor in _present(known, parameters)]
        expected = {name for tensor, parts in tensors for name in parts.names(tensor)}
        missing = sorted(expected - set(files))
        if missing:
            raise InputError(
                f"it lacks {len(missing)} of the model's {len(expected)} weights, {missing[0]} for "
                "one"
            )
        _check_others(set(files) - expected, files, known)
        for tensor, parts in tensors:
            values = [np.empty(parameters[path].shape, parts.dtype) for path in tensor.paths]
            for number, name in enumerate(parts.names(tensor)):
                whole = files[name].tensor(tensor.shape(parts.shapes, parts.axes))
                if adapter is not None:
                    whole = adapter.added(name, whole, tensor)
                pieces = tensor.split(whole, parts.shapes, parts.axes)
                for value, piece in zip(values, pieces, strict=True):
                    value[number if tensor.per_layer else ...] = piece
            yield from zip(tensor.paths, values, strict=True)


def _check_others(names: set[str], files: Mapping[str, Stored], known: Family) -> None:
    """Raise InputError if weights that the configuration has no place for mean something."""
    others = sorted(name for name in names if not name.endswith(known.ignored))
    head = "lm_head.weight"
    if head in others:  # so it is tied
        embedding = next(tensor.name for tensor in known.tensors if tensor.paths == ("embedding",))
        if not np.array_equal(files[head].tensor(), files[embedding].tensor()):
            raise InputError(
                f"its configuration ties the head to the embedding (tie_word_embeddings), but "
                f"{head} and {embedding} differ"
            )
        others.remove(head)
    if others:
        raise InputError(
            f"it has {len(others)} weights that its configuration has no place for, {others[0]} "
            "for one"
        )


def _shards(
    tensors: Sequence[Tensor], parameters: Mapping[str, Any], limit: int
) -> list[list[Tensor]]:
    """The tensors in groups of at most so many bytes, or of one tensor of all layers."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = sum(parameters[path].nbytes for path in tensor.paths)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _placed(value: NDArray[Any], parameter: Any, sharding_of: ShardingOf | None) -> jax.Array:
    return put(value, sharding_of(parameter.axes, value.shape) if sharding_of else None)
