"""An evaluation from its arguments to its results, whatever library computes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.cli.memory import TASK, within_memory
from amidmath.integrations.common.errors import InputError, while_preparing
from amidmath.integrations.common.evaluation.arguments import Arguments
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.evaluation.report import (
    STUDENT,
    TEACHER,
    Outcome,
    claim,
    print_header,
    print_table,
    write,
)
from amidmath.integrations.common.rows.token_range import check_prompts
from amidmath.integrations.common.tasks.answers import Answers, Decoding, TaskResult
from amidmath.integrations.common.tasks.prompts import HeldOut, encode_prompts, held_out
from amidmath.integrations.common.tasks.reading import read_rows
from amidmath.integrations.common.tasks.tasks import Task
from amidmath.integrations.common.text.tokenizers import check_lengths, load_tokenizer
from amidmath.integrations.common.text.vocabularies import compare_vocabularies, compared_in_words

bar = partial(tqdm, leave=False, dynamic_ncols=True)
"""A progress bar that goes when it is done."""


@dataclass(frozen=True)
class Named:
    """A model as the arguments name it.

    Args:
        flag: the argument.
        name: hub name or folder.
        revision: branch, tag or commit on the hub.
    """

    flag: str
    name: str
    revision: str


class Models(Protocol):
    """The student, and the teacher if there is one, by role.

    Attributes:
        contexts: how many tokens each can read; None for any number.
        vocabularies: over how many tokens each has logits.
        device: what computes, and in which type.
    """

    @property
    def contexts(self) -> Mapping[str, int | None]: ...  # noqa: D102
    @property
    def vocabularies(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102

    def judge(self, texts: HeldOut, batch_size: int, vocab: str) -> Mapping[str, Quality]:
        """Figures of each model on held-out text.

        Without a teacher, the student's perplexity is all that counts.

        Args:
            texts: the text.
            batch_size: rows at a time.
            vocab: how vocabularies that differ are compared.
        """
        ...

    def answer(
        self,
        role: str,
        prompts: Sequence[Sequence[int]],
        task: Task,
        how: Decoding,
        on_batch: Callable[[int], object],
    ) -> Answers:
        """A model's answers.

        Args:
            role: of the model.
            prompts: token ids.
            task: where an answer ends.
            how: how to answer.
            on_batch: called after each batch with its number of prompts.
        """
        ...


Load = Callable[[Mapping[str, Named], PreTrainedTokenizerBase, str | None], Models]
"""Loads models, by role, that share a tokenizer; with ``--dtype`` as it was given."""


def run(arguments: Arguments, console: Console, load: Load, libraries: Sequence[str]) -> Path:
    """Run a whole evaluation; gives the folder of the results.

    Args:
        arguments: what was asked for.
        console: for people.
        load: loads the models.
        libraries: whose versions the results say.

    Raises:
        InputError: something given does not fit; nothing has been written then.
    """
    data = arguments.data
    with while_preparing():
        claim(arguments)
        console.print("Reading the data and loading the models")
        rows = read_rows(
            str(data.dataset_name),
            arguments.task,
            languages=arguments.languages(),
            min_reference_words=data.min_reference_words,
            limit=data.max_eval_samples,
            split=data.dataset_split,
            config_name=data.dataset_config,
        )
        tokenizer, models = _loaded(arguments, load, console)
        prompts = encode_prompts(
            tokenizer, rows.rows, style=data.prompt_style, max_length=data.max_prompt_length
        )
        longest = _max_length(data.max_length, models.contexts)
        texts = held_out(tokenizer, rows.rows, prompts, max_length=longest)
        for ids in (prompts.ids, texts.input_ids):
            numbers = [row.number for row in rows.rows]
            check_prompts(ids, numbers, models.vocabularies, tokenizer)
        for role in _who_answers(arguments):
            check_lengths(
                models.contexts[role],
                [len(prompt) for prompt in prompts.ids],
                arguments.decoding().max_new_tokens,
                [row.number for row in rows.rows],
            )
    if prompts.deaf:
        console.print(
            f"{prompts.deaf} of {len(rows.rows)} prompts have tools that are not written into them",
            highlight=False,
        )
    print_header(console, arguments, rows, prompts, texts, models.device)
    with within_memory("evaluating", TASK):
        judged = models.judge(texts, arguments.generation.batch_size, arguments.models.vocab)
    figures = {role: judged[role] for role in (STUDENT, TEACHER) if role in judged}
    answers: dict[str, TaskResult] = {}
    for role in _who_answers(arguments):
        how = arguments.decoding()
        total = len(rows.rows) * len(how.seeds)
        with (
            within_memory("generating", TASK),
            bar(desc=f"answers of the {role}", total=total, unit="row") as shown,
        ):
            found = models.answer(role, prompts.ids, arguments.task, how, shown.update)
        of_teacher = answers[TEACHER].answers if TEACHER in answers else None
        answers[role] = TaskResult.of(found, rows.rows, arguments.task, of_teacher)
    outcome = Outcome(figures, answers)
    write(arguments, rows, prompts, texts, outcome, libraries)
    print_table(console, outcome)
    console.print(f"Results and predictions are in {arguments.folder}/", highlight=False)
    return arguments.folder


def _loaded(
    arguments: Arguments, load: Load, console: Console
) -> tuple[PreTrainedTokenizerBase, Models]:
    """The student's tokenizer and the models, found to fit together."""
    given = arguments.models
    named = {STUDENT: Named(STUDENT_FLAG, str(given.model_name_or_path), given.model_revision)}
    if given.teacher_model_name_or_path:
        named[TEACHER] = Named(
            TEACHER_FLAG, given.teacher_model_name_or_path, given.teacher_model_revision
        )
    tokenizers = {
        role: load_tokenizer(of.flag, of.name, revision=of.revision) for role, of in named.items()
    }
    models = load(named, tokenizers[STUDENT], given.dtype)
    if TEACHER in named:
        ours, theirs = (tokenizers[role].get_vocab() for role in (STUDENT, TEACHER))
        sizes = (models.vocabularies[STUDENT], models.vocabularies[TEACHER])
        compare_vocabularies(ours, theirs, *sizes, given.vocab)
        compared = compared_in_words(*sizes, given.vocab)
        if compared:
            console.print(f"KL and agreement are{compared[1:]}", highlight=False)
    return tokenizers[STUDENT], models


def _max_length(given: int | None, contexts: Mapping[str, int | None]) -> int | None:
    """The longest sequence to judge: as given, or else the shortest context."""
    known = {role: context for role, context in contexts.items() if context}
    for role, context in known.items():
        if given is not None and given > context:
            raise InputError(
                f"--max_length {given} is longer than the {role}'s context of {context} tokens: "
                f"set --max_length {context} or less"
            )
    return min(known.values(), default=None) if given is None else given


def _who_answers(arguments: Arguments) -> list[str]:
    """Whose answers are generated, the teacher's first: the student's are compared with them."""
    if not arguments.task.metrics:
        return []
    return [TEACHER, STUDENT] if arguments.generation.generate_with_teacher else [STUDENT]
