"""Reads a teacher's cache, and holds it against what a run prepares."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import safe_open

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.teacher_cache.format import (
    AGAIN,
    FINGERPRINTS,
    Header,
    Lists,
    fault,
    read_index,
)

_ARGUMENTS = (
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"),
    *("eval_dataset_name", "eval_fraction", "seed", "dataset_text_field"),
    *("max_length", "packing", "packing_strategy", "eval_packing", "padding_free"),
    *("completion_only_loss", "assistant_only_loss", "chat_template_path", "eos_token"),
    "drop_unlearnable_rows",
)


class TopKStore:
    """A complete cache, memory-mapped; every process opens its own.

    Args:
        folder: where it is.

    Raises:
        InputError: no cache, an unknown version, or a shard that is missing or has another size
            than was written. The bytes of a shard are held against its checksum when its first
            row is read.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index and look at every shard's size."""
        self.folder = folder
        self.header, self.shards = read_index(folder)
        for shard in self.shards:
            found = fault(folder, shard, checksum=False)
            if found is not None:
                raise InputError(f"the cache {folder}: {found}; {AGAIN}: it writes that shard only")
        self.rows = sum(shard.rows for shard in self.shards)
        self.positions = sum(shard.positions for shard in self.shards)
        self._firsts = [shard.first_row for shard in self.shards]
        self._opened: dict[int, tuple[Any, NDArray[Any], NDArray[Any]]] = {}

    def length(self, row: int) -> int:
        """How many tokens a row has."""
        number, at = self._find(row)
        return int(self._open(number)[2][at])

    def read(self, row: int) -> Lists:
        """The lists of one row, copied out of the map.

        Raises:
            InputError: no such row, or a shard that is not what was written.
        """
        number, at = self._find(row)
        file, offsets, _ = self._open(number)
        part = slice(int(offsets[at]), int(offsets[at + 1]))
        return Lists(*(file.get_slice(name)[part] for name in Lists._fields))

    def tails(self) -> Iterator[NDArray[Any]]:
        """The tails of all positions, a shard at a time."""
        for number in range(len(self.shards)):
            yield self._open(number)[0].get_tensor("tails")

    def _find(self, row: int) -> tuple[int, int]:
        if not 0 <= row < self.rows:
            raise InputError(f"the cache {self.folder} has {self.rows} rows, there is no row {row}")
        number = bisect_right(self._firsts, row) - 1
        return number, row - self._firsts[number]

    def _open(self, number: int) -> tuple[Any, NDArray[Any], NDArray[Any]]:
        if number not in self._opened:
            shard = self.shards[number]
            found = fault(self.folder, shard, checksum=True)
            if found is not None:
                raise InputError(
                    f"the cache {self.folder}: {found}; {AGAIN} with --verify: it writes that "
                    "shard only"
                )
            file = safe_open(self.folder / shard.file, framework="numpy")
            self._opened[number] = file, file.get_tensor("offsets"), file.get_tensor("lengths")
        return self._opened[number]


def data_arguments(*settings: object) -> dict[str, Any]:
    """The arguments of a run or of caching that rows depend on, by their names."""
    return {
        name: getattr(part, name) for part in settings for name in _ARGUMENTS if hasattr(part, name)
    }


def check_fingerprints(
    folder: Path,
    header: Header,
    expected: Mapping[str, str | None],
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Raise InputError where a cache is of another model, tokenizer or data.

    Args:
        folder: of the cache.
        header: of the cache.
        expected: the run's fingerprints; what is None or missing is not compared.
        arguments: the run's, as :func:`data_arguments` gives them, to say which of them differ.
    """
    name = header.teacher.get("name", "a teacher")
    meaning = {
        "model": f"it is of {name}, another model or other weights than the teacher that is named",
        "tokenizer": "the vocabulary, the special tokens or the chat template differ",
        "data": f"the prepared rows differ{_differing(header.arguments, arguments)}",
    }
    cached = header.fingerprints
    differing = [
        f"{name} (cached {cached[name][:12]}, now {str(expected[name])[:12]}: {meaning[name]})"
        for name in FINGERPRINTS
        if expected.get(name) is not None and expected[name] != cached[name]
    ]
    if differing:
        raise InputError(
            f"the cache {folder} was not made for this run, its fingerprints differ in "
            f"{' and in '.join(differing)}; make one with cache_teacher.py and this run's arguments"
        )


def _differing(cached: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Which arguments made other rows, as far as both are known."""
    known = [name for name in now or {} if name in (cached or {})]
    if not cached or not now or not known:
        return ": another dataset, split, seed, max_length, packing or template"
    found = [
        f"--{name} {now[name]} (cached with {cached[name]})"
        for name in known
        if now[name] != cached[name]
    ]
    if not found:
        return " although the arguments are the same: the files behind them, or a library"
    return f": {', '.join(found)}"
