"""Errors that say: something you gave does not fit, and here is what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """An argument, model or dataset that cannot be used; the message says what would be right."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what happened, what is kept, and what may help."""


def not_finite(step: int, norm: float) -> TrainingError:
    """The error for a step that is not made, its gradient's norm being infinite or NaN.

    Args:
        step: the step, counted from 1.
        norm: of its gradient.
    """
    return TrainingError(
        f"step {step}: the gradient's norm is {norm}, so the step was not made and nothing was "
        f"saved of it; the student is that of step {step - 1}. A lower --learning_rate, or an "
        "--alpha below 1 (whose assistant covers all tokens that teacher or student do), helps "
        "against it; earlier checkpoints are kept"
    )


class UnfitRow(Exception):  # noqa: N818
    """A row that cannot be used, and why; what knows its number and its place adds them."""


def first_paragraph(error: BaseException) -> str:
    """The first lines of a library's message, on one line, without what follows a blank one."""
    text = str(error).strip().split("\n\n")[0]
    return " ".join(text.split()) or type(error).__name__


# What libraries raise of arguments, models and rows that they did not expect.
_UNFIT = (
    *(ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError),
    *(ArithmeticError, AttributeError, AssertionError),
)


@contextmanager
def while_preparing() -> Iterator[None]:
    """Turn what the libraries say of unfit arguments, models or rows into an InputError.

    For the part of a run before anything is written; from there on an error is a failure of the
    run and keeps its traceback.
    """
    try:
        yield
    except InputError:
        raise
    except TrainingError as error:  # nothing has begun that could be kept
        raise InputError(str(error)) from error
    except _UNFIT as error:
        raise InputError(f"{type(error).__name__}: {first_paragraph(error)}") from error
