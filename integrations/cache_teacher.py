"""Cache a teacher's most probable tokens for a dataset, to distil from without the teacher.

    python integrations/cache_teacher.py --teacher_model_name_or_path TEACHER \
        --model_name_or_path STUDENT --dataset_name data.jsonl --output_dir CACHE --k 256

Takes the data arguments of torch_distill.py, and prepares the same rows with them. Says beforehand
how large the cache will be, how long it takes, and how much of the teacher's mass other k would
cover; ``--dry_run`` stops there. The same command goes on where an earlier one was stopped.
``--help`` lists all arguments.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig

from amidmath.integrations.shared.command_line import (
    STUDENT_FLAG,
    TEACHER_FLAG,
    exit_status,
    parse,
    require,
)
from amidmath.integrations.shared.data import load_splits
from amidmath.integrations.shared.errors import InputError, while_preparing
from amidmath.integrations.shared.top_k_store import (
    DTYPES,
    Header,
    Lists,
    TopKStore,
    TopKWriter,
    free_bytes,
    megabytes,
    payload_bytes,
    plan_shards,
)
from amidmath.integrations.shared.vocabularies import compare_vocabularies
from amidmath.integrations.torch_loop.arguments import DistillScriptArguments
from amidmath.integrations.torch_loop.config import AMiDConfig
from amidmath.integrations.torch_loop.loading import fewer_bars, load_teacher_model
from amidmath.integrations.torch_loop.models import load_tokenizer
from amidmath.integrations.torch_loop.objective import next_token_mask
from amidmath.integrations.torch_loop.prepared import PreparedRows, model_fingerprint
from amidmath.integrations.torch_loop.states import States
from amidmath.integrations.torch_loop.teacher_cache import lists_of
from amidmath.integrations.torch_loop.teachers import Teacher
from amidmath.integrations.torch_loop.trainer import AMiDTrainer

# How many batches are tried beforehand; the first of them warms up.
_TRIED = 4
_OFFERED = (16, 32, 64, 128, 256, 512)


@dataclass
class CacheArguments(DistillScriptArguments):
    """Data, and what to cache of it."""

    k: int = field(default=256, metadata={"help": "How many tokens a position."})
    log_probs_dtype: str = field(
        default="float16",
        metadata={
            "help": "In what log-probabilities are stored. float16 is wrong by 5e-4 of each of "
            "them; tails are float32 in any case.",
            "choices": list(DTYPES),
        },
    )
    shard_megabytes: float = field(
        default=256.0, metadata={"help": "About how large a file of the cache is."}
    )
    held_out: bool = field(
        default=False, metadata={"help": "Cache the held-out rows instead of the training rows."}
    )
    verify: bool = field(
        default=False,
        metadata={"help": "Read every finished file, and write those anew that are corrupt."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Say how large and how long, and write nothing."}
    )

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.k < 1:
            raise InputError(f"--k must be at least 1, got {self.k}")
        if not 0.0 < self.shard_megabytes < float("inf"):
            raise InputError(f"--shard_megabytes must be positive, got {self.shard_megabytes}")
        if self.log_probs_dtype not in DTYPES:
            raise InputError(
                f"--log_probs_dtype must be one of {', '.join(DTYPES)}, got "
                f"{self.log_probs_dtype!r}"
            )


@dataclass(frozen=True)
class Arguments:
    """All that one command was told; teacher, dataset and folder are always given.

    Args:
        teacher: hub name or folder of the teacher.
        student: hub name or folder of the student, None where only the teacher is known.
        folder: where the cache goes.
        script: data, and what to cache.
        config: how rows are prepared, and the temperature.
        model: the student's revision.
    """

    teacher: str
    student: str | None
    folder: Path
    script: CacheArguments
    config: AMiDConfig
    model: ModelConfig


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    script, config, model = parse(
        (CacheArguments, AMiDConfig, ModelConfig),
        argv,
        prog="cache_teacher.py",
        description="Cache a teacher's most probable tokens for a dataset.",
    )
    require(
        {
            TEACHER_FLAG: config.teacher_model_name_or_path,
            "--dataset_name": script.dataset_name,
            "--output_dir": config.output_dir,
        }
    )
    refused = {
        "teacher_cache": "the cache that is made goes to --output_dir",
        "teacher_is_base": "such a teacher changes nothing by being cached: name it as teacher",
        "push_to_hub": "a cache is not published",
    }
    for name, reason in refused.items():
        if getattr(config, name, None):
            raise InputError(f"--{name} {getattr(config, name)}: {reason}; leave it out")
    if config.world_size > 1:
        raise InputError(
            f"this was started with {config.world_size} processes, a cache is written by one"
        )
    return Arguments(
        str(config.teacher_model_name_or_path),
        model.model_name_or_path or None,
        Path(str(config.output_dir)),
        script,
        config,
        model,
    )


def cache(arguments: Arguments, console: Console) -> Path:
    """Make a cache, or go on with one; gives its folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
        DiskFullError: finished shards are kept.
    """
    folder, script = arguments.folder, arguments.script
    is_new = not folder.exists()
    try:
        with while_preparing():
            console.print("Reading the data and loading the teacher")
            source = load(arguments, console)
            header = header_of(arguments, source)
            writer = TopKWriter(
                folder,
                header,
                [len(positions) for positions in source.prepared.positions],
                source.prepared.lengths,
                int(script.shard_megabytes * 1e6),
                overwrite=arguments.config.overwrite_output_dir and not script.dry_run,
            )
            missing = writer.missing(verify=script.verify)
            print_estimate(console, source, writer, missing)
        if not script.dry_run and missing:
            write(source, writer, missing, bar=not arguments.config.disable_tqdm)
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # the Trainer makes it early
    if not script.dry_run:
        print_summary(console, TopKStore(folder))
    return folder


@dataclass(frozen=True)
class Source:
    """A teacher and the rows that it is asked of.

    Args:
        teacher: in memory, on its device.
        vocabulary: how many logits it gives.
        prepared: the rows.
        config: temperature, batch size, device.
    """

    teacher: Teacher
    vocabulary: int
    prepared: PreparedRows
    config: AMiDConfig

    def batches(self, rows: range) -> list[list[int]]:
        """Rows of about one length together, the same ones every time."""
        by_length = sorted(rows, key=lambda row: (self.prepared.lengths[row], row))
        size = self.config.per_device_eval_batch_size
        return [by_length[i : i + size] for i in range(0, len(by_length), size)]

    def ask(self, rows: Sequence[int], k: int) -> dict[int, Lists]:
        """The lists of some rows, one forward pass."""
        prepared = self.prepared
        batch = prepared.collator([prepared.rows[row] for row in rows])
        keep = next_token_mask(batch.pop("labels"))
        expected = self._expected(rows, keep)
        if not torch.equal(keep, expected):
            raise RuntimeError(
                f"rows {list(rows)}: the collator learns other positions than cached"
            )
        inputs = {
            key: value.to(self.config.device) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }

        def of(states: States) -> tuple[torch.Tensor, ...]:
            where = keep.to(states.hidden.device)
            return lists_of(states, where, k, float(self.config.temperature))

        ask: Callable[..., tuple[torch.Tensor, ...]] = self.teacher.give
        arrays = [tensor.cpu().numpy() for tensor in ask(inputs, of)]
        ends = np.cumsum([len(prepared.positions[row]) for row in rows])[:-1]
        logs, indices, tails = (np.split(array, ends) for array in arrays)
        return {
            row: Lists(logs[i], indices[i], tails[i], prepared.positions[row])
            for i, row in enumerate(rows)
        }

    def _expected(self, rows: Sequence[int], keep: torch.Tensor) -> torch.Tensor:
        """The mask that the rows' positions make in a batch of this shape."""
        flat = keep.shape[0] == 1 and len(rows) > 1
        lengths = [self.prepared.lengths[row] for row in rows]
        starts = [0, *np.cumsum(lengths)[:-1]] if flat else keep.shape[1] * np.arange(len(rows))
        expected = torch.zeros(keep.numel(), dtype=torch.bool)
        for row, start in zip(rows, starts, strict=True):
            expected[torch.from_numpy(self.prepared.positions[row] + int(start))] = True
        return expected.view(keep.shape)


def load(arguments: Arguments, console: Console) -> Source:
    """The teacher, and the rows as torch_distill.py would prepare them."""
    config, script = arguments.config, arguments.script
    train, test = load_splits(script, config.dataset_text_field, config.seed)
    fewer_bars(len(train))
    teacher_tokenizer = load_tokenizer(
        TEACHER_FLAG, arguments.teacher, revision=config.teacher_model_revision
    )
    model = load_teacher_model(arguments.teacher, config)
    size = int(model.config.get_text_config().vocab_size)
    if script.k > size:
        raise InputError(f"--k {script.k}: the teacher has {size} tokens only")
    tokenizer = _tokenizer(arguments, teacher_tokenizer, size, console)
    trainer = AMiDTrainer(
        _stand_in(model, int(config.max_length or 0)),
        model,
        config,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    )
    rows = trainer.eval_rows if script.held_out else trainer.train_rows
    prepared = PreparedRows(rows, cast("Any", trainer.plain_collator), trainer.tokenizer)
    return Source(trainer.teacher, size, prepared, config)


def _tokenizer(
    arguments: Arguments, theirs: PreTrainedTokenizerBase, size: int, console: Console
) -> PreTrainedTokenizerBase:
    """The student's tokenizer, or the teacher's where no student is given."""
    if arguments.student is None:
        return theirs
    revision = arguments.model.model_revision
    ours = load_tokenizer(STUDENT_FLAG, arguments.student, revision=revision)
    config = AutoConfig.from_pretrained(
        arguments.student, revision=revision, trust_remote_code=False
    )
    found = compare_vocabularies(
        ours.get_vocab(),
        theirs.get_vocab(),
        int(config.get_text_config().vocab_size),
        size,
        arguments.config.vocab,
        cached=True,
    )
    console.print(f"Vocabularies: {found.describe()}", highlight=False)
    return ours


def _stand_in(teacher: PreTrainedModel, max_length: int) -> PreTrainedModel:
    """The smallest model with the teacher's vocabulary: a trainer prepares rows with a student."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=teacher.config.get_text_config().vocab_size,
            hidden_size=2,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=max_length,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def header_of(arguments: Arguments, source: Source) -> Header:
    """What the cache will say of itself."""
    config, script = arguments.config, arguments.script
    model = model_fingerprint(arguments.teacher, config.teacher_model_revision)
    return Header(
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
        },
    )


def print_estimate(
    console: Console, source: Source, writer: TopKWriter, missing: Sequence[int]
) -> None:
    """Size, time, and what other k would cover.

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
    tokens = sum(sum(writer.lengths[row] for row in rows_of(writer, n)) for n in missing)
    console.print(
        f"{len(missing)} shards to write, {tokens:,} tokens at {speed:,.0f} a second: about "
        f"{duration(tokens / speed)}",
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
    source: Source, missing: Sequence[int], writer: TopKWriter
) -> tuple[float, dict[int, NDArray[Any]]]:
    """Tokens a second, and the mass that some k cover, by the first batches that are missing."""
    wanted = sorted({k for k in (*_OFFERED, writer.header.k) if k <= source.vocabulary})
    batches = [b for n in missing[:_TRIED] for b in source.batches(rows_of(writer, n))][:_TRIED]
    seconds, tokens, logs = 0.0, 0, []
    for number, rows in enumerate(batches):
        start = time.perf_counter()
        found = source.ask(rows, wanted[-1])
        if number or len(batches) == 1:
            seconds += time.perf_counter() - start
            tokens += sum(source.prepared.lengths[row] for row in rows)
        logs += [lists.log_probs for lists in found.values()]
    mass = np.exp(np.concatenate(logs).astype(np.float64)).cumsum(axis=-1)
    return tokens / seconds, {k: mass[:, k - 1] for k in wanted}


def rows_of(writer: TopKWriter, number: int) -> range:
    """The rows of a shard."""
    shard = writer.shards[number]
    return range(shard.first_row, shard.first_row + shard.rows)


def write(source: Source, writer: TopKWriter, missing: Sequence[int], *, bar: bool) -> None:
    """Write what is missing, with a bar that says how long it still takes."""
    writer.begin()
    total = sum(sum(writer.lengths[row] for row in rows_of(writer, n)) for n in missing)
    with tqdm(
        total=total,
        desc="caching",
        unit="token",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not bar,
    ) as progress:
        for number in missing:
            rows = rows_of(writer, number)
            found: dict[int, Lists] = {}
            for batch in source.batches(rows):
                for row, lists in source.ask(batch, writer.header.k).items():
                    logs = lists.log_probs.astype(writer.header.log_probs)
                    indices = lists.indices.astype(writer.header.indices)
                    found[row] = lists._replace(log_probs=logs, indices=indices)
                progress.update(sum(writer.lengths[row] for row in batch))
            parts = zip(*(found[row] for row in rows), strict=True)
            writer.write(number, Lists(*(np.concatenate(part) for part in parts)))


def print_summary(console: Console, store: TopKStore) -> None:
    """What is there now, and how much of the teacher's mass."""
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


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the cache is complete, 1 when the disk is full, 2 when something given does not fit,
        130 when interrupted.
    """
    return exit_status(
        lambda: cache(parse_arguments(argv), Console()),
        "finished shards are kept, the same command goes on",
    )


if __name__ == "__main__":
    sys.exit(main())
