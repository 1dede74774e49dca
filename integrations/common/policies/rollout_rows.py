"""Rows that a model completes: whose prompts, how they make a batch, and which are remembered."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from amidmath.integrations.common.data.splits import SOURCE
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.base import Policy, Source
from amidmath.integrations.common.policies.replay_buffer import Example, ReplayBuffer
from amidmath.integrations.common.rows.batches import Batch, lay_out
from amidmath.integrations.common.rows.from_dataset import first_targets
from amidmath.integrations.common.rows.marks import NO_LABEL, NO_ROW
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.storage.arrow_lists import lists_of


class Memory:
    """A replay buffer, and the random numbers by which it is drawn from.

    Args:
        buffer: as it is at the start; of this process, or the same one on all processes.
        seed: of the random numbers, another one for another buffer.
    """

    def __init__(self, buffer: ReplayBuffer, seed: Sequence[int]) -> None:
        self.buffer = buffer
        self.rng = np.random.default_rng(seed)

    def draw(self, count: int) -> list[Example]:
        """Different examples of the buffer."""
        return self.buffer.sample(count, self.rng)

    def state(self) -> dict[str, Any]:
        """The replay buffer and the random numbers, for checkpoints."""
        return {"generator": self.rng.bit_generator.state, **self.buffer.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``; raises InputError if it is of another buffer, or damaged."""
        rest = dict(state)
        generator = rest.pop("generator")
        buffer = ReplayBuffer.from_state(rest)
        if buffer.capacity != self.buffer.capacity:
            raise InputError(
                f"--buffer_capacity {self.buffer.capacity}: the checkpoint's replay buffer has a "
                f"capacity of {buffer.capacity}; give that"
            )
        self.rng.bit_generator.state = generator
        self.buffer = buffer


def check_policy(
    policy: Policy,
    rows: Dataset,
    *,
    joined_by: Sequence[str] = (),
    teacher_knows_new_rows: bool,
    capacity: int,
    step_rows: int,
) -> None:
    """Raise InputError unless a data policy can be followed.

    Args:
        policy: where sequences come from.
        rows: the prepared rows.
        joined_by: the flags that were given and put several rows into one.
        teacher_knows_new_rows: whether the teacher can judge sequences that it has not seen.
        capacity: examples that the replay buffer holds.
        step_rows: rows of an optimiser step that a replay buffer is to give.
    """
    if policy.sources == {Source.DATASET}:
        return
    flag = f"--policy {policy.name}"
    if joined_by:
        raise InputError(
            f"{flag} generates completions of single prompts: leave out {' and '.join(joined_by)}"
        )
    check_prompts(flag, rows)
    if not teacher_knows_new_rows:
        raise InputError(
            f"{flag} needs a teacher that can judge new sequences; a cache knows the "
            "dataset's rows only: give --teacher_model_name_or_path, or --policy off_policy"
        )
    if Source.BUFFER in policy.sources and capacity < step_rows:
        raise InputError(
            f"--buffer_capacity {capacity} is less than the {step_rows} rows that an optimiser "
            "step takes from the replay buffer: give as many or more"
        )


def check_prompts(flag: str, rows: Dataset) -> None:
    """Raise InputError, with the row, unless every row begins with a token that is not learned."""
    before = 0
    for labels, lengths in lists_of(rows, "labels"):
        starts = np.cumsum(lengths) - lengths
        bare = np.flatnonzero(labels[starts] != NO_LABEL)
        if len(bare):
            raise InputError(
                f"{flag} generates completions of prompts, and row {before + bare[0]} of the "
                "dataset has none: give columns 'prompt' and 'completion' (or 'messages' with "
                "--assistant_only_loss), or --policy off_policy"
            )
        before += len(lengths)


def longest_prompt(rows: Dataset) -> int:
    """The most tokens before the first that is learned, of rows that have such a token."""
    return int(first_targets(rows).max())


def prompts_of(
    ids: NDArray[Any], labels: NDArray[Any], kept: NDArray[np.bool_]
) -> list[NDArray[Any]]:
    """The tokens before the first labelled one of every row; rows of padding are left out.

    Args:
        ids: shape (…, L), all axes but the last being rows.
        labels: likewise.
        kept: likewise; False where there is padding.
    """
    rows = zip(*(array.reshape(-1, array.shape[-1]) for array in (ids, labels, kept)), strict=True)
    return [
        row[keep][: (label[keep] != NO_LABEL).argmax()] for row, label, keep in rows if keep.any()
    ]


def completed(
    examples: Sequence[Example], batch: Mapping[str, NDArray[Any]], pad: int, source: int | None
) -> Batch:
    """A batch of the same shape, with these examples in the places of its rows.

    Args:
        examples: one for each row that is not padding only.
        batch: as ``batches.Batches`` makes them.
        pad: the token that fills rows.
        source: the examples' "source"; None if the batch is to have none.

    Returns:
        The batch, completions being learned and prompts not. Its rows have no numbers (-1): they
        are not the dataset's.
    """
    shape = batch["input_ids"].shape
    present = (batch["segments"] > 0).any(axis=-1)
    lengths = np.zeros(present.shape, np.int64)
    lengths[present] = [len(prompt) + len(completion) for prompt, completion in examples]
    laid = lay_out(
        np.concatenate([ids for example in examples for ids in example]),
        np.concatenate(
            [
                ids
                for prompt, completion in examples
                for ids in (np.full_like(prompt, NO_LABEL), completion)
            ]
        ),
        lengths.ravel(),
        length=shape[-1],
        pad=pad,
    )
    made = {name: array.reshape(shape) for name, array in laid.items()}
    made[ROW] = np.full(present.shape, NO_ROW, np.int32)
    if source is not None:
        made[SOURCE] = np.full(present.shape, source, np.int32)
    return made
