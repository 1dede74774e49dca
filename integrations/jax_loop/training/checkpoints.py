"""Checkpoints of a training state by Orbax, whole or not there, with all else that counts."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.run.checkpoints import (
    ExtraState,
    publish,
    read_state,
    remove_leftovers,
    require_whole,
    staging_of,
    step_of,
    write_state,
)
from amidmath.integrations.common.storage.full_disk import saving
from amidmath.integrations.jax_loop.devices.processes import is_main, wait_for_all

_ARRAYS = "arrays"
# The same on every process, so that one writes it, and any number of them can go on from it.
_STATE = "distillation_state"


def save(
    folder: Path, step: int, arrays: Any, states: Mapping[str, ExtraState], limit: int | None
) -> None:
    """Write ``checkpoint-<step>``; with several processes to a file system that they share.

    Args:
        folder: the run folder.
        step: how many optimiser steps are done.
        arrays: a tree of arrays, on whatever devices.
        states: what else there is to go on from, by name.
        limit: how many checkpoints are kept, the newest; None for all.

    Raises:
        DiskFullError: there is no room; earlier checkpoints are kept.
    """
    checkpoint = folder / f"checkpoint-{step}"
    stage = staging_of(checkpoint)
    built = stage / checkpoint.name
    if is_main():
        shutil.rmtree(stage, ignore_errors=True)
        built.mkdir(parents=True)
    wait_for_all("staging")
    with saving(checkpoint.name, stage):
        with ocp.StandardCheckpointer() as writer:
            writer.save(built.absolute() / _ARRAYS, _by_name(arrays))
        wait_for_all("written")
        if is_main():
            write_state(built, _STATE, {name: state.state() for name, state in states.items()})
            publish(checkpoint)
    wait_for_all("published")
    if limit is not None and is_main():
        found = [p for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
        for old in sorted(found, key=step_of)[:-limit]:
            shutil.rmtree(old)


def restore(checkpoint: Path, like: Any, states: Mapping[str, ExtraState]) -> Any:
    """The tree of arrays as it was, placed as ``like``; the other states are put back.

    Args:
        checkpoint: the folder.
        like: a tree of arrays of the same shapes, dtypes and places.
        states: as for :func:`save`.

    Raises:
        InputError: it is damaged, or of another run.
    """
    require_whole(checkpoint)
    found = read_state(checkpoint, _STATE)
    if found.keys() != states.keys():
        raise InputError(
            f"--resume_from_checkpoint: {checkpoint} holds the states of "
            f"{', '.join(sorted(found))}; this run has {', '.join(sorted(states))}"
        )
    named = _by_name(like)
    target = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in named.items()
    }
    try:
        with ocp.StandardCheckpointer() as reader:
            arrays = reader.restore(checkpoint.absolute() / _ARRAYS, target)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"--resume_from_checkpoint: {checkpoint} does not fit this run: {error}"
        ) from error
    for name, owner in states.items():
        owner.restore(found[name])
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named])


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written."""
    if is_main():
        remove_leftovers(folder)
    wait_for_all("cleared")


def _by_name(tree: Any) -> dict[str, jax.Array]:
    """The arrays of a tree by where they are in it, in its order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
