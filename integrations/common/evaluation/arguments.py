"""The arguments of the evaluation scripts."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from amidmath.integrations.common.cli.command_line import (
    STUDENT_FLAG,
    TEACHER_FLAG,
    check_alone,
    parse,
    require,
)
from amidmath.integrations.common.cli.quiet import VERBOSE_HELP
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.tasks.answers import Decoding
from amidmath.integrations.common.tasks.prompts import PROMPT_STYLE_HELP, PROMPT_STYLES
from amidmath.integrations.common.tasks.rows import Languages
from amidmath.integrations.common.tasks.tasks import TASKS, Task
from amidmath.integrations.common.text.vocabularies import MODES, VOCAB_HELP


def _help(text: str, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": text} | more)


@dataclass
class ModelArguments:
    """The models that are evaluated."""

    _argument_group_name: ClassVar[str] = "models"

    model_name_or_path: str | None = _help("The student: hub name or local folder.")
    model_revision: str = _help("Branch, tag or commit of the student.", "main")
    teacher_model_name_or_path: str | None = _help(
        "The teacher; without it there is no KL and no agreement."
    )
    teacher_model_revision: str = _help("Branch, tag or commit of the teacher.", "main")
    dtype: str | None = _help(
        "Data type of both models' weights: auto is the one they were saved in. Default: float32 "
        "on a CPU, auto on a GPU.",
        choices=["auto", "float32", "bfloat16", "float16"],
    )
    vocab: str = _help(VOCAB_HELP, "strict", choices=list(MODES))


@dataclass
class DataArguments:
    """The data that they are evaluated on."""

    _argument_group_name: ClassVar[str] = "data"

    task: str | None = _help("The format of the evaluation set.", choices=list(TASKS))
    dataset_name: str | None = _help(
        "The evaluation set: .jsonl, .json, .csv, .tsv, .txt or .parquet file, folder or hub name."
    )
    dataset_config: str | None = _help("Configuration of a dataset on the hub.")
    dataset_split: str = _help("Split of a dataset that has several.", "test")
    max_eval_samples: int | None = _help("Evaluate on the first so many rows only.")
    min_reference_words: int = _help(
        "Leave out rows without a reference of at least so many words.", 0
    )
    prompt_style: str = _help(
        PROMPT_STYLE_HELP,
        "published",
        choices=list(PROMPT_STYLES),
    )
    max_prompt_length: int | None = _help(
        "Cut longer prompts at their end, in tokens; MiniLLM's evaluation has 256."
    )
    max_length: int | None = _help(
        "Cut prompt and reference together, for KL and perplexity. Default: the models' context."
    )
    source_language: str = _help("Of a translation, as the prompt names it.", Languages.source)
    target_language: str = _help("Of a translation, as the prompt names it.", Languages.target)
    source_column: str | None = _help("Key or column of the source text. Default: its language.")
    target_column: str | None = _help("Key or column of the translation. Default: its language.")


@dataclass
class GenerationArguments:
    """The generation of answers."""

    _argument_group_name: ClassVar[str] = "generation"

    max_new_tokens: int | None = _help("The longest answer. Default: the task's.")
    temperature: float | None = _help("0 is greedy. Default: the task's.")
    top_p: float = _help("Nucleus of the sampling.", 1.0)
    seeds: list[str] | None = field(
        default=None,
        metadata={"help": "Seeds of the sampling, 10,20,30: one set of answers each."},
    )
    batch_size: int = _help("Rows at a time.", 8)
    generate_with_teacher: bool = _help(
        "Let the teacher answer too: its scores, and the student's ROUGE-L against its answers of "
        "the same seed.",
        False,
    )


@dataclass
class OutputArguments:
    """The place of the results."""

    _argument_group_name: ClassVar[str] = "output"

    output_dir: str | None = _help("Folder for results.json and predictions.jsonl.")
    overwrite_output_dir: bool = _help("Replace an earlier evaluation there.", False)
    verbose: bool = _help(VERBOSE_HELP, False)


@dataclass(frozen=True)
class Arguments:
    """All that one evaluation was told, checked as far as it can be without reading anything."""

    models: ModelArguments
    data: DataArguments
    generation: GenerationArguments
    output: OutputArguments

    @property
    def task(self) -> Task:
        """The task that is named."""
        return TASKS[str(self.data.task)]

    @property
    def folder(self) -> Path:
        """The place of the results."""
        return Path(str(self.output.output_dir))

    def languages(self) -> Languages:
        """The languages of a translation."""
        return Languages(**{name: _language(self.data, name) for name in asdict(Languages())})

    def decoding(self) -> Decoding:
        """How answers are generated, by the task where nothing else is said."""
        given, task = self.generation, self.task
        temperature = task.temperature if given.temperature is None else given.temperature
        seeds = _seeds(given.seeds) or (task.seeds if temperature > 0.0 else (0,))
        length = task.max_new_tokens if given.max_new_tokens is None else given.max_new_tokens
        return Decoding(length, temperature, given.top_p, seeds, given.batch_size)


def parse_arguments(argv: list[str] | None, *, prog: str, processes: int | None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Args:
        argv: the words; None for those of the process.
        prog: the script.
        processes: how many were started; None for several whose number is not known.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    groups = parse(
        (ModelArguments, DataArguments, GenerationArguments, OutputArguments),
        argv,
        prog=prog,
        description="Evaluate a student, beside its teacher, on held-out text and on a task.",
        epilog="tasks:\n" + "\n".join(f"  {task.name:14} {task.about}" for task in TASKS.values()),
    )
    arguments = Arguments(*groups)
    _check(arguments)
    check_alone(processes, "evaluation")
    return arguments


def _seeds(words: Sequence[str] | None) -> tuple[int, ...]:
    """The numbers of 10,20 or 10 20; none if nothing is given."""
    parts = [part for word in words or () for part in word.split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds must be numbers such as 10,20,30, got {' '.join(words or ())}")
    seeds = tuple(map(int, parts))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds must differ from each other, got {' '.join(words or ())}")
    return seeds


def _check(arguments: Arguments) -> None:
    models, data, generation = arguments.models, arguments.data, arguments.generation
    require(
        {
            STUDENT_FLAG: models.model_name_or_path,
            "--task": data.task,
            "--dataset_name": data.dataset_name,
            "--output_dir": arguments.output.output_dir,
        }
    )
    at_least = {
        "max_eval_samples": (data.max_eval_samples, 1),
        "min_reference_words": (data.min_reference_words, 0),
        "max_prompt_length": (data.max_prompt_length, 1),
        "max_length": (data.max_length, 2),
        "max_new_tokens": (generation.max_new_tokens, 1),
        "batch_size": (generation.batch_size, 1),
    }
    for name, (value, least) in at_least.items():
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, got {value}")
    if not 0.0 <= (generation.temperature or 0.0) < math.inf:
        raise InputError(f"--temperature must be 0 or positive, got {generation.temperature}")
    if not 0.0 < generation.top_p <= 1.0:
        raise InputError(f"--top_p must lie in (0, 1], got {generation.top_p}")
    _refuse_what_would_be_ignored(arguments)


def _refuse_what_would_be_ignored(arguments: Arguments) -> None:
    data, generation = arguments.data, arguments.generation
    if generation.generate_with_teacher and not arguments.models.teacher_model_name_or_path:
        raise InputError(f"--generate_with_teacher: there is no teacher; give {TEACHER_FLAG}")
    asked = {
        "max_new_tokens": generation.max_new_tokens,
        "temperature": generation.temperature,
        "seeds": generation.seeds,
        "generate_with_teacher": generation.generate_with_teacher,
        "max_prompt_length": data.max_prompt_length,
    }
    given = [f"--{name}" for name, value in asked.items() if value not in (None, False)]
    if not arguments.task.metrics and given:
        raise InputError(
            f"{given[0]}: task {data.task} has no prompts and generates nothing; leave it out"
        )
    languages = [
        name for name, value in asdict(Languages()).items() if _language(data, name) != value
    ]
    if data.task != "translation" and languages:
        name = languages[0] if "column" in languages[0] else f"{languages[0]}_language"
        raise InputError(f"--{name}: task {data.task} translates nothing; leave it out")
    decoding = arguments.decoding()
    if decoding.temperature == 0.0 and len(decoding.seeds) > 1:
        raise InputError(
            f"--seeds: {len(decoding.seeds)} seeds, but greedy answers do not depend on the seed; "
            "leave it out, or give --temperature 1"
        )


def _language(data: DataArguments, name: str) -> Any:
    return getattr(data, name if "column" in name else f"{name}_language")
