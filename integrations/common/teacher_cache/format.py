"""The files of a teacher's cache: a folder of safetensors shards and their index.

    index.json               what is cached, of which teacher and rows, and every shard's checksum
    shard-00000.safetensors  the lists of some rows, one row after the other:
        log_probs (P, k)  float16 or float32, nats, the most probable first
        indices   (P, k)  uint16, or int32 for more than 65,536 tokens
        tails     (P,)    float32, the logarithm of what the k tokens leave
        positions (P,)    int32, where in its row each is
        offsets   (R + 1,) int64, row r has the positions offsets[r] to offsets[r + 1]
        lengths   (R,)    int32, tokens of each row
    held_out/                the same of the held-out rows, if they are cached too

Only positions that count are stored. A list's probabilities and its tail sum to 1 but for
rounding; who reads them divides by that sum, so that a small tail does not get lost in the rounding
of float16. Shards are planned before the first is written, appear whole or not at all, and are in
the index from then on: what was interrupted goes on with the first missing shard. The same teacher,
rows and plan give the same bytes, whatever the number of processes that write them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.errors import InputError, first_paragraph

INDEX = "index.json"
HELD_OUT = "held_out"
FORMAT = "amidmath top-k cache"
VERSION = 1
DTYPES = ("float16", "float32")
FINGERPRINTS = ("model", "tokenizer", "data")
AGAIN = "run the cache_teacher.py command that made the cache again"

_POSITION_BYTES = 8  # its tail and where it is
_ROW_BYTES = 12


class Lists(NamedTuple):
    """The lists of some positions.

    Args:
        log_probs: shape (P, k), nats.
        indices: shape (P, k), tokens.
        tails: shape (P,), the logarithm of the mass of all other tokens.
        positions: shape (P,), where in its row each position is.
    """

    log_probs: NDArray[Any]
    indices: NDArray[Any]
    tails: NDArray[Any]
    positions: NDArray[Any]


@dataclass(frozen=True)
class Header:
    """The description of a cache: what it holds, and of what.

    Args:
        k: tokens a position.
        vocabulary: over how many tokens the teacher's probabilities are.
        log_probs: dtype in which log-probabilities are stored.
        temperature: by which the teacher's logits were divided.
        batch_rows: rows a forward pass; results depend on it in their last bits.
        fingerprints: of "model", "tokenizer" and "data".
        teacher: its name, revision and dtype, and the precision of its multiplications; for people,
            and so that shards of one cache have one precision.
        common: how many first tokens are the same for the tokenizer that prepared the rows; None
            for all.
        of_logits: how many logits the teacher gives, where those beyond the vocabulary were left
            out; None where none were.
        arguments: for people: what the rows were prepared with, by the flags' names.
    """

    k: int
    vocabulary: int
    log_probs: str
    temperature: float
    batch_rows: int
    fingerprints: Mapping[str, str]
    teacher: Mapping[str, str]
    common: int | None = None
    of_logits: int | None = None
    arguments: Mapping[str, Any] | None = None

    @property
    def indices(self) -> str:
        """The smallest dtype that holds every token."""
        return "uint16" if self.vocabulary <= 2**16 else "int32"

    @property
    def position_bytes(self) -> int:
        """Bytes that a position takes."""
        a_token = np.dtype(self.log_probs).itemsize + np.dtype(self.indices).itemsize
        return self.k * a_token + _POSITION_BYTES


@dataclass(frozen=True)
class Shard:
    """One file of a cache.

    Args:
        file: its name.
        first_row: the first of its rows.
        rows: how many it has.
        positions: how many positions they have.
        size: of the file in bytes; None while it is not written.
        sha256: of its bytes.
    """

    file: str
    first_row: int
    rows: int
    positions: int
    size: int | None = None
    sha256: str | None = None

    @property
    def row_numbers(self) -> range:
        """Its rows."""
        return range(self.first_row, self.first_row + self.rows)


def plan_shards(header: Header, counts: Sequence[int], shard_bytes: int) -> tuple[Shard, ...]:
    """Rows by shards of about ``shard_bytes``, each of whole rows.

    Args:
        header: of the cache.
        counts: how many positions of every row count.
        shard_bytes: the size that closes a shard.
    """
    shards: list[Shard] = []
    first = size = positions = 0
    for row, count in enumerate(counts):
        size += count * header.position_bytes + _ROW_BYTES
        positions += int(count)
        if size >= shard_bytes or row == len(counts) - 1:
            name = f"shard-{len(shards):05d}.safetensors"
            shards.append(Shard(name, first, row + 1 - first, positions))
            first, size, positions = row + 1, 0, 0
    return tuple(shards)


def payload_bytes(header: Header, shards: Sequence[Shard]) -> int:
    """Bytes of all shards, but for the few hundred of each file's own header."""
    return sum(
        shard.positions * header.position_bytes + shard.rows * _ROW_BYTES + 8 for shard in shards
    )


def read_index(folder: Path) -> tuple[Header, tuple[Shard, ...]]:
    """Read a cache's description and its files.

    Raises:
        InputError: there is none, or one that is not understood; the message says what is there.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder} holds no teacher cache: {_instead(folder)}")
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {shortened(content['format'])}, not {FORMAT!r}")
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, not {VERSION}")
        names = {part.name: part.default is MISSING for part in fields(Header)}
        header = Header(**{n: content[n] for n, needed in names.items() if needed or n in content})
        shards = tuple(Shard(**shard) for shard in content["shards"])
        if set(header.fingerprints) != set(FINGERPRINTS) or header.log_probs not in DTYPES:
            raise ValueError("its fingerprints or its dtype are none that are known here")
        firsts = np.cumsum([0, *(shard.rows for shard in shards)])[:-1]
        if [shard.first_row for shard in shards] != firsts.tolist():
            raise ValueError("its shards do not follow one another")
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing = isinstance(error, KeyError)
        reason = f"it has no entry {error}" if missing else first_paragraph(error)
        raise InputError(
            f"{path} is no index of a teacher cache: {reason}. The cache_teacher.py command that "
            "made it makes it anew with --overwrite_output_dir"
        ) from error
    return header, shards


def other_than(training: Header, held_out: Header) -> str:
    """In what held-out rows were cached otherwise than the training rows beside them; or ""."""
    found = [
        f"{name} {getattr(held_out, name)} instead of {getattr(training, name)}"
        for name in ("k", "temperature", "vocabulary")
        if getattr(held_out, name) != getattr(training, name)
    ]
    ours, theirs = (header.fingerprints["model"] for header in (training, held_out))
    if ours != theirs:
        found.append(f"another teacher, {theirs[:12]} instead of {ours[:12]}")
    return ", ".join(found)


def _instead(folder: Path) -> str:
    """Words for what is there where a cache should be."""
    if not folder.exists():
        return "there is no such folder; cache_teacher.py makes one"
    if (folder / HELD_OUT / INDEX).is_file():
        return (
            f"there is no {INDEX}, only held-out rows in {HELD_OUT}/; the same cache_teacher.py "
            "command without --held_out adds the training rows"
        )
    return f"there is no {INDEX}; cache_teacher.py makes one"


def fault(folder: Path, shard: Shard, *, checksum: bool) -> str | None:
    """The fault of a shard; None if it has none."""
    path = folder / shard.file
    if shard.size is None:
        return f"{shard.file} has not been written yet"
    if not path.is_file():
        return f"{shard.file} is missing"
    size = path.stat().st_size
    if size != shard.size:
        return f"{shard.file} has {size:,} bytes instead of {shard.size:,}"
    if checksum and _sha256(path) != shard.sha256:
        return f"{shard.file} is corrupt, its checksum is not the one in {INDEX}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
