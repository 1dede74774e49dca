"""What a run on several processes needs beside the Trainer: parts, shares of rows, sums."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import fsdp2_prepare_model, gather_object
from rich.console import Console
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl.models.utils import prepare_deepspeed

T = TypeVar("T")
Batch = dict[str, Any]

LENGTHS = "row_lengths"
"""The entry of a batch with the tokens of each row, where a collator joins rows into one."""


def prepare_frozen(model: PreTrainedModel, accelerator: Accelerator) -> torch.nn.Module:
    """A model that does not train, on this process's device, in parts where the engine has parts.

    FSDP2 and ZeRO-3 keep a part of each weight on each process, of the teacher as of the student.
    DDP keeps the whole on each; so does FSDP2 where the model is quantised, whose integers it
    cannot cut.

    Args:
        model: a causal language model, as loaded.
        accelerator: of the trainer.
    """
    if accelerator.distributed_type == "DEEPSPEED":
        return cast("torch.nn.Module", prepare_deepspeed(model, accelerator))
    if not accelerator.is_fsdp2:
        return _forgotten(accelerator, accelerator.prepare_model(model, evaluation_mode=True))
    if getattr(model, "is_quantized", False):
        return cast("torch.nn.Module", cast("Any", model).to(accelerator.device))
    # accelerate's own preparation wants an optimizer, and remembers the layers of the first model.
    state: Any = accelerator.state
    plugin = state.fsdp_plugin
    state.fsdp_plugin = copy.copy(plugin)
    state.fsdp_plugin.transformer_cls_names_to_wrap = None
    try:
        return cast("torch.nn.Module", fsdp2_prepare_model(accelerator, model))
    finally:
        state.fsdp_plugin = plugin


def _forgotten(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """The model, which the Trainer would otherwise take for its own prepared one."""
    models = cast("Any", accelerator)._models
    models[:] = [other for other in models if other is not model]
    return model


def keep_loss_wide(accelerator: Accelerator) -> None:
    """Let FSDP2 give the loss back as it is; accelerate has it rounded to bfloat16.

    Call it before the first model is prepared. The weights' and gradients' types stay.
    """
    if accelerator.is_fsdp2:
        plugin = cast("Any", accelerator.state).fsdp_plugin
        policy = plugin.mixed_precision_policy
        if policy is not None:
            plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def reshard(model: torch.nn.Module) -> None:
    """Give back what FSDP2 has gathered for a forward pass that no backward pass follows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def ignore_repeated_rows(
    labels: torch.Tensor, accelerator: Accelerator, lengths: Sequence[int] | None = None
) -> None:
    """Take the labels off rows that the last batch of a loader repeats to be of full size.

    accelerate gives every process as many rows, the first ones again where they do not suffice.

    Args:
        labels: of this process's batch, (B, L); changed in place.
        accelerator: whose loader gave the batch.
        lengths: the tokens of each row, where a collator joins all rows into one
            (``padding_free``): labels are (1, L) then.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return
    rows = len(labels) if lengths is None else len(lengths)
    kept = max(0, state.remainder - accelerator.process_index * rows)
    if lengths is None:
        labels[kept:] = -100
    else:
        labels[:, sum(lengths[:kept]) :] = -100


class WithLengths:
    """A collator whose batches say how many tokens each row has, under ``LENGTHS``.

    Args:
        collator: of examples with ``input_ids``.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Batch]) -> None:
        """See the class."""
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """The collator's batch and the lengths, (B,)."""
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        return {**self.collator(examples), LENGTHS: lengths}


def own_batches(
    rows: Sequence[Any], collate: Callable[[list[Any]], Batch], batch_size: int
) -> Iterator[Batch]:
    """Batches of this process's share of rows: every row on one process, once.

    Each process gets as many batches, since engines that keep weights in parts need all of them
    in each forward pass; where its rows do not suffice, a batch has no labels.

    Args:
        rows: all rows, the same on every process; at least one.
        collate: makes a batch with ``labels``.
        batch_size: rows of a batch at most.
    """
    state = PartialState()
    mine = range(state.process_index, len(rows), state.num_processes)
    most = -(-len(rows) // state.num_processes)
    for start in range(0, most, batch_size):
        share = mine[start : start + batch_size]
        batch = collate([rows[row] for row in share or (0,)])
        if not share:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        yield batch


def own_rows(count: int) -> tuple[list[int], list[bool]]:
    """This process's share of rows, as ``own_batches`` has it, as many on each process.

    Args:
        count: how many rows there are in all; at least one.

    Returns:
        Their numbers, and which of them are its own; where a share does not suffice, row 0 fills
        it up. ``in_order`` puts together what all processes have of their own rows.
    """
    state = PartialState()
    mine = list(range(state.process_index, count, state.num_processes))
    filled = -(-count // state.num_processes) - len(mine)
    return mine + [0] * filled, [True] * len(mine) + [False] * filled


def summed(values: torch.Tensor) -> torch.Tensor:
    """Added up over the processes, in float64, on the CPU."""
    state = PartialState()
    whole = values.detach().to("cpu", torch.float64)
    if state.num_processes == 1:
        return whole
    # A device that has no float64 would round; a gathered list of numbers does not.
    return torch.tensor(gather_object([whole.tolist()]), dtype=torch.float64).sum(0)


def in_order(mine: Sequence[T]) -> list[T]:
    """What all processes have of rows that ``own_batches`` gave them, in the order of all rows."""
    state = PartialState()
    if state.num_processes == 1:
        return list(mine)
    parts: list[list[T]] = gather_object([list(mine)])
    total = sum(map(len, parts))
    return [parts[row % len(parts)][row // len(parts)] for row in range(total)]


def main_console() -> Console:
    """A console that prints on the main process only."""
    return Console(quiet=not PartialState().is_main_process)


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The student's weights put together, for ``save_pretrained``; all processes must call it.

    Returns:
        Under FSDP and ZeRO-3, on the main process, the weights by name, on the CPU, and an empty
        dictionary on the others; None where every process has the whole student anyway.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type not in ("FSDP", "DEEPSPEED"):
        return None
    weights = cast("dict[str, torch.Tensor]", accelerator.get_state_dict(trainer.model_wrapped))
    return weights if accelerator.is_main_process else {}


class BeforeFirstStep(TrainerCallback):
    """Calls a function when the engine has the student, before the first step.

    Under FSDP and ZeRO-3 the student cannot run before: it has its parts from ``train()`` on.

    Args:
        work: what to do, on all processes.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        """See the class."""
        self.work = work

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do it."""
        self.work()
