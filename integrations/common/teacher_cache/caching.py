"""The making of a teacher's cache, by whatever framework asks the teacher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from rich.console import Console
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG
from amidmath.integrations.common.cli.memory import EVALUATION, within_memory
from amidmath.integrations.common.errors import InputError, while_preparing
from amidmath.integrations.common.rows.prepared import model_fingerprint
from amidmath.integrations.common.teacher_cache.estimate import print_estimate, print_summary
from amidmath.integrations.common.teacher_cache.format import (
    INDEX,
    Header,
    Lists,
    other_than,
    read_index,
)
from amidmath.integrations.common.teacher_cache.settings import Request
from amidmath.integrations.common.teacher_cache.source import CacheSource, batches
from amidmath.integrations.common.teacher_cache.store import TopKStore, data_arguments
from amidmath.integrations.common.teacher_cache.writer import TopKWriter, check_folder
from amidmath.integrations.common.text.tokenizers import load_tokenizer, vocabulary_size
from amidmath.integrations.common.text.vocabularies import COMMON_ONLY, compare_vocabularies

T = TypeVar("T")


class Processes(Protocol):
    """The processes that make one cache, of which each writes other shards."""

    @property
    def index(self) -> int:
        """Of this process; 0 is the main one's."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def on_main(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on the main process, on every process; its InputError too."""
        ...

    def wait(self) -> None:
        """Until all are here."""
        ...


class OneProcess:
    """A single process."""

    index, count = 0, 1

    def on_main(self, work: Callable[[], T]) -> T:
        """See :class:`Processes`."""
        return work()

    def wait(self) -> None:
        """See :class:`Processes`."""


def make_cache(
    request: Request[Any, Any],
    console: Console,
    load: Callable[[], CacheSource],
    processes: Processes,
) -> Path:
    """Make a cache, or go on with one; gives its folder.

    Args:
        request: what was asked for.
        console: prints on the main process.
        load: reads the data and loads the teacher.
        processes: who makes it.

    Raises:
        InputError: something given does not fit; nothing has been written then.
        DiskFullError: finished shards are kept.
    """
    folder, script, made = request.folder, request.script, request.output_dir
    is_new, is_main = not made.exists(), processes.index == 0
    try:
        with while_preparing(), within_memory("asking the teacher", EVALUATION):
            check_folder(made)
            console.print("Reading the data and loading the teacher")
            source = load()
            header = processes.on_main(lambda: header_of(request, source))
            writer = TopKWriter(
                folder,
                header,
                [len(positions) for positions in source.prepared.positions],
                source.prepared.lengths,
                int(script.shard_megabytes * 1e6),
                overwrite=request.config.overwrite_output_dir and not script.dry_run,
                keeps_index=is_main,
            )

            def missing_shards() -> list[int]:
                missing = writer.missing(verify=script.verify)
                print_estimate(console, source, writer, missing, processes.count)
                return missing

            missing = processes.on_main(missing_shards)
        if not script.dry_run:
            with within_memory("asking the teacher", EVALUATION):
                write(source, writer, missing, processes, bar=not request.config.disable_tqdm)
    finally:
        if is_main and is_new and made.is_dir() and not any(made.iterdir()):
            made.rmdir()  # a trainer makes it early
    if not script.dry_run and is_main:
        print_summary(console, TopKStore(folder))
    return folder


def header_of(request: Request[Any, Any], source: CacheSource) -> Header:
    """The header of the cache.

    Raises:
        InputError: held-out rows, beside training rows that were cached otherwise.
    """
    config, script = request.config, request.script
    model = model_fingerprint(request.teacher, config.teacher_model_revision)
    header = Header(
        k=script.k,
        vocabulary=source.vocabulary,
        log_probs=script.log_probs_dtype,
        temperature=float(config.temperature),
        batch_rows=source.rows_at_once,
        fingerprints={"model": model, **source.prepared.fingerprints},
        teacher={
            "name": request.teacher,
            "revision": config.teacher_model_revision,
            "dtype": source.dtype,
            "precision": source.precision,
        },
        common=source.common,
        of_logits=None if source.logits == source.vocabulary else source.logits,
        arguments=data_arguments(script, config),
    )
    if script.held_out and (request.output_dir / INDEX).is_file():
        differing = other_than(read_index(request.output_dir)[0], header)
        if differing:
            raise InputError(
                f"--held_out: the training rows in {request.output_dir} were cached otherwise, "
                f"held-out rows need the same ({differing})"
            )
    return header


def write(
    source: CacheSource,
    writer: TopKWriter,
    missing: Sequence[int],
    processes: Processes,
    *,
    bar: bool,
) -> None:
    """Write what is missing, each process its share, with a bar for the main process's."""
    processes.on_main(writer.begin)
    mine = missing[processes.index :: processes.count]
    total = sum(writer.lengths[row] for n in mine for row in writer.shards[n].row_numbers)
    with tqdm(
        total=total,
        desc="caching" + (" (this process)" if processes.count > 1 else ""),
        unit="token",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not bar or processes.index != 0,
    ) as progress:
        for number in mine:
            rows = writer.shards[number].row_numbers
            found: dict[int, Lists] = {}
            for batch in batches(source, rows, writer.header.batch_rows):
                for row, lists in source.ask(batch, writer.header.k).items():
                    logs = lists.log_probs.astype(writer.header.log_probs)
                    indices = lists.indices.astype(writer.header.indices)
                    found[row] = lists._replace(log_probs=logs, indices=indices)
                progress.update(sum(writer.lengths[row] for row in batch))
            parts = zip(*(found[row] for row in rows), strict=True)
            writer.write(number, Lists(*(np.concatenate(part) for part in parts)))
    processes.wait()
    processes.on_main(writer.collect)


def tokenizer_for(
    request: Request[Any, Any], theirs: PreTrainedTokenizerBase, size: int, console: Console
) -> tuple[PreTrainedTokenizerBase, int, dict[str, int]]:
    """The tokenizer of the rows, and which tokens it may write.

    Args:
        request: names the student, or none.
        theirs: the teacher's tokenizer.
        size: how many logits the teacher gives.
        console: is told what was found.

    Returns:
        The student's tokenizer, or the teacher's without one; for how many tokens both agree; and
        how many tokens each model reads, by its role.

    Raises:
        InputError: the student's is not there, or another one; or there is no student, which
            --vocab common_only needs.
    """
    if request.student is None:
        if request.config.vocab == COMMON_ONLY:
            raise InputError(
                f"--vocab common_only: which tokens are common depends on the student; give "
                f"{STUDENT_FLAG}, or leave --vocab out"
            )
        return theirs, size, {"teacher": size}
    revision = request.student_revision
    ours = load_tokenizer(STUDENT_FLAG, request.student, revision=revision)
    logits = vocabulary_size(STUDENT_FLAG, request.student, revision)
    found = compare_vocabularies(
        ours.get_vocab(), theirs.get_vocab(), logits, size, request.config.vocab, cached=True
    )
    console.print(f"Vocabularies: {found.describe()}", highlight=False)
    # From the first token on that is another one for the teacher, it would read something else.
    known = found.common if found.common < min(logits, size) else size
    return ours, found.common, {"student": logits, "teacher": known}
