"""The examples that the student generated, kept for later steps."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.errors import InputError

TokenIds: TypeAlias = npt.NDArray[np.int64]


class Example(NamedTuple):
    """A prompt and what was generated for it, as token ids without padding."""

    prompt: TokenIds
    completion: TokenIds


class ReplayBuffer:
    """First in, first out: once it is full, every new example replaces the oldest.

    In torch's data-parallel runs each process keeps its own; they are full at the same step as long
    as each pushes the same number of examples. In JAX all processes keep one and the same.

    Args:
        capacity: How many examples it holds at most; DistiLLM's 1000.

    Raises:
        InputError: ``capacity`` is not a positive integer.
    """

    def __init__(self, capacity: int = 1000) -> None:
        """An empty buffer."""
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise InputError(f"capacity must be a positive integer, got {capacity!r}")
        self.capacity = capacity
        self._examples: deque[Example] = deque(maxlen=capacity)

    def __len__(self) -> int:
        """The number of examples held."""
        return len(self._examples)

    @property
    def full(self) -> bool:
        """Whether the next example replaces one."""
        return len(self) == self.capacity

    def push(self, prompt: npt.ArrayLike, completion: npt.ArrayLike) -> None:
        """Add a copy of an example.

        Args:
            prompt: The prompt's token ids, integers in one dimension.
            completion: The generated token ids, likewise.

        Raises:
            InputError: they are not one-dimensional arrays of integers, none of them negative.
        """
        self._examples.append(
            Example(_token_ids("prompt", prompt), _token_ids("completion", completion))
        )

    def sample(self, count: int, rng: np.random.Generator) -> list[Example]:
        """Different examples at random, each equally likely.

        Args:
            count: How many.
            rng: The random numbers to use; not the data policy's own.

        Raises:
            InputError: the buffer does not hold so many.
        """
        if not 0 <= count <= len(self):
            raise InputError(
                f"count must be between 0 and {len(self)}, the examples in the replay buffer of "
                f"capacity {self.capacity}, got {count}"
            )
        return [self._examples[i] for i in rng.choice(len(self), size=count, replace=False)]

    def state(self) -> dict[str, npt.NDArray[np.int64]]:
        """All of it in three flat arrays, oldest example first, for safetensors.

        ``tokens`` is prompt, completion, prompt, completion, … end to end, and these pieces lie
        between consecutive ``offsets``; ``capacity`` has one entry.
        """
        pieces = [piece for example in self._examples for piece in example]
        ends = np.cumsum([0, *(piece.size for piece in pieces)], dtype=np.int64)
        tokens = np.concatenate([np.empty(0, np.int64), *pieces])
        return {"capacity": np.array([self.capacity]), "offsets": ends, "tokens": tokens}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[np.int64]]) -> "ReplayBuffer":
        """The buffer that a ``state()`` was taken of.

        Raises:
            InputError: an array is missing, or they do not fit together.
        """
        names = {"capacity", "offsets", "tokens"}
        if set(state) != names:
            raise _corrupted(f"it has {sorted(state)}, expected {sorted(names)}")
        arrays = {name: np.asarray(state[name]) for name in names}
        for name, array in arrays.items():
            if array.dtype != np.int64 or array.ndim != 1:
                raise _corrupted(
                    f"{name} must be int64 in one dimension, got {array.dtype} {array.shape}"
                )
        capacity, offsets, tokens = arrays["capacity"], arrays["offsets"], arrays["tokens"]
        if capacity.size != 1 or capacity[0] < 1:
            raise _corrupted(f"capacity must be one positive number, got {capacity.tolist()}")
        if offsets.size % 2 == 0 or offsets.size // 2 > capacity[0]:
            raise _corrupted(
                f"{offsets.size} offsets are not those of 0 to {capacity[0]} pairs of a prompt and "
                "a completion"
            )
        if offsets[0] != 0 or offsets[-1] != tokens.size or (offsets[1:] < offsets[:-1]).any():
            raise _corrupted(f"the offsets do not divide {tokens.size} tokens")
        if (tokens < 0).any():
            raise _corrupted(f"token ids must not be negative, but {tokens.min()} is among them")
        buffer = cls(int(capacity[0]))
        pieces = np.split(tokens, offsets[1:-1]) if offsets.size > 1 else []
        for prompt, completion in zip(pieces[::2], pieces[1::2], strict=True):
            buffer.push(prompt, completion)
        return buffer


def _token_ids(name: str, ids: npt.ArrayLike) -> TokenIds:
    array = np.asarray(ids)
    if array.ndim != 1 or not (array.dtype.kind in "iu" or array.size == 0):
        raise InputError(
            f"{name} must be token ids, integers in one dimension, got {array.dtype} "
            f"{array.shape}: {shortened(ids)}"
        )
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise InputError(f"{name} must be token ids, but {array.min()} is among them")
    own = array.astype(np.int64, copy=True)
    own.flags.writeable = False
    return own


def _corrupted(problem: str) -> InputError:
    return InputError(f"the saved replay buffer is damaged: {problem}; use an earlier checkpoint")
