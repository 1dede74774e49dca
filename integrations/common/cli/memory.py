"""Memory that does not suffice: one line that says while what, and what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from amidmath.integrations.common.errors import TrainingError

# What torch (CUDA's, the CPU's), XLA and NumPy say; each has error classes of its own.
_SAID = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "resource_exhausted",
    "unable to allocate",
)

TRAINING = (
    "--per_device_train_batch_size (with as many more --gradient_accumulation_steps)",
    "--max_length",
)
EVALUATION = ("--per_device_eval_batch_size", "--max_length")
GENERATION = ("--generation_batch_size", "--max_new_tokens")
TASK = ("--batch_size", "--max_length", "--max_new_tokens")
LOADING = ("the sizes of the models, or their types (--dtype, --teacher_dtype)",)


class OutOfMemoryError(TrainingError):
    """Memory did not suffice; the message says while what, and what to lower."""


@contextmanager
def within_memory(work: str, lower: tuple[str, ...]) -> Iterator[None]:
    """Turn an allocator's error into one that says what to lower.

    Args:
        work: what is done, as in "out of memory while …".
        lower: the flags, the most effective first.

    Raises:
        OutOfMemoryError: memory did not suffice; the innermost of several says so.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while {work}: lower {' or '.join(lower)}; --dry_run says what a run "
            f"takes ({_first_sentence(error)})"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _SAID)


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0][:200]
