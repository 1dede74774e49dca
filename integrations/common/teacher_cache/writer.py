"""Writes a teacher's cache shard by shard, by one process or several, and goes on with one."""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.storage.full_disk import DiskFullError
from amidmath.integrations.common.storage.whole_files import staged_file, write_json
from amidmath.integrations.common.teacher_cache.format import (
    AGAIN,
    FINGERPRINTS,
    FORMAT,
    HELD_OUT,
    INDEX,
    VERSION,
    Header,
    Lists,
    Shard,
    fault,
    payload_bytes,
    plan_shards,
    read_index,
)


class TopKWriter:
    """Writes a cache, or what is missing of one.

    Of several processes that write one cache, each writes other shards, and one keeps the index.
    What the others have written they leave a note of, ``shard-00000.json``, from which the index
    has it: a process that is killed loses no shard.

    Args:
        folder: where; made if it is not there.
        header: what it will hold.
        counts: how many positions of every row count.
        lengths: how many tokens every row has.
        shard_bytes: about how large a shard is.
        overwrite: replace a cache of other things.
        keeps_index: this process writes the index.

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
        keeps_index: bool = True,
    ) -> None:
        """Plan the shards, or find the plan that was begun."""
        self.keeps_index = keeps_index
        self.folder, self.header, self.counts, self.lengths = folder, header, counts, lengths
        self.shards = plan_shards(header, counts, shard_bytes)
        check_folder(folder)
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
            begun, shards = read_index(self.folder)
        except InputError as error:
            return [str(error)]
        differing = _differences(begun, self.header)
        planned = tuple(replace(shard, size=None, sha256=None) for shard in shards)
        if not differing and planned != self.shards:
            differing = ["its shards are of another size"]
        if not differing:
            self.shards = _with_notes(shards, self._notes())
        return differing

    def missing(self, *, verify: bool = False) -> list[int]:
        """The numbers of the shards that are to be written.

        Args:
            verify: also those whose bytes are not what the index says.
        """
        return [
            number
            for number, shard in enumerate(self.shards)
            if fault(self.folder, shard, checksum=verify) is not None
        ]

    def begin(self) -> None:
        """Make the folder and its index, before the first shard; what is replaced goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._replaces:
            (self.folder / INDEX).unlink()
            self._replaces = False
        if not (self.folder / INDEX).exists():  # shards of what, nobody knows
            for path in self.folder.glob("shard-*"):
                path.unlink()
        self.collect()
        for path in self.folder.glob("shard-*.json"):  # which could not be read
            path.unlink()

    def collect(self) -> None:
        """Take into the index what other processes have written until now."""
        notes = self._notes()
        self.shards = _with_notes(self.shards, notes)
        with self._room("the index"):
            self._write_index()
        for number in notes:
            self._note(number).unlink()

    def write(self, number: int, lists: Lists) -> None:
        """Write one shard whole, and say so in the index, or for who keeps it.

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
        if self.keeps_index:
            self.collect()
            return
        with self._room(shard.file):
            write_json(self._note(number), {"size": done.size, "sha256": done.sha256})

    def _note(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.json"

    def _notes(self) -> dict[int, dict[str, Any]]:
        """Notes of other processes on their shards; one that cannot be read is of no shard."""
        found = {}
        for path in self.folder.glob("shard-*.json"):
            try:
                note = json.loads(path.read_text("utf-8"))
                found[int(path.stem.removeprefix("shard-"))] = {
                    name: note[name] for name in ("size", "sha256")
                }
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    @contextmanager
    def _room(self, what: str) -> Iterator[None]:
        """Say what a full disk means for a cache."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            shards = self._all_written()
            done = sum(shard.size is not None for shard in shards)
            left = payload_bytes(self.header, [s for s in shards if s.size is None])
            raise DiskFullError(
                f"the disk of {self.folder} is full: {what} could not be written. {done} of "
                f"{len(self.shards)} shards are finished and kept; make room for "
                f"{megabytes(left)} and {AGAIN}: it goes on from there"
            ) from error

    def _all_written(self) -> tuple[Shard, ...]:
        """The shards with all that is known of them, other processes' too."""
        try:
            _, indexed = read_index(self.folder)
        except InputError:  # not yet
            return self.shards
        pairs = zip(self.shards, _with_notes(indexed, self._notes()), strict=True)
        return tuple(theirs if ours.size is None else ours for ours, theirs in pairs)

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


def _with_notes(
    shards: Sequence[Shard], notes: Mapping[int, Mapping[str, Any]]
) -> tuple[Shard, ...]:
    return tuple(replace(shard, **notes.get(number, {})) for number, shard in enumerate(shards))


def free_bytes(folder: Path) -> int:
    """Room on the disk on which a folder is, or would be."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(nearest).free


def megabytes(count: float) -> str:
    """A size for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def check_folder(folder: Path) -> None:
    """Raise InputError where a folder holds something that is no cache."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir: {folder} is a file, not a folder")
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if not name.startswith((INDEX, "shard-", HELD_OUT))]
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
                f"its {part} is {begun.fingerprints[part][:12]}, "
                f"not {wanted.fingerprints[part][:12]}"
                for part in FINGERPRINTS
                if begun.fingerprints[part] != wanted.fingerprints[part]
            ]
        elif name == "teacher":
            found += [
                f"its teacher's {part} is {begun.teacher.get(part)}, not {wanted.teacher.get(part)}"
                for part in ("dtype", "precision")
                if begun.teacher.get(part) != wanted.teacher.get(part)
            ]
        elif ours[name] != theirs[name] and name != "arguments":
            found.append(f"its {name} is {ours[name]}, not {theirs[name]}")
    return found
