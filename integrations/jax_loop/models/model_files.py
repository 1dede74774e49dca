"""Models from Hugging Face folders and the hub, and back."""

import copy
import json
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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from amidmath.integrations.common.errors import InputError, first_paragraph
from amidmath.integrations.common.storage.full_disk import saving
from amidmath.integrations.common.storage.whole_files import staged_dir, write_json
from amidmath.integrations.jax_loop.devices.processes import is_main, on_host, put
from amidmath.integrations.jax_loop.models.adapter_files import Adapter
from amidmath.integrations.jax_loop.models.decoder import Axes, Decoder
from amidmath.integrations.jax_loop.models.families import Family, Tensor, family, read_config

ShardingOf: TypeAlias = Callable[[Axes, tuple[int, ...]], jax.sharding.Sharding | None]
_WEIGHTS, _INDEX, _GENERATION = (
    "model.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
)
_DTYPES = ("F64", "F32", "F16", "BF16")
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
        generation_config = _json(folder / _GENERATION) if _has(folder, _GENERATION) else None
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
            deque(_theirs(tensor, parameters), maxlen=0)
        return
    with staged_dir(folder) as stage, saving(folder.name, stage):
        places: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(shards, start=1):
            several = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = _WEIGHTS if len(shards) == 1 else several
            content = dict(chain.from_iterable(_theirs(tensor, parameters) for tensor in shard))
            save_file(content, stage / file, metadata={"format": "pt"})
            places |= dict.fromkeys(content, file)
            total += sum(value.nbytes for value in content.values())
        if len(shards) > 1:
            write_json(stage / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})
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
    content = _json(folder / "config.json")
    family(content.get("model_type"))  # before transformers' own complaint
    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # its checks raise what they like
        raise InputError(f"its config.json does not hold: {first_paragraph(error)}") from error


def _json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"it has no {path.name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"its {path.name} is no JSON: {first_paragraph(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"its {path.name} must hold an object, not a {type(content).__name__}")
    return content


def _has(folder: Path, file: str) -> bool:
    return (folder / file).is_file()


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
        files = _open_files(folder, known.prefix, stack)
        tensors = [
            (tensor, _Parts.of(tensor, parameters)) for tensor in _present(known, parameters)
        ]
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


def _check_others(names: set[str], files: "Mapping[str, _Stored]", known: Family) -> None:
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


@dataclass(frozen=True)
class _Stored:
    """A tensor in an open safetensors file."""

    file: Any
    name: str

    def tensor(self, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Its value; raises InputError unless it has this shape and a dtype that is known."""
        found = self.file.get_slice(self.name)
        dtype, got = found.get_dtype(), tuple(found.get_shape())
        if dtype not in _DTYPES:
            raise InputError(
                f"its weight {self.name} is of type {dtype}; supported are {', '.join(_DTYPES)}"
            )
        if shape is not None and got != shape:
            raise InputError(
                f"its weight {self.name} has shape {got}; by its configuration it would be {shape}"
            )
        return cast("NDArray[Any]", self.file.get_tensor(self.name))


def _open_files(folder: Path, prefix: str, stack: ExitStack) -> dict[str, _Stored]:
    """All tensors of a folder, by the names that transformers gives them."""
    if _has(folder, _INDEX):
        places = sorted(set(_json(folder / _INDEX).get("weight_map", {}).values()))
    elif _has(folder, _WEIGHTS):
        places = [_WEIGHTS]
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        raise InputError(f"it has no {_WEIGHTS} and no {_INDEX}{hint}")
    found = {}
    for place in places:
        file = stack.enter_context(safe_open(folder / place, framework="numpy"))
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            whole = name.startswith((prefix, "lm_head."))
            found[name if whole else prefix + name] = _Stored(file, name)
    return found


@dataclass(frozen=True)
class _Parts:
    """The parameters of one tensor.

    Args:
        shapes: of each, in one layer.
        axes: of the first, in one layer.
        dtype: of all.
        layers: how many layers, if there is a tensor of each.
    """

    shapes: tuple[tuple[int, ...], ...]
    axes: Axes
    dtype: np.dtype[Any]
    layers: int | None

    @classmethod
    def of(cls, tensor: Tensor, parameters: Mapping[str, Any]) -> "_Parts":
        found = [parameters[path] for path in tensor.paths]
        first = 1 if tensor.per_layer else 0
        return cls(
            tuple(tuple(part.shape[first:]) for part in found),
            found[0].axes[first:],
            np.dtype(found[0].dtype),
            found[0].shape[0] if tensor.per_layer else None,
        )

    def names(self, tensor: Tensor) -> list[str]:
        """The tensor's name, or its names in all layers."""
        if self.layers is None:
            return [tensor.name]
        return [tensor.name.format(layer) for layer in range(self.layers)]


def _theirs(tensor: Tensor, parameters: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and values of a tensor, or of one in each layer."""
    parts = _Parts.of(tensor, parameters)
    values = [on_host(parameters[path][...]) for path in tensor.paths]
    for number, name in enumerate(parts.names(tensor)):
        pieces = [value[number] for value in values] if tensor.per_layer else values
        yield name, tensor.join(pieces, parts.axes)


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
