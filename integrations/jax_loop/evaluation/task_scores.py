"""The scores of a student on a task."""

from collections.abc import Sequence

from amidmath.integrations.common.tasks.scores import TaskScores
from amidmath.integrations.jax_loop.evaluation.task_answers import answer
from amidmath.integrations.jax_loop.models.decoder import Decoder


def student_scores(
    asked: TaskScores, student: Decoder, ends: Sequence[int], batch_size: int
) -> dict[str, float]:
    """The scores of a student as it is now, in percent, by metric.

    The sampling has a key of its own, so that training goes on as if nothing had been asked. All
    processes must call it, and all are given the scores.

    Args:
        asked: what the student answers.
        student: who answers.
        ends: which tokens end an answer.
        batch_size: prompts at a time.
    """
    how = asked.decoding(batch_size)
    answers = answer(student, asked.tokenizer, ends, asked.prompts, asked.task, how)
    return asked.of(answers.texts[0], answers.unfinished[0])
