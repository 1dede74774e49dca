"""The scores of a trainer's student on a task."""

from typing import Any

from transformers import Trainer
from trl.models.utils import unwrap_model_for_generation

from amidmath.integrations.common.tasks.scores import TaskScores
from amidmath.integrations.torch_loop.devices.engines import reshard
from amidmath.integrations.torch_loop.devices.shares import in_order, own_rows
from amidmath.integrations.torch_loop.evaluation.task_answers import answer


def student_scores(asked: TaskScores, trainer: Trainer) -> dict[str, float]:
    """The scores of a trainer's student as it is now, in percent, by metric.

    Modes and torch's random generators are left as they were, so that training goes on as if
    nothing had been asked. All processes must call it, each answers its share of the rows, and all
    are given the scores; what is sampled, and rounding, depend on which rows make a batch.

    Args:
        asked: what the student answers.
        trainer: whose student.
    """
    args: Any = trainer.args
    mine, is_own = own_rows(len(asked.rows))
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gradient_checkpointing_kwargs=args.activation_checkpointing_kwargs,
    ) as student:
        prompts = [asked.prompts[row] for row in mine]
        how = asked.decoding(args.per_device_eval_batch_size)
        answers = answer(student, asked.tokenizer, prompts, asked.task, how)
        reshard(student)
    pairs = zip(answers.texts[0], answers.unfinished[0], strict=True)
    all_pairs = in_order([pair for pair, own in zip(pairs, is_own, strict=True) if own])
    texts, unfinished = zip(*all_pairs, strict=True)
    return asked.of(texts, unfinished)
