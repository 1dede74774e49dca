"""The memory that a run would take, before anything is computed.

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
from dataclasses import dataclass, replace

from amidmath.integrations.common.evaluation.quality import CHUNK_BYTES
from amidmath.integrations.torch_loop.run.model_shape import Shape
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer
from amidmath.pairs.chunked import ACCELERATOR_BYTES, CPU_BYTES

# A chunk's logits, their logarithms, exponentials and differences, of both sides.
_CHUNK_COPIES = 5
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
class Plan:
    """The plan of a training.

    Args:
        rows: sequences on each process at once.
        length: tokens of a sequence, at most.
        accumulation: how often that is done for one optimiser step.
        steps: optimiser steps.
        processes: how many.
        engine: "single", "ddp" or "fsdp", which shares weights, gradients and states out.
        optimizer: transformers' name.
        half: activations are of 16 bits (autocast).
        eval_rows: sequences at once in evaluations.
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
    eval_rows: int = 8
    checkpointing: bool = False
    on_cpu: bool = True

    def __post_init__(self) -> None:
        """Check the engine."""
        if self.engine not in ("single", "ddp", "fsdp"):
            raise ValueError(f"engine must be 'single', 'ddp' or 'fsdp', got {self.engine!r}")


@dataclass(frozen=True)
class Estimate:
    """The parts of a run's memory, and that of each process at its peak.

    Args:
        student: its shape.
        teacher: its shape; None if it is not in memory, or is the student's base.
        plan: how.
        parts: bytes by what they are for, in training.
        evaluating: bytes of an evaluation while training.
        notes: what the estimate leaves open.
    """

    student: Shape
    teacher: Shape | None
    plan: Plan
    parts: Mapping[str, int]
    evaluating: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of one process, in training or evaluations, whichever takes more."""
        return max(sum(self.parts.values()), self.evaluating)

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
            "evaluations": f"{_mib(self.evaluating)}, with {plan.eval_rows} sequences at a time",
        }
        width = max(map(len, facts))
        lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def estimate_of(trainer: AMiDTrainer, baseline: bool = False) -> Estimate:
    """Estimate what a prepared trainer would train, and the memory of each process.

    Args:
        trainer: prepared.
        baseline: a student is trained with plain cross-entropy too, which holds whole logits.
    """
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
        eval_rows=args.per_device_eval_batch_size,
        half=bool(args.bf16 or args.fp16),
        checkpointing=bool(args.gradient_checkpointing),
        on_cpu=args.device.type == "cpu",
    )
    student = Shape.of(trainer.student)
    found = estimate(student, teacher, plan)
    return replace(found, notes=(*found.notes, *_of_baseline(student, plan))) if baseline else found


def _of_baseline(student: Shape, plan: Plan) -> tuple[str, ...]:
    """A note on the logits of plain cross-entropy, their gradient and float32 copies of both."""
    size = plan.rows * plan.length * student.vocabulary * (2 * (2 if plan.half else 4) + 8)
    return (
        f"the cross-entropy baseline (--baseline) holds whole logits and their gradients, about "
        f"{_mib(size)} in the place of a chunk's",
    )


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
    if student.whole_logits or (teacher is not None and teacher.whole_logits):
        # Those of the student, their gradient twice as it is added up, and the teacher's.
        others = teacher.vocabulary if teacher else 0
        parts["logits of a chunk"] = 0
        parts["whole logits and their gradients"] = (
            tokens * element * (3 * student.vocabulary + others)
        )
        parts["gradient of the head"] = 0
        notes.append(whole_in_words(student, teacher, tokens * element))
    kept = ("student's weights", "optimiser states", "teacher's weights")
    evaluating = sum(parts[name] for name in (*kept, "their copies of 16 bits")) + _evaluating(
        student, teacher, plan.eval_rows * plan.length, element
    )
    return Estimate(student, teacher, plan, parts, evaluating, tuple(notes))


def whole_in_words(student: Shape, teacher: Shape | None, size: int) -> str:
    """Whose logits are whole, and what a batch of them takes.

    Args:
        student: its shape.
        teacher: its shape, if it is in memory.
        size: bytes of one logit at each position of a batch.
    """
    sides = {"student": student, **({"teacher": teacher} if teacher else {})}
    whole = [name for name, shape in sides.items() if shape.whole_logits]
    total = size * sum(shape.vocabulary for shape in sides.values())
    return (
        f"the {' and the '.join(whole)} makes logits in a way of its own, so that those of a batch "
        f"are held whole: {_mib(total)}, and gradients"
    )


def _evaluating(student: Shape, teacher: Shape | None, tokens: int, element: int) -> int:
    """Bytes of hidden states, of a layer in passing and of logits while rows are evaluated."""
    sides = [student, *([teacher] if teacher else [])]
    passing = max(4 * side.intermediate + 6 * side.hidden for side in sides)
    held = sum(side.vocabulary if side.whole_logits else side.hidden for side in sides)
    chunk = min(tokens * sum(side.vocabulary for side in sides) * 4, CHUNK_BYTES)
    return tokens * (passing + held) * element + _CHUNK_COPIES * chunk


def _state_bytes(optimizer: str) -> int | None:
    starts = [name for name in _STATE_BYTES if optimizer.startswith(name)]
    return _STATE_BYTES[max(starts, key=len)] if starts else None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
