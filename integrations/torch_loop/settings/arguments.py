"""The arguments of the distillation script, beside TRL's and transformers' own."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trl import ModelConfig, ScriptArguments

from amidmath.integrations.common.cli.command_line import (
    STUDENT_FLAG,
    TEACHER_FLAG,
    Groups,
    parse,
    require,
)
from amidmath.integrations.common.cli.ranges import check_ranges
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.evaluation.settings import HeldOutSettings
from amidmath.integrations.common.policies.settings import PolicySettings
from amidmath.integrations.common.recipe.settings import LossSettings
from amidmath.integrations.common.tasks.settings import TaskScoreSettings
from amidmath.integrations.torch_loop.settings.config import CODE_IS_NEVER_RUN, AMiDConfig

# What from_pretrained must not be told here: it would run code, load pickles, or end up in files.
_REFUSED_INIT = {
    "trust_remote_code": CODE_IS_NEVER_RUN,
    "use_safetensors": "only safetensors weights are read",
    "token": "it would be written to the run folder; log in with `hf auth login`, or set HF_TOKEN",
}

# What --help puts together.
GROUPS: Groups = {
    "student and LoRA": (ModelConfig, "model_init_kwargs", "freeze_embeddings"),
    "teacher": ("teacher_*", "vocab"),
    "loss": (LossSettings, "label_weight"),
    "sequences to learn from": (PolicySettings,),
    "data": (
        *("dataset_*", "max_length", "packing*", "padding_free", "pad_to_multiple_of"),
        *("completion_only_loss", "assistant_only_loss", "chat_template_path", "eos_token"),
        *("pad_token", "shuffle_dataset", "drop_unlearnable_rows", "train_sampling_strategy"),
        *("dataloader_*", "remove_unused_columns", "label_names", "length_column_name"),
    ),
    "training": (AMiDConfig, "learning_rate", "optim*"),
    "held-out rows and scores": (
        *(HeldOutSettings, TaskScoreSettings, "eval_*", "*_for_best_model", "greater_is_better"),
        *("per_device_eval_batch_size", "batch_eval_metrics", "prediction_loss_only"),
        *("include_for_metrics", "*_full_eval", "do_*"),
    ),
    "run folder and checkpoints": (
        *("output_dir", "overwrite_output_dir", "dry_run", "resume_from_checkpoint", "save_*"),
        *("restore_callback_states_from_checkpoint", "ignore_data_skip", "enable_jit_checkpoint"),
        "load_best_model_at_end",
    ),
    "reporting": (
        *("logging_*", "log_*", "report_to", "run_name", "project", "trackio_*", "disable_tqdm"),
        *("verbose", "include_num_input_tokens_seen", "skip_memory_metrics"),
    ),
    "publishing": ("push_to_hub", "hub_*"),
    "precision and speed": (
        *(
            "master_weights",
            "bf16",
            "fp16",
            "tf32",
            "torch_*",
            "*_checkpointing*",
            "*_offloading",
            "use_cache",
        ),
        *("auto_find_batch_size", "full_determinism", "use_cpu", "debug"),
    ),
    "processes": (
        *("ddp_*", "fsdp*", "deepspeed", "accelerator_config", "parallelism_config", "local_rank"),
        "average_tokens_across_devices",
    ),
    "refused (they would change nothing here, or run code)": (
        *("ignore_bias_buffers", "dataset_streaming", "trust_remote_code", "loss_type"),
        *("label_smoothing_factor", "save_only_model", "use_liger_kernel", "liger_kernel_config"),
        *("router_aux_loss_coef", "truncation_mode"),
    ),
}


@dataclass
class DistillScriptArguments(HeldOutSettings, ScriptArguments):
    """Data and reporting of one distillation run."""

    def __post_init__(self) -> None:
        """Check the values."""
        self.check_held_out()
        if self.ignore_bias_buffers:
            raise InputError("--ignore_bias_buffers: it has no effect here; leave it out")
        if self.dataset_streaming:
            raise InputError(
                "--dataset_streaming: rows are counted and checked before training, which a stream "
                "does not allow; leave it out"
            )


@dataclass(frozen=True)
class Arguments:
    """All that one run was told.

    Args:
        student: hub name or folder of the student.
        teacher: hub name or folder of the teacher; None where it is the student's base, or where
            its cache does not need it.
        output_dir: the run folder.
        script: data and reporting.
        config: training and loss.
        model: how the student is loaded, LoRA included.
        model_init: further arguments of the student's ``from_pretrained``.
        scores: the task on which answers are scored.
    """

    student: str
    teacher: str | None
    output_dir: Path
    script: DistillScriptArguments
    config: AMiDConfig
    model: ModelConfig
    model_init: dict[str, Any]
    scores: TaskScoreSettings = field(default_factory=TaskScoreSettings)


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    script, config, model, scores = parse(
        (DistillScriptArguments, AMiDConfig, ModelConfig, TaskScoreSettings),
        argv,
        groups=GROUPS,
        prog="torch_distill.py",
        description="Distil a causal language model with the AMiD loss (torch, TRL's SFTTrainer).",
    )
    check_ranges(model)
    _check_adapter(model)
    student, teacher = model.model_name_or_path, config.teacher_model_name_or_path
    require(
        {
            STUDENT_FLAG: student,
            TEACHER_FLAG: teacher or config.teacher_cache or config.teacher_is_base,
            "--dataset_name": script.dataset_name,
            "--output_dir": config.output_dir,
        },
        "a student, a teacher and a dataset make a run; `make distill` runs an example, --help "
        "lists all arguments",
    )
    model_init = _model_init(config.model_init_kwargs)
    config.model_init_kwargs = None  # the student is loaded before the trainer sees it
    folder = Path(str(config.output_dir))
    return Arguments(str(student), teacher, folder, script, config, model, model_init, scores)


def _check_adapter(model: ModelConfig) -> None:
    """Raise InputError where an adapter is described and none is asked for."""
    if model.use_peft:
        return
    for each in fields(ModelConfig):
        of_adapter = each.name.startswith("lora_") or each.name in ("use_rslora", "use_dora")
        value = getattr(model, each.name)
        if of_adapter and value != each.default:
            words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            raise InputError(
                f"--{each.name} {words}: without an adapter the whole student would be trained; "
                "add --use_peft, or leave it out"
            )


def _model_init(given: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(given, str):
        raise InputError(f"--model_init_kwargs must be a JSON object, got {given}")
    for name, reason in _REFUSED_INIT.items():
        if any(name in key for key in given or {}):
            raise InputError(f"--model_init_kwargs: {name} cannot be given: {reason}")
    return dict(given or {})
