"""What the distillation script can be told, beside TRL's and transformers' own arguments."""

import sys
import warnings
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

import amidmath as am
from amidmath._amid import ORDERS
from amidmath.integrations.distill_errors import InputError

DIVERGENCES = ("kl", "reverse_kl", "alpha_beta")


@dataclass
class DistillScriptArguments(ScriptArguments):
    """Data and reporting of one distillation run."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out dataset: hub name, folder or file. Without it, the dataset's "
            "`dataset_test_split`, or else `eval_fraction` of the training rows is held out."
        },
    )
    eval_fraction: float = field(
        default=0.05,
        metadata={"help": "Share of rows held out when the dataset brings no held-out split."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on the first so many held-out rows (after packing) only."},
    )
    baseline: bool = field(
        default=False,
        metadata={
            "help": "Also train a student with plain cross-entropy on the same data, steps and "
            "seed, and report it beside the distilled one."
        },
    )

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0.0 < self.eval_fraction < 1.0:
            raise InputError(
                f"--eval_fraction must lie between 0 and 1, both excluded, got {self.eval_fraction}"
            )
        if self.dataset_streaming:
            raise InputError(
                "--dataset_streaming: rows are counted and checked before training, which a stream "
                "does not allow; leave it out"
            )
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise InputError(f"--max_eval_samples must be at least 1, got {self.max_eval_samples}")


@dataclass
class AMiDConfig(SFTConfig):
    """SFTConfig with the teacher and the AMiD loss.

    bf16 defaults to on where a GPU supports it and off on the CPU, where it is many times slower.
    """

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher: hub name or local folder."}
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "Data type of the teacher's weights.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    divergence: str = field(
        default="kl",
        metadata={"help": "The divergence D of the loss.", "choices": list(DIVERGENCES)},
    )
    divergence_alpha: float = field(
        default=0.2, metadata={"help": "First exponent of the alpha_beta divergence."}
    )
    divergence_beta: float = field(
        default=0.7, metadata={"help": "Second exponent of the alpha_beta divergence."}
    )
    order: str = field(
        default="pr",
        metadata={
            "help": "D(p||r), D(r||p), D(q||r) or D(r||q): teacher p, student q, assistant r.",
            "choices": list(ORDERS),
        },
    )
    alpha: float = field(
        default=-1.0,
        metadata={
            "help": "alpha of the assistant: -1 arithmetic mixture, 1 geometric, -inf the larger, "
            "inf the smaller probability."
        },
    )
    lam: float = field(
        default=0.1, metadata={"help": "Weight of the teacher in the assistant, in [0, 1]."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits of teacher and student."}
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={"help": "Do not train the student's input embeddings (nor a head tied to them)."},
    )
    drop_unlearnable_rows: bool = field(
        default=False,
        metadata={
            "help": "Leave out rows with nothing to learn (an empty answer, or a prompt that fills "
            "max_length) and say how many, instead of stopping."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace an earlier run in output_dir."}
    )

    def __post_init__(self) -> None:
        """Check the loss and choose the precision; raises InputError."""
        if self.bf16 is None:
            gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        super().__post_init__()
        self.loss()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.trust_remote_code:
            raise InputError(
                "--trust_remote_code: code that comes with a model is never run here; use a model "
                "that transformers itself implements"
            )
        if self.world_size > 1:
            raise InputError(
                f"this run was started with {self.world_size} processes; evaluation and the run "
                "folder are written for one process so far"
            )
        unused = {
            "loss_type": self.loss_type != "nll",
            "label_smoothing_factor": self.label_smoothing_factor != 0.0,
            "use_liger_kernel": self.use_liger_kernel,
        }
        for name, given in unused.items():
            if given:
                raise InputError(
                    f"--{name} {getattr(self, name)} changes a cross-entropy loss, which "
                    "distillation does not compute; leave it out"
                )

    def loss(self) -> am.AMiD:
        """The loss that these arguments name; raises InputError where they do not fit."""
        try:
            divergences: dict[str, am.Divergence] = {
                "kl": am.KL(),
                "reverse_kl": am.ReverseKL(),
                "alpha_beta": am.AlphaBeta(self.divergence_alpha, self.divergence_beta),
            }
            if self.divergence not in divergences:
                raise InputError(
                    f"--divergence must be one of {', '.join(DIVERGENCES)}, got {self.divergence}"
                )
            return am.AMiD(
                divergence=divergences[self.divergence],
                order=self.order,
                alpha=self.alpha,
                lam=self.lam,
                temperature=self.temperature,
            )
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"--{error}") from error


@dataclass(frozen=True)
class Arguments:
    """All that one run was told; the three names are always given.

    Args:
        student: hub name or folder of the student.
        teacher: hub name or folder of the teacher.
        output_dir: the run folder.
        script: data and reporting.
        config: training and loss.
        model: how the student is loaded, LoRA included.
    """

    student: str
    teacher: str
    output_dir: Path
    script: DistillScriptArguments
    config: AMiDConfig
    model: ModelConfig


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, or a required argument that is missing.
        SystemExit: what argparse itself rejects, such as an unknown flag.
    """
    parser = TrlParser(
        cast("Any", (DistillScriptArguments, AMiDConfig, ModelConfig)),
        prog="torch_distill.py",
        description="Distil a causal language model with the AMiD loss (torch, TRL's SFTTrainer).",
    )
    words = _join_minus_infinity(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            # TRL's own default sets the old name of activation_checkpointing.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            script, config, model, unknown = parser.parse_args_and_config(
                args=words, return_remaining_strings=True
            )
    except FileNotFoundError as error:
        raise InputError(f"--config: no such file: {error.filename}") from error
    if unknown:
        near = get_close_matches(unknown[0], parser._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all arguments"
        raise InputError(f"unknown argument {unknown[0]}; {hint}")
    student, teacher = model.model_name_or_path, config.teacher_model_name_or_path
    required = {
        "--model_name_or_path": student,
        "--teacher_model_name_or_path": teacher,
        "--dataset_name": script.dataset_name,
        "--output_dir": config.output_dir,
    }
    missing = [flag for flag, value in required.items() if not value]
    if missing:
        raise InputError(
            f"{', '.join(missing)} must be given: a student, a teacher and a dataset make a run "
            "(`make distill` runs an example; --help lists all arguments)"
        )
    return Arguments(
        str(student), str(teacher), Path(str(config.output_dir)), script, config, model
    )


def _join_minus_infinity(words: list[str]) -> list[str]:
    """Turn ``--alpha -inf`` into ``--alpha=-inf``: argparse takes the value for a flag."""
    joined: list[str] = []
    for word in words:
        if word == "-inf" and joined and joined[-1].startswith("--"):
            joined[-1] += "=-inf"
        else:
            joined.append(word)
    return joined
