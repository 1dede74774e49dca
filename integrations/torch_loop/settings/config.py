"""The training arguments of torch's distillation loop: SFTConfig, the loss and the data policy."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments
from trl import SFTConfig

from amidmath.integrations.common.cli.ranges import check_finite, check_ranges
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.settings import PolicySettings
from amidmath.integrations.common.recipe.settings import LossSettings, TeacherSettings

# What takes a JSON object and nothing else.
_OBJECTS = (
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs"),
    *("liger_kernel_config", "dataset_kwargs"),
)
CODE_IS_NEVER_RUN = "code that comes with a model is never run here"


@dataclass
class AMiDConfig(PolicySettings, LossSettings, TeacherSettings, SFTConfig):
    """SFTConfig with the teacher, the loss and the data policy.

    bf16 defaults to on where a GPU supports it and off on the CPU, where it is many times slower.
    """

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Not used: a loss that is not finite is logged as what it is."},
    )
    teacher_is_base: bool = field(
        default=False,
        metadata={
            "help": "The student's own base model teaches it (with --use_peft): no second model."
        },
    )
    master_weights: bool = field(
        default=True,
        metadata={
            "help": "Keep trained weights, and so the optimiser's states, in float32, whatever "
            "--dtype says: of 16 bits, most updates are lost in rounding. Frozen weights are of "
            "--dtype."
        },
    )
    teacher_load_in_8bit: bool = field(
        default=False, metadata={"help": "Load the teacher in 8 bits (bitsandbytes)."}
    )
    teacher_load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the teacher in 4 bits (bitsandbytes)."}
    )

    def __post_init__(self) -> None:
        """Check the loss and choose the precision; raises InputError."""
        choose_bf16(self)
        self._check_multiple()
        check_ranges(self)
        self._check_objects()
        self._check_engines()
        super().__post_init__()
        self.recipe()
        self.data_policy()
        self.replay_buffer()
        self.check_generation()
        self.check_label_weight()
        self._check_teacher()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        self._refuse_what_would_be_ignored()
        if self.max_length is None or self.max_length < 2:
            raise InputError(f"--max_length must be at least 2, got {self.max_length}")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise InputError(
                f"--max_steps {self.max_steps} and --num_train_epochs {self.num_train_epochs} "
                "leave no step to train; make one of them positive"
            )
        check_finite(self)
        # The load-balancing loss of a mixture of experts is no part of a distillation loss, nor,
        # to compare like with like, of the baseline's.
        self.router_aux_loss_coef = 0.0

    def _check_multiple(self) -> None:
        given: Any = self.pad_to_multiple_of  # TRL's type of it is not one for a command line
        try:
            self.pad_to_multiple_of = given if given in (None, "auto") else int(given)
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"--pad_to_multiple_of must be auto or a whole number from 1 on, got {given!r}"
            ) from error

    def _check_objects(self) -> None:
        for name in _OBJECTS:
            given = getattr(self, name, None)
            if isinstance(given, str) and given and not given.lstrip().startswith("{"):
                raise InputError(f"--{name} must be a JSON object such as '{{}}', got {given!r}")

    def _check_engines(self) -> None:
        if self.deepspeed and find_spec("deepspeed") is None:
            raise InputError(
                f"--deepspeed {self.deepspeed}: DeepSpeed is not installed; install it, or give "
                "--fsdp, which needs nothing else"
            )
        if self.activation_offloading and not torch.accelerator.is_available():
            raise InputError(
                "--activation_offloading true: there is no accelerator whose memory it would "
                "spare; leave it out"
            )

    def _check_teacher(self) -> None:
        if self.teacher_is_base and (self.teacher_model_name_or_path or self.teacher_cache):
            raise InputError(
                "--teacher_is_base: the student's base model is the teacher; leave out "
                "--teacher_model_name_or_path and --teacher_cache"
            )
        quantized = self.teacher_load_in_8bit or self.teacher_load_in_4bit
        if self.teacher_load_in_8bit and self.teacher_load_in_4bit:
            raise InputError("--teacher_load_in_8bit and --teacher_load_in_4bit: give one of them")
        if quantized and (self.teacher_is_base or self.teacher_cache):
            raise InputError(
                "--teacher_load_in_8bit and --teacher_load_in_4bit are for a teacher in memory"
            )

    def _refuse_what_would_be_ignored(self) -> None:
        refused = {
            "trust_remote_code": (self.trust_remote_code, CODE_IS_NEVER_RUN),
            "loss_type": (self.loss_type != "nll", "it changes a cross-entropy, not this loss"),
            "logging_nan_inf_filter": (
                self.logging_nan_inf_filter,
                "it would log a loss that is infinite as 0",
            ),
            "label_smoothing_factor": (
                self.label_smoothing_factor != 0.0,
                "it changes a cross-entropy, not this loss",
            ),
            "save_only_model": (self.save_only_model, "a run could not go on from its checkpoints"),
            "use_liger_kernel": (self.use_liger_kernel, "it replaces the forward pass"),
            "router_aux_loss_coef": (
                self.router_aux_loss_coef not in (None, 0.0),
                "the loss has no load-balancing term",
            ),
            "truncation_mode": (
                self.truncation_mode != "keep_start",
                "rows are cut at their end, so that an answer follows its prompt",
            ),
        }
        for name, (given, reason) in refused.items():
            if given:
                raise InputError(f"--{name} {getattr(self, name)}: {reason}; leave it out")


def choose_bf16(config: TrainingArguments) -> None:
    """Train in bfloat16 where nothing is said and a GPU has it."""
    gpu = torch.cuda.is_available() and not config.use_cpu
    for name in ("bf16", "fp16"):
        if getattr(config, name) and not gpu and not config.use_cpu and not _other_accelerator():
            raise InputError(
                f"--{name} true: there is no GPU here. On a CPU it is many times slower than "
                f"float32: leave it out, or add --use_cpu true to have it all the same"
            )
    if config.bf16 is None:
        config.bf16 = gpu and not config.fp16 and torch.cuda.is_bf16_supported()


def _other_accelerator() -> bool:
    """Whether there is one that is no CUDA device, of which transformers knows what it can do."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type != "cuda"
