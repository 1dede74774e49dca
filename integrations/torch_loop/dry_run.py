"""What a run would train and how much memory it would take, before anything is computed.

The estimate is a sum of parts that are known (weights, gradients, optimiser states, the chunk of
logits) and one that is counted for a Llama-like layer (activations). The runtime itself (Python,
libraries, a GPU's context) is left out, and so are what an allocator keeps back and the buffers of
collectives. The first loss on a CPU brings some 90 MB of the runtime: LLVM compiles its kernels.
Beside the runtime, the peaks of five small runs on a CPU, each measured twice, were 6 % below to
7 % above the estimate. That is two things in balance: the parts do not all coincide (with an
allocator that gives back at once, peaks were 11 % below, with checkpointing 22 to 27 %), and
glibc's keeps back what was freed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from amidmath._linear_arguments import ACCELERATOR_BYTES, CPU_BYTES
from amidmath.integrations.torch_loop.models import parameter_counts
from amidmath.integrations.torch_loop.teachers import ModelTeacher
from amidmath.integrations.torch_loop.trainer import AMiDTrainer

# Bytes of optimiser states for every trained parameter; of a name, the longest start that fits.
_STATE_BYTES = {
    **dict.fromkeys(("adamw", "paged_adamw", "galore", "apollo"), 8),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("adamw_torch_4bit", "lion_8bit", "paged_lion_8bit"), 1),
    **dict.fromkeys(("lion", "paged_lion", "rmsprop", "adagrad"), 4),
    **dict.fromkeys(("ademamix", "paged_ademamix"), 12),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3),
    **dict.fromkeys(("sgd", "adafactor", "lomo", "adalomo"), 0),
}


@dataclass(frozen=True)
class Shape:
    """What of a model its memory depends on.

    Args:
        parameters: how many, tied ones once.
        trainable: how many of them train.
        weight_bytes: of all parameters, as they are held.
        trained_bytes: of those that train.
        largest_bytes: of the largest module that is gathered at once when weights are shared out.
        hidden: size of a hidden state.
        intermediate: size of the MLP's inner layer.
        key_values: of keys, and as much of values, for a token and layer.
        layers: how many.
        vocabulary: how many logits.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    trained_bytes: int
    largest_bytes: int
    hidden: int
    intermediate: int
    key_values: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """The shape of a transformers model."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
        parameters, trainable = parameter_counts(model)
        blocks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
        largest = max((_bytes(layer) for block in blocks for layer in block), default=0)
        embeddings = model.get_input_embeddings()
        return cls(
            parameters=parameters,
            trainable=trainable,
            weight_bytes=_bytes(model),
            trained_bytes=_bytes(model, trained=True),
            largest_bytes=max(largest, 0 if embeddings is None else _bytes(embeddings)),
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            key_values=(getattr(config, "num_key_value_heads", None) or heads) * dimension,
            layers=config.num_hidden_layers,
            vocabulary=config.vocab_size,
        )

    def layer_elements(self) -> int:
        """Numbers that one layer keeps of a token for its backward pass.

        Each of the two norms keeps what it reads, that normalised, and what it gives (6 h); the
        attention keeps q, k, v, what it gives and that in the order of the next product (3 h +
        2 k); the MLP the gate, its activation, the other factor and the product (4 i).
        """
        return 9 * self.hidden + 2 * self.key_values + 4 * self.intermediate


@dataclass(frozen=True)
class Plan:
    """How it would be trained.

    Args:
        rows: sequences on each process at once.
        length: tokens of a sequence, at most.
        accumulation: how often that is done for one optimiser step.
        steps: optimiser steps.
        processes: how many.
        engine: "single", "ddp" or "fsdp", which shares weights, gradients and states out.
        optimizer: transformers' name.
        half: activations are of 16 bits (autocast).
        checkpointing: activations are computed again in the backward pass.
        on_cpu: the device is a CPU.
    """

    rows: int
    length: int
    accumulation: int
    steps: int
    processes: int = 1
    engine: str = "single"
    optimizer: str = "adamw_torch"
    half: bool = False
    checkpointing: bool = False
    on_cpu: bool = True

    def __post_init__(self) -> None:
        """Check the engine."""
        if self.engine not in ("single", "ddp", "fsdp"):
            raise ValueError(f"engine must be 'single', 'ddp' or 'fsdp', got {self.engine!r}")


@dataclass(frozen=True)
class Estimate:
    """What would be trained, and the memory of each process at its peak.

    Args:
        student: its shape.
        teacher: its shape; None if it is not in memory, or is the student's base.
        plan: how.
        parts: bytes by what they are for.
        notes: what the estimate leaves open.
    """

    student: Shape
    teacher: Shape | None
    plan: Plan
    parts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of one process."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """A line a fact."""
        student, plan = self.student, self.plan
        share = student.trainable / student.parameters
        sequences = plan.rows * plan.accumulation * plan.processes
        facts = {
            "student": f"{student.parameters:,} parameters, {student.trainable:,} of them trained "
            f"({share:.1%})",
            "teacher": f"{self.teacher.parameters:,} parameters" if self.teacher else "none beside",
            "steps": f"{plan.steps:,} of {sequences:,} sequences, up to "
            f"{sequences * plan.length:,} tokens each",
            "memory": f"{_mib(self.total)} on each of {plan.processes} ({plan.engine}), "
            "beside the runtime itself (libraries, compiled kernels):",
            **{f"  {name}": _mib(size) for name, size in self.parts.items() if size},
        }
        width = max(map(len, facts))
        lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def estimate_of(trainer: AMiDTrainer) -> Estimate:
    """What a prepared trainer would train, and the memory of each process."""
    args = trainer.settings
    engine = "fsdp" if trainer.is_sharded else "ddp" if args.world_size > 1 else "single"
    teacher = Shape.of(trainer.teacher.model) if isinstance(trainer.teacher, ModelTeacher) else None
    plan = Plan(
        rows=args.per_device_train_batch_size,
        length=int(args.max_length or 0),
        accumulation=args.gradient_accumulation_steps,
        steps=trainer.steps_to_train,
        processes=args.world_size,
        engine=engine,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        half=bool(args.bf16 or args.fp16),
        checkpointing=bool(args.gradient_checkpointing),
        on_cpu=args.device.type == "cpu",
    )
    return estimate(Shape.of(trainer.student), teacher, plan)


def estimate(student: Shape, teacher: Shape | None, plan: Plan) -> Estimate:
    """The memory of training a student with the loss from hidden states.

    Args:
        student: its shape.
        teacher: its shape; None if it is not in memory.
        plan: how it would be trained.
    """
    notes = []
    shares = plan.processes if plan.engine == "fsdp" else 1
    state_bytes = _state_bytes(plan.optimizer)
    if state_bytes is None:
        notes.append(f"the states of optimiser {plan.optimizer} are not known; counted as AdamW's")
        state_bytes = 8
    # States are as wide as the parameter (8 bytes are two numbers of 32 bits).
    width = student.trained_bytes / max(1, student.trainable) / 4
    states = int(student.trainable * state_bytes * (width if state_bytes >= 4 else 1))
    tokens = plan.rows * plan.length
    element = 2 if plan.half else 4
    layer = tokens * student.layer_elements() * element
    saved = tokens * student.hidden * element  # what a layer reads
    whole = student.layers * (saved if plan.checkpointing else layer)
    passing = tokens * (4 * student.intermediate + 6 * student.hidden) * element
    vocabularies = student.vocabulary + (teacher.vocabulary if teacher else 0)
    chunk = min(tokens * vocabularies * 4, CPU_BYTES if plan.on_cpu else ACCELERATOR_BYTES)
    parts = {
        "student's weights": student.weight_bytes // shares,
        "their copies of 16 bits": student.parameters * 2 // shares if plan.half else 0,
        "gradients": student.trained_bytes // shares * (2 if plan.engine == "ddp" else 1),
        "optimiser states": states // shares,
        "teacher's weights": teacher.weight_bytes // shares if teacher else 0,
        "weights gathered for use": 0
        if shares == 1
        else 2 * student.largest_bytes + (teacher.largest_bytes if teacher else 0),
        "activations kept": whole,
        "activations in passing": passing + (layer if plan.checkpointing else 0),
        "hidden states and their gradients": tokens
        * element
        * (2 * student.hidden + (teacher.hidden if teacher else 0)),
        "logits of a chunk": chunk,
        "gradient of the head": student.vocabulary * student.hidden * 4,
    }
    return Estimate(student, teacher, plan, parts, tuple(notes))


def _state_bytes(optimizer: str) -> int | None:
    starts = [name for name in _STATE_BYTES if optimizer.startswith(name)]
    return _STATE_BYTES[max(starts, key=len)] if starts else None


def _bytes(module: torch.nn.Module, trained: bool = False) -> int:
    chosen = (p for p in module.parameters() if p.requires_grad or not trained)
    return sum(p.numel() * p.element_size() for p in chosen)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
