"""The arguments of the JAX distillation script: the torch script's flags, and a mesh."""

from dataclasses import dataclass, field
from pathlib import Path

from amidmath.integrations.common.cli.command_line import (
    STUDENT_FLAG,
    TEACHER_FLAG,
    Groups,
    parse,
    require,
)
from amidmath.integrations.common.data.splits import DEFAULT_TEST_SPLIT
from amidmath.integrations.common.evaluation.settings import HeldOutSettings
from amidmath.integrations.common.policies.settings import PolicySettings
from amidmath.integrations.common.recipe.settings import LossSettings
from amidmath.integrations.common.tasks.settings import TaskScoreSettings
from amidmath.integrations.jax_loop.models.lora import LoraSettings
from amidmath.integrations.jax_loop.settings.config import JaxConfig

GROUPS: Groups = {
    "student and LoRA": (LoraSettings, "model_*", "freeze_embeddings"),
    "teacher": ("teacher_*", "vocab"),
    "loss": (LossSettings, "label_weight"),
    "sequences to learn from": (PolicySettings,),
    "data": (
        *("dataset_*", "max_length", "packing*", "completion_only_loss", "assistant_only_loss"),
        *("drop_unlearnable_rows", "train_sampling_strategy"),
    ),
    "training": (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
        *("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim"),
        *("weight_decay", "adam_*", "max_grad_norm", "seed"),
    ),
    "devices and precision": ("mesh", "bf16", "gradient_checkpointing"),
    "held-out rows": (HeldOutSettings, TaskScoreSettings, "eval_*", "per_device_eval_batch_size"),
    "run folder and checkpoints": (
        *("output_dir", "overwrite_output_dir", "dry_run", "resume_from_checkpoint", "save_*"),
    ),
    "reporting": ("verbose", "logging_steps", "report_to", "run_name", "project", "disable_tqdm"),
}


@dataclass
class JaxScriptArguments(HeldOutSettings):
    """The student, the data, and what is reported of a run."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The student: hub name or local folder."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the student."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Training data: hub name, folder or file."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a dataset on the hub."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default=DEFAULT_TEST_SPLIT, metadata={"help": "Split that is held out."}
    )

    def __post_init__(self) -> None:
        """Check the values."""
        self.check_held_out()


@dataclass(frozen=True)
class Arguments:
    """All that one run was told.

    Args:
        student: hub name or folder of the student.
        teacher: hub name or folder of the teacher; None where it is the student's base, or where
            its cache does not need it.
        output_dir: the run folder.
        script: student, data and reporting.
        config: training and loss.
        scores: the task on which answers are scored.
    """

    student: str
    teacher: str | None
    output_dir: Path
    script: JaxScriptArguments
    config: JaxConfig
    scores: TaskScoreSettings = field(default_factory=TaskScoreSettings)


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    script, config, scores = parse(
        (JaxScriptArguments, JaxConfig, TaskScoreSettings),
        argv,
        groups=GROUPS,
        prog="jax_distill.py",
        description="Distil a causal language model with the AMiD loss (JAX, Flax NNX).",
    )
    require(
        {
            STUDENT_FLAG: script.model_name_or_path,
            TEACHER_FLAG: config.teacher_model_name_or_path
            or config.teacher_cache
            or config.teacher_is_base,
            "--dataset_name": script.dataset_name,
            "--output_dir": config.output_dir,
        },
        "a student, a teacher and a dataset make a run; `make distill-jax` runs an example, --help "
        "lists all arguments",
    )
    folder = Path(str(config.output_dir))
    student, teacher = str(script.model_name_or_path), config.teacher_model_name_or_path
    return Arguments(student, teacher, folder, script, config, scores)
