"""Cache a teacher's most probable tokens for a dataset, to distil from without the teacher.

    python integrations/cache_teacher.py --teacher_model_name_or_path TEACHER \
        --model_name_or_path STUDENT --dataset_name data.jsonl --output_dir CACHE --k 256

Takes the data arguments of torch_distill.py, and prepares the same rows with them. Says beforehand
how large the cache will be, how long it takes, and how much of the teacher's mass other k would
cover; ``--dry_run`` stops there. The same command goes on where an earlier one was stopped, with
``--held_out`` it adds the held-out rows, and under ``accelerate launch`` each process writes its
share. ``--help`` lists all arguments.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from accelerate import PartialState
from rich.console import Console
from tqdm.auto import tqdm

from amidmath.integrations.shared.command_line import exit_status
from amidmath.integrations.shared.errors import InputError, while_preparing
from amidmath.integrations.shared.prepared import model_fingerprint
from amidmath.integrations.shared.top_k_format import INDEX, Header, Lists, other_than, read_index
from amidmath.integrations.shared.top_k_store import TopKStore, data_arguments
from amidmath.integrations.shared.top_k_writer import TopKWriter, check_folder
from amidmath.integrations.torch_loop.cache_arguments import Arguments, parse_arguments
from amidmath.integrations.torch_loop.cache_estimate import print_estimate, print_summary
from amidmath.integrations.torch_loop.cache_source import Source, load
from amidmath.integrations.torch_loop.checkpoints import on_main_process
from amidmath.integrations.torch_loop.processes import main_console


def cache(arguments: Arguments, console: Console) -> Path:
    """Make a cache, or go on with one; gives its folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
        DiskFullError: finished shards are kept.
    """
    folder, script, state = arguments.folder, arguments.script, PartialState()
    is_new = not arguments.output_dir.exists()
    try:
        with while_preparing():
            check_folder(arguments.output_dir)
            console.print("Reading the data and loading the teacher")
            source = load(arguments, console)
            header = on_main_process(lambda: header_of(arguments, source))
            writer = TopKWriter(
                folder,
                header,
                [len(positions) for positions in source.prepared.positions],
                source.prepared.lengths,
                int(script.shard_megabytes * 1e6),
                overwrite=arguments.config.overwrite_output_dir and not script.dry_run,
                keeps_index=state.is_main_process,
            )

            def missing_shards() -> list[int]:
                missing = writer.missing(verify=script.verify)
                print_estimate(console, source, writer, missing, state.num_processes)
                return missing

            missing = on_main_process(missing_shards)
        if not script.dry_run:
            write(source, writer, missing, bar=not arguments.config.disable_tqdm)
    finally:
        made = arguments.output_dir
        if state.is_main_process and is_new and made.is_dir() and not any(made.iterdir()):
            made.rmdir()  # the Trainer makes it early
    if not script.dry_run and state.is_main_process:
        print_summary(console, TopKStore(folder))
    return folder


def header_of(arguments: Arguments, source: Source) -> Header:
    """What the cache will say of itself.

    Raises:
        InputError: held-out rows, beside training rows that were cached otherwise.
    """
    config, script = arguments.config, arguments.script
    model = model_fingerprint(arguments.teacher, config.teacher_model_revision)
    header = Header(
        k=script.k,
        vocabulary=source.vocabulary,
        log_probs=script.log_probs_dtype,
        temperature=float(config.temperature),
        batch_rows=config.per_device_eval_batch_size,
        fingerprints={"model": model, **source.prepared.fingerprints},
        teacher={
            "name": arguments.teacher,
            "revision": config.teacher_model_revision,
            "dtype": config.teacher_dtype,
            "precision": source.precision,
        },
        common=source.common,
        arguments=data_arguments(script, config),
    )
    if script.held_out and (arguments.output_dir / INDEX).is_file():
        differing = other_than(read_index(arguments.output_dir)[0], header)
        if differing:
            raise InputError(
                f"--held_out: the training rows in {arguments.output_dir} were cached otherwise, "
                f"held-out rows need the same ({differing})"
            )
    return header


def write(source: Source, writer: TopKWriter, missing: Sequence[int], *, bar: bool) -> None:
    """Write what is missing, each process its share, with a bar for the main process's."""
    state = PartialState()
    on_main_process(writer.begin)
    mine = missing[state.process_index :: state.num_processes]
    total = sum(writer.lengths[row] for n in mine for row in writer.shards[n].row_numbers)
    with tqdm(
        total=total,
        desc="caching" + (" (this process)" if state.num_processes > 1 else ""),
        unit="token",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not bar or not state.is_main_process,
    ) as progress:
        for number in mine:
            rows = writer.shards[number].row_numbers
            found: dict[int, Lists] = {}
            for batch in source.batches(rows):
                for row, lists in source.ask(batch, writer.header.k).items():
                    logs = lists.log_probs.astype(writer.header.log_probs)
                    indices = lists.indices.astype(writer.header.indices)
                    found[row] = lists._replace(log_probs=logs, indices=indices)
                progress.update(sum(writer.lengths[row] for row in batch))
            parts = zip(*(found[row] for row in rows), strict=True)
            writer.write(number, Lists(*(np.concatenate(part) for part in parts)))
    state.wait_for_everyone()
    on_main_process(writer.collect)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the cache is complete, 1 when the disk is full, 2 when something given does not fit,
        130 when interrupted.
    """
    return exit_status(
        lambda: cache(parse_arguments(argv), main_console()),
        "finished shards are kept, the same command goes on",
    )


if __name__ == "__main__":
    sys.exit(main())
