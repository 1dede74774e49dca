"""Checkpoints that are whole or not there.

A checkpoint is built in ``.partial-checkpoint-N/`` beside its place. When every file is on the
disk, ``complete.json`` is added, which names each with its size and CRC-32, and the folder is
renamed to ``checkpoint-N``. So a folder of that name is whole; a later truncation shows against
the manifest.

The checksum finds accidents, not forgery: whoever can change a file can change the manifest too.
It costs little (zlib: some 7 GB/s), so every file has one, whatever its size.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from amidmath.integrations.common.errors import InputError

MANIFEST = "complete.json"
TRAINER_STATE = "trainer_state.json"
_STAGING = ".partial-"
_NAME = re.compile(r"checkpoint-(\d+)")
_BLOCK = 1 << 22


@runtime_checkable
class ExtraState(Protocol):
    """Something whose state belongs in a checkpoint beside what the trainer keeps itself."""

    def state(self) -> Mapping[str, Any]:
        """All that going on depends on: values that JSON keeps exactly, and NumPy arrays."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from a ``state()`` as if there had been no break."""
        ...


def step_of(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"checkpoint must be named checkpoint-N, got {checkpoint.name!r}")
    return int(match[1])


def staging_of(checkpoint: Path) -> Path:
    """The folder in which a checkpoint is built, under its own name."""
    return checkpoint.with_name(f"{_STAGING}{checkpoint.name}")


def publish(checkpoint: Path) -> None:
    """Put a checkpoint that is complete in its staging folder in its place.

    Everything is on the disk before the rename, so that a loss of power leaves the checkpoint
    whole or absent too.
    """
    stage = staging_of(checkpoint)
    built = stage / checkpoint.name
    files = sorted(path for path in built.rglob("*") if path.is_file())
    manifest = {"files": {path.relative_to(built).as_posix(): _entry(path) for path in files}}
    (built / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _flush(built / MANIFEST)
    for folder in {path.parent for path in files} | {built}:
        _flush(folder)
    if checkpoint.exists():  # of a run that went on from an earlier step, or damaged
        checkpoint.rename(stage / "replaced")
    built.rename(checkpoint)
    _flush(checkpoint.parent)
    shutil.rmtree(stage)


def remove_leftovers(folder: Path) -> list[str]:
    """Delete what a killed process left half-written in a run folder; gives the names."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.name.startswith(_STAGING))
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in found]


def problem_with(checkpoint: Path) -> str | None:
    """The reason why a checkpoint is not whole: a file, expected and found; None if it is."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return f"it has no {MANIFEST}, which is written last"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {name: (int(entry["size"]), entry["crc32"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, (size, _) in expected.items():  # sizes first: that is quick
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing (expected {size:,} bytes)"
        if (found := file.stat().st_size) != size:
            return f"{name} has {found:,} bytes, expected {size:,}"
    for name, (_, crc) in expected.items():
        if (found_crc := _crc32(checkpoint / name)) != crc:
            return f"{name} has the right size but CRC-32 {found_crc}, expected {crc}"
    return None


def require_whole(checkpoint: Path, flag: str = "--resume_from_checkpoint") -> None:
    """Raise InputError unless this is a whole checkpoint."""
    if not checkpoint.is_dir():
        raise InputError(f"{flag}: {checkpoint} is no checkpoint of a run: no such folder")
    problem = problem_with(checkpoint)
    if problem is not None:
        raise InputError(f"{flag}: {checkpoint} is no whole checkpoint of a run: {problem}")


def newest_whole(folder: Path, say: Callable[[str], object]) -> Path | None:
    """The newest checkpoint of a run folder that is whole.

    Args:
        folder: the run folder.
        say: told of every newer one that is damaged and passed over.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    damaged: list[str] = []
    for checkpoint in sorted(found, key=step_of, reverse=True):
        problem = problem_with(checkpoint)
        if problem is None:
            for text in damaged:
                say(f"{text}; passed over for {checkpoint.name}")
            return checkpoint
        damaged.append(f"{checkpoint} is damaged: {problem}")
    if damaged:
        raise InputError(
            f"{damaged[0]}, and no older one is whole; start anew with --overwrite_output_dir, or "
            "choose another folder"
        )
    return None


def write_state(checkpoint: Path, name: str, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write states to ``name.json``, and the arrays in them to ``name.safetensors``.

    Args:
        checkpoint: the folder.
        name: of the two files.
        states: by the name of what they belong to; the values of each are arrays or for JSON.

    Raises:
        TypeError: JSON would not give a value back as it was.
    """
    plain: dict[str, dict[str, Any]] = {owner: {} for owner in states}
    arrays: dict[str, Any] = {}
    for owner, state in states.items():
        for key, value in state.items():
            if isinstance(value, np.ndarray):
                arrays[f"{owner}/{key}"] = np.ascontiguousarray(value)
            else:
                plain[owner][key] = value
    text = json.dumps({"states": plain, "arrays": sorted(arrays)}, indent=1)
    if json.loads(text)["states"] != plain and not _has_nan(plain):
        raise TypeError(f"states must be what JSON gives back unchanged, got {plain!r}")
    (checkpoint / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if arrays:
        save_file(arrays, checkpoint / f"{name}.safetensors")


def read_state(checkpoint: Path, name: str) -> dict[str, dict[str, Any]]:
    """The states that ``write_state`` wrote; raises InputError where they cannot be read."""
    path, binary = checkpoint / f"{name}.json", checkpoint / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(
            f"--resume_from_checkpoint: {checkpoint} has no {path.name}: it is of another program, "
            "or of a run with another number of processes"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        states: dict[str, dict[str, Any]] = content["states"]
        arrays = load_file(binary) if content["arrays"] else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"--resume_from_checkpoint: {path} cannot be read: {type(error).__name__}: {error}"
        ) from error
    for full_name, array in arrays.items():
        owner, _, key = full_name.partition("/")
        states[owner][key] = array
    return states


def _has_nan(value: Any) -> bool:
    """Whether a NaN is inside, which equals nothing, itself included."""
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list):
        return any(map(_has_nan, value))
    return isinstance(value, float) and value != value


def _entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, which is on the disk afterwards."""
    _flush(path)
    return {"size": path.stat().st_size, "crc32": _crc32(path)}


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
