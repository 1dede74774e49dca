"""What the distillation script can be told, beside TRL's and transformers' own arguments."""

import json
import sys
import warnings
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser
from trl import ModelConfig, ScriptArguments

from amidmath.integrations.shared.errors import InputError, first_paragraph
from amidmath.integrations.torch_loop.config import CODE_IS_NEVER_RUN, AMiDConfig

# What from_pretrained must not be told here: it would run code, load pickles, or end up in files.
_REFUSED_INIT = {
    "trust_remote_code": CODE_IS_NEVER_RUN,
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

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Say what would be trained and how much memory it would take, and stop before "
            "the first step; nothing is written."
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
    """

    student: str
    teacher: str | None
    output_dir: Path
    script: DistillScriptArguments
    config: AMiDConfig
    model: ModelConfig
    model_init: dict[str, Any]


class Parser(HfArgumentParser):
    """argparse whose errors are one line, not all of the usage."""

    def error(self, message: str) -> NoReturn:
        """See the class."""
        raise InputError(f"{message} (--help lists all arguments)")


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    parser = Parser(
        cast("Any", (DistillScriptArguments, AMiDConfig, ModelConfig)),
        prog="torch_distill.py",
        description="Distil a causal language model with the AMiD loss (torch, TRL's SFTTrainer).",
        epilog="--config FILE reads arguments from a YAML file; the command line wins.",
        allow_abbrev=False,
    )
    words = expand_config(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        # TRL's own default sets the old name of activation_checkpointing.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
        script, config, model, unknown = parser.parse_args_into_dataclasses(
            join_numbers(words), return_remaining_strings=True, look_for_args_file=False
        )
    if unknown:
        near = get_close_matches(unknown[0], parser._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all arguments"
        raise InputError(f"unknown argument {unknown[0]}; {hint}")
    student, teacher = model.model_name_or_path, config.teacher_model_name_or_path
    required = {
        "--model_name_or_path": student,
        "--teacher_model_name_or_path": teacher or config.teacher_cache or config.teacher_is_base,
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
    return Arguments(str(student), teacher, folder, script, config, model, model_init)


def _model_init(given: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(given, str):
        raise InputError(f"--model_init_kwargs must be a JSON object, got {given}")
    for name, reason in _REFUSED_INIT.items():
        if any(name in key for key in given or {}):
            raise InputError(f"--model_init_kwargs: {name} cannot be given: {reason}")
    return dict(given or {})


def expand_config(words: list[str]) -> list[str]:
    """Put what the --config files say before the other words, which override them.

    Of several files, a later one overrides an earlier.
    """
    words = [part for word in words for part in _split_config(word)]
    from_files: dict[str, list[str]] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word != "--config":
            others.append(word)
            continue
        path = next(rest, None)
        if path is None:
            raise InputError("--config must be followed by a YAML file")
        from_files |= _read_config(path)
    return [word for given in from_files.values() for word in given] + others


def _read_config(path: str) -> dict[str, list[str]]:
    """The words of the command line that stand for each line of a file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--config: no such file: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config: {path} is no YAML file: {first_paragraph(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config: {path} must hold lines of the form `argument: value`")
    found: dict[str, list[str]] = {}
    for name, value in content.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            found[str(name)] = [f"--{name}", *map(_as_word, values)]
    return found


def _split_config(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _as_word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def join_numbers(words: list[str]) -> list[str]:
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
