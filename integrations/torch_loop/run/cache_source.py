"""A teacher and the rows that it is asked of, prepared as for training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from amidmath.integrations.common.cli.command_line import TEACHER_FLAG
from amidmath.integrations.common.data.splits import load_splits
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.caching import tokenizer_for
from amidmath.integrations.common.teacher_cache.format import Lists
from amidmath.integrations.common.teacher_cache.source import check_k
from amidmath.integrations.common.text.tokenizers import load_tokenizer
from amidmath.integrations.common.text.vocabularies import COMMON_ONLY
from amidmath.integrations.torch_loop.loss.batch import next_token_mask
from amidmath.integrations.torch_loop.models.model_files import logits_of_model
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.run.loading import bars_for_many
from amidmath.integrations.torch_loop.run.models import load_teacher_model
from amidmath.integrations.torch_loop.settings.cache_arguments import Arguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.cached import lists_of
from amidmath.integrations.torch_loop.teachers.teachers import Teacher
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


@dataclass(frozen=True)
class TorchCacheSource:
    """A teacher in torch and the rows that it is asked of; a ``teacher_cache.source.CacheSource``.

    Args:
        teacher: in memory, on its device.
        logits: how many it gives.
        vocabulary: over how many first tokens its probabilities are.
        prepared: the rows.
        collator: makes batches of them, as in training.
        common: how many first tokens are the same for the tokenizer that prepared the rows.
        dtype: of its weights.
        precision: in which accelerate lets it multiply: "bf16" or "fp16"; "no" for its own.
        config: temperature, batch size, device.
    """

    teacher: Teacher
    logits: int
    vocabulary: int
    prepared: PreparedRows
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    common: int
    dtype: str
    precision: str
    config: AMiDConfig

    @property
    def rows_at_once(self) -> int:
        """How many rows it is asked of in a forward pass."""
        return int(self.config.per_device_eval_batch_size)

    def ask(self, rows: Sequence[int], k: int) -> dict[int, Lists]:
        """The lists of some rows, one forward pass."""
        prepared = self.prepared
        batch = self.collator([prepared.rows[row] for row in rows])
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
            asked = states.first(self.vocabulary)
            return lists_of(asked, where, k, float(self.config.temperature))

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


def load(arguments: Arguments, console: Console) -> TorchCacheSource:
    """The teacher, and the rows as torch_distill.py would prepare them."""
    config, script = arguments.config, arguments.script
    with PartialState().main_process_first():  # the others find what it has read
        train, test = load_splits(script, config.dataset_text_field, config.seed)
    bars_for_many(len(train))
    teacher_tokenizer = load_tokenizer(
        TEACHER_FLAG, arguments.teacher, revision=config.teacher_model_revision
    )
    model = load_teacher_model(arguments.teacher, config)
    size = logits_of_model(model)
    tokenizer, common, sizes = tokenizer_for(arguments, teacher_tokenizer, size, console)
    asked = common if config.vocab == COMMON_ONLY else size
    check_k(script.k, asked)
    trainer = AMiDTrainer(
        _stand_in(model, int(config.max_length or 0)),
        model,
        config,
        sizes=sizes,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    )
    if trainer.is_sharded:
        raise InputError(
            "each process asks the teacher of rows of its own, and needs all of it: launch with "
            "the DDP configuration (ddp.yaml), or a single process; --teacher_load_in_4bit makes a "
            "teacher smaller"
        )
    collator = cast("Any", trainer.plain_collator)
    rows = trainer.eval_rows if script.held_out else trainer.train_rows
    apart = getattr(collator, "padding_free", False)
    prepared = PreparedRows(rows, trainer.tokenizer, apart)
    precision = trainer.accelerator.mixed_precision
    dtype = str(model.dtype).removeprefix("torch.")
    return TorchCacheSource(
        trainer.teacher, size, asked, prepared, collator, common, dtype, precision, config
    )


def _stand_in(teacher: PreTrainedModel, max_length: int) -> PreTrainedModel:
    """The smallest model with the teacher's vocabulary: a trainer prepares rows with a student."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=logits_of_model(teacher),
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
