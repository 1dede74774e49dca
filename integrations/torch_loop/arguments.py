"""What the distillation script can be told, beside TRL's and transformers' own arguments."""

import json
import sys
import warnings
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from transformers import HfArgumentParser
from trl import ModelConfig, ScriptArguments, SFTConfig

import amidmath as am
from amidmath._amid import ORDERS
from amidmath.integrations.shared.errors import InputError, first_paragraph

DIVERGENCES = tuple(sorted(am.divergences.REGISTRY))

# What from_pretrained must not be told here: it would run code, load pickles, or end up in files.
_REFUSED_INIT = {
    "trust_remote_code": "code that comes with a model is never run here",
    "use_safetensors": "only safetensors weights are read",
    "token": "it would be written to the run folder; log in with `hf auth login`, or set HF_TOKEN",
}


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
        if self.ignore_bias_buffers:
            raise InputError("--ignore_bias_buffers: it has no effect here; leave it out")
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
    teacher_model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the teacher."}
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
    divergence_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Parameters of the divergence, as JSON: "
            '\'{"alpha": 0.2, "beta": 0.7}\' for alpha_beta.'
        },
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
        self._refuse_what_would_be_ignored()
        if self.max_length is None or self.max_length < 2:
            raise InputError(f"--max_length must be at least 2, got {self.max_length}")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise InputError(
                f"--max_steps {self.max_steps} and --num_train_epochs {self.num_train_epochs} "
                "leave no step to train; make one of them positive"
            )
        # The load-balancing loss of a mixture of experts is no part of a distillation loss, nor,
        # to compare like with like, of the baseline's.
        self.router_aux_loss_coef = 0.0

    def _refuse_what_would_be_ignored(self) -> None:
        refused = {
            "trust_remote_code": (self.trust_remote_code, _REFUSED_INIT["trust_remote_code"]),
            "loss_type": (self.loss_type != "nll", "it changes a cross-entropy, not this loss"),
            "label_smoothing_factor": (
                self.label_smoothing_factor != 0.0,
                "it changes a cross-entropy, not this loss",
            ),
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

    def divergence_object(self) -> am.Divergence:
        """The divergence that the arguments name; raises InputError where they do not fit."""
        if self.divergence not in DIVERGENCES:
            raise InputError(
                f"--divergence must be one of {', '.join(DIVERGENCES)}, got {self.divergence!r}"
            )
        kwargs = self.divergence_kwargs or {}
        if isinstance(kwargs, str):
            try:
                kwargs = json.loads(kwargs)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"--divergence_kwargs must be JSON such as '{{\"alpha\": 0.2}}', "
                    f"got {kwargs!r}: {error}"
                ) from error
        if not isinstance(kwargs, dict):
            raise InputError(f"--divergence_kwargs must be a JSON object, got {kwargs!r}")
        try:
            return am.divergence(self.divergence, **kwargs)
        except (TypeError, ValueError) as error:
            raise InputError(f"--divergence_kwargs {error}") from error

    def loss(self) -> am.AMiD:
        """The loss that the arguments name; raises InputError where they do not fit."""
        divergence = self.divergence_object()
        try:
            return am.AMiD(
                divergence=divergence,
                order=self.order,
                alpha=self.alpha,
                lam=self.lam,
                temperature=self.temperature,
            )
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
        model_init: further arguments of the student's ``from_pretrained``.
    """

    student: str
    teacher: str
    output_dir: Path
    script: DistillScriptArguments
    config: AMiDConfig
    model: ModelConfig
    model_init: dict[str, Any]


class _Parser(HfArgumentParser):
    """argparse whose errors are one line, not all of the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists all arguments)")


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    parser = _Parser(
        cast("Any", (DistillScriptArguments, AMiDConfig, ModelConfig)),
        prog="torch_distill.py",
        description="Distil a causal language model with the AMiD loss (torch, TRL's SFTTrainer).",
        epilog="--config FILE reads arguments from a YAML file; the command line wins.",
        allow_abbrev=False,
    )
    words = _expand_config(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        # TRL's own default sets the old name of activation_checkpointing.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
        script, config, model, unknown = parser.parse_args_into_dataclasses(
            _join_numbers(words), return_remaining_strings=True, look_for_args_file=False
        )
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
    model_init = _model_init(config.model_init_kwargs)
    config.model_init_kwargs = None  # the student is loaded before the trainer sees it
    folder = Path(str(config.output_dir))
    return Arguments(str(student), str(teacher), folder, script, config, model, model_init)


def _model_init(given: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(given, str):
        raise InputError(f"--model_init_kwargs must be a JSON object, got {given}")
    for name, reason in _REFUSED_INIT.items():
        if any(name in key for key in given or {}):
            raise InputError(f"--model_init_kwargs: {name} cannot be given: {reason}")
    return dict(given or {})


def _expand_config(words: list[str]) -> list[str]:
    """Put the contents of the --config file before the other words, which override them."""
    words = [part for word in words for part in _split_config(word)]
    if "--config" not in words:
        return words
    at = words.index("--config")
    if at + 1 == len(words):
        raise InputError("--config must be followed by a YAML file")
    path = words[at + 1]
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--config: no such file: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config: {path} is no YAML file: {first_paragraph(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config: {path} must hold lines of the form `argument: value`")
    from_file: list[str] = []
    for name, value in content.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            from_file += [f"--{name}", *map(_as_word, values)]
    return from_file + words[:at] + words[at + 2 :]


def _split_config(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _as_word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def _join_numbers(words: list[str]) -> list[str]:
    """Turn ``--alpha -inf`` into ``--alpha=-inf``: argparse takes such a value for a flag."""
    joined: list[str] = []
    for word in words:
        flag_before = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if word.startswith("-") and flag_before and _is_number(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
