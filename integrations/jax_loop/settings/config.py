"""The training arguments of JAX's distillation loop."""

from dataclasses import dataclass, field

from amidmath.integrations.common.cli.ranges import COUNT, RANGES, check_finite, check_ranges
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.settings import PolicySettings
from amidmath.integrations.common.recipe.settings import LossSettings, TeacherSettings
from amidmath.integrations.jax_loop.logs import trackers
from amidmath.integrations.jax_loop.models.lora import LoraSettings

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")

OPTIMIZERS = ("adamw", "adafactor", "lion", "sgd")

WHEN = ("no", "steps", "epoch")


@dataclass
class JaxConfig(PolicySettings, LossSettings, TeacherSettings, LoraSettings):
    """Training on a mesh of devices; arguments have TRL's and transformers' names where they can.

    A device's batch is that of ``per_device_train_batch_size``; devices along the mesh's tensor
    axis share one.
    """

    output_dir: str | None = field(default=None, metadata={"help": "The run folder."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint, or true for the newest; goes on whatever has changed."},
    )
    mesh: str = field(
        default="data=-1",
        metadata={
            "help": "Axes of the device mesh and their sizes: data=2,fsdp=2,tensor=2. data copies "
            "the student, fsdp shares its weights out, tensor splits layers and vocabulary; -1 "
            "takes the devices that are left."
        },
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Sequences on each device at once."}
    )
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Held-out sequences on each device at once."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Such batches of one optimiser step."}
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data."})
    max_steps: int = field(
        default=-1, metadata={"help": "Optimiser steps; if positive, in place of epochs."}
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "The highest learning rate."})
    lr_scheduler_type: str = field(
        default="linear",
        metadata={"help": "How it falls after the warm-up.", "choices": list(SCHEDULES)},
    )
    warmup_steps: float = field(
        default=0.0, metadata={"help": "Steps in which it rises; below 1, a share of all steps."}
    )
    optim: str = field(
        default="adamw", metadata={"help": "Optax's optimiser.", "choices": list(OPTIMIZERS)}
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "Decoupled weight decay; not of norms and biases."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Of adamw and lion."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Of adamw and lion."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Of adamw."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Gradients are scaled down to this norm; 0 for never."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bfloat16, with weights in float32; by default on accelerators."
        },
    )
    gradient_checkpointing: bool = field(
        default=True,
        metadata={"help": "Compute layers again in the backward pass instead of keeping them."},
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens of a sequence, at most."})
    packing: bool = field(
        default=False, metadata={"help": "Put several rows into one sequence of max_length."}
    )
    packing_strategy: str = field(
        default="bfd",
        metadata={
            "help": "bfd: whole rows, kept apart; wrapped: one stream of text, cut anywhere.",
            "choices": ["bfd", "wrapped"],
        },
    )
    completion_only_loss: bool | None = field(
        default=None,
        metadata={"help": "Learn completions only; by default where rows have prompts."},
    )
    assistant_only_loss: bool = field(
        default=False,
        metadata={"help": "Learn the assistant's turns only (chat template with generation)."},
    )
    dataset_text_field: str = field(
        default="text", metadata={"help": "The column of rows that are text only."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenise."}
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={"help": "Order of the rows.", "choices": ["random", "sequential"]},
    )
    logging_steps: int = field(default=10, metadata={"help": "Log every so many steps."})
    report_to: list[str] | None = field(
        default=None,
        metadata={
            "help": "Who is given every figure of metrics.jsonl too: some of "
            f"{', '.join(trackers.TRACKERS)}. Default: none."
        },
    )
    run_name: str | None = field(
        default=None, metadata={"help": "The run's name there. Default: the run folder's."}
    )
    project: str | None = field(
        default=None,
        metadata={
            "help": "The run's project there. Default: wandb's WANDB_PROJECT, or huggingface."
        },
    )
    eval_strategy: str = field(
        default="no",
        metadata={"help": "When to evaluate during training.", "choices": list(WHEN)},
    )
    eval_steps: int = field(default=500, metadata={"help": "Every so many steps."})
    eval_on_start: bool = field(
        default=False, metadata={"help": "Evaluate before the first step too."}
    )
    save_strategy: str = field(
        default="steps",
        metadata={"help": "When to save checkpoints.", "choices": list(WHEN)},
    )
    save_steps: int = field(default=500, metadata={"help": "Every so many steps."})
    save_total_limit: int | None = field(
        default=None, metadata={"help": "Keep so many checkpoints, the newest."}
    )
    seed: int = field(default=42, metadata={"help": "Of order, data policy and sampling."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self) -> None:
        """Check every value; raises InputError."""
        self.recipe()
        self.data_policy()
        self.replay_buffer()
        self.check_generation()
        self.check_label_weight()
        self.check_lora()
        if self.teacher_is_base and (self.teacher_model_name_or_path or self.teacher_cache):
            raise InputError(
                "--teacher_is_base: the student's base model is the teacher; leave out "
                "--teacher_model_name_or_path and --teacher_cache"
            )
        if self.freeze_embeddings and self.use_peft:
            raise InputError(
                "--freeze_embeddings: with --use_peft nothing but the adapter is trained, and "
                "embeddings have none; leave one of them out, or set it to false"
            )
        self.report_to = trackers.named(self.report_to)
        _choose("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        _choose("optim", self.optim, OPTIMIZERS)
        _choose("eval_strategy", self.eval_strategy, WHEN)
        _choose("save_strategy", self.save_strategy, WHEN)
        _choose("packing_strategy", self.packing_strategy, ("bfd", "wrapped"))
        _choose("train_sampling_strategy", self.train_sampling_strategy, ("random", "sequential"))
        check_ranges(
            self, RANGES | dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), COUNT)
        )
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise InputError(
                f"--max_steps {self.max_steps} and --num_train_epochs {self.num_train_epochs} "
                "leave no step to train; make one of them positive"
            )
        check_finite(self)

    @property
    def generates(self) -> bool:
        """Whether sequences are generated, which may be longer than the dataset's."""
        return self.policy != "off_policy"


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"--{name} must be one of {', '.join(choices)}, got {value!r}")
