"""An estimate of caching a teacher: size, time, and the mass that is covered."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.teacher_cache.format import Header, payload_bytes, plan_shards
from amidmath.integrations.common.teacher_cache.source import CacheSource, batches
from amidmath.integrations.common.teacher_cache.store import TopKStore
from amidmath.integrations.common.teacher_cache.writer import TopKWriter, free_bytes, megabytes

# How many batches are tried beforehand; the first of them warms up.
_TRIED = 4
_OFFERED = (16, 32, 64, 128, 256, 512)


def print_estimate(
    console: Console,
    source: CacheSource,
    writer: TopKWriter,
    missing: Sequence[int],
    processes: int = 1,
) -> None:
    """Size, time, and what other k would cover.

    Args:
        console: where it goes.
        source: teacher and rows.
        writer: of the cache.
        missing: the shards to write.
        processes: how many write.

    Raises:
        InputError: there is no room for what is missing.
    """
    header, shards = writer.header, writer.shards
    total = payload_bytes(header, shards)
    count = sum(shard.positions for shard in shards)
    console.print(
        f"{len(writer.counts):,} rows, {sum(writer.lengths):,} tokens, {count:,} of them count: "
        f"{megabytes(total)} in {len(shards)} shards ({header.position_bytes} bytes a position)",
        highlight=False,
    )
    if not missing:
        console.print("All shards are there.")
        return
    needed = payload_bytes(header, [shards[number] for number in missing])
    free = free_bytes(writer.folder)
    if needed > free:
        raise InputError(
            f"--output_dir: {writer.folder} needs {megabytes(needed)}, its disk has "
            f"{megabytes(free)}: choose another disk, a smaller --k, or fewer rows"
        )
    speed, covered = try_out(source, missing, writer)
    tokens = sum(writer.lengths[row] for n in missing for row in shards[n].row_numbers)
    writing = min(processes, len(missing))
    each = f", {writing} processes" if processes > 1 else ""
    console.print(
        f"{len(missing)} shards to write, {tokens:,} tokens at {speed:,.0f} a second{each}: about "
        f"{duration(tokens / speed / writing)}",
        highlight=False,
    )
    if writing < processes:
        console.print(
            f"{processes - writing} of {processes} processes have nothing to write: a smaller "
            "--shard_megabytes gives each a share",
            highlight=False,
        )
    table = Table(
        caption=f"by the first {len(next(iter(covered.values()))):,} positions",
        caption_justify="left",
    )
    for title in ("k", "size", "mass covered", "5th percentile"):
        table.add_column(title, justify="right", no_wrap=True)
    for k, mass in covered.items():
        other = Header(**{**vars(header), "k": k})
        size = payload_bytes(other, plan_shards(other, writer.counts, 2**62))
        table.add_row(
            f"{k}{' *' if k == header.k else ''}",
            megabytes(size),
            f"{mass.mean():.4f}",
            f"{np.quantile(mass, 0.05):.4f}",
        )
    console.print(table)


def try_out(
    source: CacheSource, missing: Sequence[int], writer: TopKWriter
) -> tuple[float, dict[int, NDArray[Any]]]:
    """Tokens a second, and the mass that some k cover, by the first batches that are missing."""
    wanted = sorted({k for k in (*_OFFERED, writer.header.k) if k <= source.vocabulary})
    size, shards = writer.header.batch_rows, (writer.shards[n] for n in missing[:_TRIED])
    tried = [b for shard in shards for b in batches(source, shard.row_numbers, size)][:_TRIED]
    seconds, tokens, logs = 0.0, 0, []
    for number, rows in enumerate(tried):
        start = time.perf_counter()
        found = source.ask(rows, wanted[-1])
        if number or len(tried) == 1:
            seconds += time.perf_counter() - start
            tokens += sum(source.prepared.lengths[row] for row in rows)
        logs += [lists.log_probs for lists in found.values()]
    mass = np.exp(np.concatenate(logs).astype(np.float64)).cumsum(axis=-1)
    return tokens / seconds, {k: mass[:, k - 1] for k in wanted}


def print_summary(console: Console, store: TopKStore) -> None:
    """Print what is there now, and how much of the teacher's mass."""
    mass = -np.expm1(np.concatenate(list(store.tails())).astype(np.float64))
    size = sum(shard.size or 0 for shard in store.shards)
    console.print(
        f"{store.folder}/: {store.positions:,} positions, {megabytes(size)}. The top "
        f"{store.header.k} tokens cover {mass.mean():.4f} of the teacher's mass in the mean, "
        f"{np.quantile(mass, 0.05):.4f} in the 5th percentile; the tail has the rest",
        highlight=False,
    )


def duration(seconds: float) -> str:
    """A time for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
