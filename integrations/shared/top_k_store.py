"""A teacher's most probable tokens on disk: a folder of safetensors shards and their index.

    index.json               what is cached, of which teacher and rows, and every shard's checksum
    shard-00000.safetensors  the lists of some rows, one row after the other:
        log_probs (P, k)  float16 or float32, nats, the most probable first
        indices   (P, k)  uint16, or int32 for more than 65,536 tokens
        tails     (P,)    float32, the logarithm of what the k tokens leave
        positions (P,)    int32, where in its row each is
        offsets   (R + 1,) int64, row r has the positions offsets[r] to offsets[r + 1]
        lengths   (R,)    int32, tokens of each row

Only positions that count are stored. A list's probabilities and its tail sum to 1 but for
rounding; who reads them divides by that sum, so that a small tail does not get lost in the rounding
of float16. Shards are planned before the first is written, appear whole
or not at all, and are in the index from then on: what was interrupted goes on with the first
missing shard. The same teacher, rows and plan give the same bytes.
"""

import errno
import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from amidmath._checks import shortened
from amidmath.integrations.shared.errors import InputError, first_paragraph
from amidmath.integrations.shared.full_disk import DiskFullError
from amidmath.integrations.shared.whole_files import staged_file, write_json

INDEX = "index.json"
FORMAT = "amidmath top-k cache"
VERSION = 1
DTYPES = ("float16", "float32")
FINGERPRINTS = ("model", "tokenizer", "data")
AGAIN = "run the cache_teacher.py command that made the cache again"

_POSITION_BYTES = 8  # its tail and where it is
_ROW_BYTES = 12


class Lists(NamedTuple):
    """What is known of some positions.

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
    """What a cache holds, and of what.

    Args:
        k: tokens a position.
        vocabulary: how many logits the teacher gives.
        log_probs: dtype in which log-probabilities are stored.
        temperature: by which the teacher's logits were divided.
        batch_rows: rows a forward pass; results depend on it in their last bits.
        fingerprints: of "model", "tokenizer" and "data".
        teacher: for people: name, revision, dtype.
    """

    k: int
    vocabulary: int
    log_probs: str
    temperature: float
    batch_rows: int
    fingerprints: Mapping[str, str]
    teacher: Mapping[str, str]

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


class TopKWriter:
    """Writes a cache, or what is missing of one.

    Args:
        folder: where; made if it is not there.
        header: what it will hold.
        counts: how many positions of every row count.
        lengths: how many tokens every row has.
        shard_bytes: about how large a shard is.
        overwrite: replace a cache of other things.

    Raises:
        InputError: the folder holds other files, or a cache of other things.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        counts: Sequence[int],
        lengths: Sequence[int],
        shard_bytes: int,
        *,
        overwrite: bool = False,
    ) -> None:
        """Plan the shards, or find the plan that was begun."""
        self.folder, self.header, self.counts, self.lengths = folder, header, counts, lengths
        self.shards = plan_shards(header, counts, shard_bytes)
        _check_folder(folder)
        self._replaces = False
        if (folder / INDEX).exists():
            differing = self._differing()
            if differing and not overwrite:
                raise InputError(
                    f"--output_dir: {folder} holds a cache of other things "
                    f"({'; '.join(differing)}): choose another folder, or replace it with "
                    "--overwrite_output_dir"
                )
            self._replaces = bool(differing)

    def _differing(self) -> list[str]:
        """In what the cache that is there differs from this one; if in nothing, go on with it."""
        try:
            begun, shards = _read_index(self.folder)
        except InputError as error:
            return [str(error)]
        differing = _differences(begun, self.header)
        planned = tuple(replace(shard, size=None, sha256=None) for shard in shards)
        if not differing and planned != self.shards:
            differing = ["its shards are of another size"]
        if not differing:
            self.shards = shards
        return differing

    def missing(self, *, verify: bool = False) -> list[int]:
        """The numbers of the shards that are to be written.

        Args:
            verify: also those whose bytes are not what the index says.
        """
        return [
            number
            for number, shard in enumerate(self.shards)
            if _fault(self.folder, shard, checksum=verify) is not None
        ]

    def begin(self) -> None:
        """Make the folder and its index, before the first shard; what is replaced goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._replaces:
            (self.folder / INDEX).unlink()
            for path in self.folder.glob("shard-*.safetensors"):
                path.unlink()
            self._replaces = False
        with self._room("the index"):
            self._write_index()

    def write(self, number: int, lists: Lists) -> None:
        """Write one shard whole, and say so in the index.

        Args:
            number: which.
            lists: of all its positions, row by row.

        Raises:
            DiskFullError: what was there before is kept.
            ValueError: lists of another shape than was planned.
        """
        shard, header = self.shards[number], self.header
        shape = (shard.positions, header.k)
        if lists.log_probs.shape != shape or lists.indices.shape != shape:
            raise ValueError(
                f"{shard.file} must have lists of shape {shape}, got {lists.log_probs.shape} and "
                f"{lists.indices.shape}"
            )
        rows = slice(shard.first_row, shard.first_row + shard.rows)
        content = save(
            {
                "log_probs": lists.log_probs.astype(header.log_probs),
                "indices": lists.indices.astype(header.indices),
                "tails": lists.tails.astype(np.float32),
                "positions": lists.positions.astype(np.int32),
                "offsets": np.concatenate([[0], np.cumsum(self.counts[rows])]).astype(np.int64),
                "lengths": np.asarray(self.lengths[rows], dtype=np.int32),
            }
        )
        with self._room(shard.file), staged_file(self.folder / shard.file) as partial:
            partial.write_bytes(content)
        done = replace(shard, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        self.shards = (*self.shards[:number], done, *self.shards[number + 1 :])
        with self._room("the index"):
            self._write_index()

    @contextmanager
    def _room(self, what: str) -> Iterator[None]:
        """Say what a full disk means for a cache."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            done = sum(shard.size is not None for shard in self.shards)
            left = payload_bytes(self.header, [s for s in self.shards if s.size is None])
            raise DiskFullError(
                f"the disk of {self.folder} is full: {what} could not be written. {done} of "
                f"{len(self.shards)} shards are finished and kept; make room for "
                f"{megabytes(left)} and {AGAIN}: it goes on from there"
            ) from error

    def _write_index(self) -> None:
        header = asdict(self.header)
        content = {
            "format": FORMAT,
            "version": VERSION,
            **header,
            "indices": self.header.indices,
            "rows": len(self.counts),
            "positions": sum(shard.positions for shard in self.shards),
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_json(self.folder / INDEX, content)


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
        self.header, self.shards = _read_index(folder)
        for shard in self.shards:
            fault = _fault(folder, shard, checksum=False)
            if fault is not None:
                raise InputError(f"the cache {folder}: {fault}; {AGAIN}: it writes that shard only")
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
            fault = _fault(self.folder, shard, checksum=True)
            if fault is not None:
                raise InputError(
                    f"the cache {self.folder}: {fault}; {AGAIN} with --verify: it writes that "
                    "shard only"
                )
            file = safe_open(self.folder / shard.file, framework="numpy")
            self._opened[number] = file, file.get_tensor("offsets"), file.get_tensor("lengths")
        return self._opened[number]


def free_bytes(folder: Path) -> int:
    """Room on the disk on which a folder is, or would be."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(nearest).free


def megabytes(count: float) -> str:
    """A size for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def check_fingerprints(
    folder: Path, cached: Mapping[str, str], expected: Mapping[str, str | None]
) -> None:
    """Raise InputError where a cache is of another model, tokenizer or data.

    Args:
        folder: of the cache.
        cached: its fingerprints.
        expected: those of the run; what is None or missing is not compared.
    """
    meaning = {
        "model": "the teacher's config or weights differ",
        "tokenizer": "the vocabulary, the special tokens or the chat template differ",
        "data": "the prepared rows differ: another dataset, max_length, packing or template",
    }
    differing = [
        f"{name} (cached {_short(cached[name])}, now {_short(str(expected[name]))}: "
        f"{meaning[name]})"
        for name in FINGERPRINTS
        if expected.get(name) is not None and expected[name] != cached[name]
    ]
    if differing:
        raise InputError(
            f"the cache {folder} was not made for this run, its fingerprints differ in "
            f"{' and in '.join(differing)}; make one with cache_teacher.py and this run's arguments"
        )


def _short(fingerprint: str) -> str:
    return fingerprint[:12]


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir: {folder} is a file, not a folder")
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if not name.startswith((INDEX, "shard-"))]
    if foreign:
        raise InputError(
            f"--output_dir: {folder} holds files that are no cache, {foreign[0]} for one; choose a "
            "new folder"
        )


def _differences(begun: Header, wanted: Header) -> list[str]:
    ours, theirs = asdict(begun), asdict(wanted)
    found = []
    for name in ours:
        if name == "fingerprints":
            found += [
                f"its {part} is {_short(begun.fingerprints[part])}, "
                f"not {_short(wanted.fingerprints[part])}"
                for part in FINGERPRINTS
                if begun.fingerprints[part] != wanted.fingerprints[part]
            ]
        elif ours[name] != theirs[name] and name != "teacher":
            found.append(f"its {name} is {ours[name]}, not {theirs[name]}")
    return found


def _read_index(folder: Path) -> tuple[Header, tuple[Shard, ...]]:
    """The index, looked at; raises InputError."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} holds no teacher cache: there is no {INDEX}; cache_teacher.py makes one"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {shortened(content['format'])}, not {FORMAT!r}")
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, not {VERSION}")
        header = Header(**{name: content[name] for name in Header.__dataclass_fields__})
        shards = tuple(Shard(**shard) for shard in content["shards"])
        if set(header.fingerprints) != set(FINGERPRINTS) or header.log_probs not in DTYPES:
            raise ValueError("its fingerprints or its dtype are none that are known here")
        firsts = np.cumsum([0, *(shard.rows for shard in shards)])[:-1]
        if [shard.first_row for shard in shards] != firsts.tolist():
            raise ValueError("its shards do not follow one another")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no index of a teacher cache: {first_paragraph(error)}"
        ) from error
    return header, shards


def _fault(folder: Path, shard: Shard, *, checksum: bool) -> str | None:
    """What is wrong with a shard, None if nothing is."""
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
