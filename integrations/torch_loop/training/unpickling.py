"""The parts of a checkpoint that are unpickled on resuming; none of it can run code.

transformers reads optimizer.pt, scheduler.pt, scaler.pt, rng_state*.pth and pytorch_model*.bin with
``torch.load(weights_only=True)`` (``Trainer._load_optimizer_and_scheduler``, ``_load_scaler``,
``_load_rng_state``, ``_load_from_checkpoint``), which builds tensors and plain containers only.
Two engines unpickle without that guard, and are checked here before they read: torch's distributed
checkpoints, which FSDP writes (``.metadata``, and the entries of ``.distcp`` that are no tensors),
and DeepSpeed's. training_args.bin is read by nobody.
"""

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.serialization import get_unsafe_globals_in_checkpoint

from amidmath.integrations.common.errors import InputError

_FLAG = "--resume_from_checkpoint"

# What torch's distributed checkpoints are described by; none of it does more than hold values.
_DESCRIBING = {
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    *("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
}
_ALLOWED = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _DESCRIBING),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
}

# Classes of DeepSpeed's optimisers, and NumPy's arrays.
_ALLOWED_IN_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
}


class _Describing(pickle.Unpickler):
    """Unpickles descriptions of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed name; raises UnpicklingError for any other."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _ALLOWED and not is_dtype:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)


def refuse_code(checkpoint: Path) -> None:
    """Raise InputError if going on from a checkpoint would run code that lies in it."""
    for path in sorted(checkpoint.rglob("*.metadata")):
        _check_distributed(path)
    for path in sorted(checkpoint.glob("global_step*/**/*.pt")):
        with path.open("rb") as file:
            _check_saved(path, file, _ALLOWED_IN_DEEPSPEED)


def _check_distributed(path: Path) -> None:
    try:
        with path.open("rb") as file:
            metadata = _Describing(file).load()
        entries = metadata.state_dict_metadata
        stored = metadata.storage_data
        for index, place in stored.items():
            if isinstance(entries[index.fqn], BytesStorageMetadata):
                with (path.parent / place.relative_path).open("rb") as file:
                    file.seek(place.offset)
                    content = io.BytesIO(file.read(place.length))
                _check_saved(path.parent / place.relative_path, content, ())
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{_FLAG}: {path} is not read: {type(error).__name__}: {error}") from error


def _check_saved(path: Path, file: "BinaryIO | io.BytesIO", allowed: Iterable[str]) -> None:
    """Raise InputError unless what ``torch.save`` wrote names nothing but what is allowed."""
    try:
        names = set(get_unsafe_globals_in_checkpoint(cast("Any", file))) - set(allowed)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{_FLAG}: {path} is not read: {type(error).__name__}: {error}") from error
    if names:
        raise InputError(f"{_FLAG}: {path} is not read: it would call {', '.join(sorted(names))}")
