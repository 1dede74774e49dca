"""A quiet start: what the libraries log and warn of goes to a file of the run folder."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub.utils.tqdm import enable_progress_bars as with_download_bars
from transformers.utils import logging as transformers_logging

LOG = "log.txt"
VERBOSE_HELP = (
    "Show the libraries' own messages, warnings and progress bars. Without it, a run or an "
    "evaluation keeps the first two in log.txt."
)

# Their loggers print to the terminal by handlers of their own.
_LIBRARIES = (
    *("transformers", "datasets", "trl", "accelerate", "peft", "huggingface_hub", "torch"),
    *("jax", "absl", "orbax", "flax"),
)
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LibraryLog(logging.Handler):
    """Keeps records until there is a folder for them, and writes them to its ``log.txt``.

    Attributes:
        count: how many messages were written to the file.
    """

    def __init__(self) -> None:
        """Start with no folder."""
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self.kept: list[str] = []
        self.path: Path | None = None
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep or write a record."""
        try:
            self.kept.append(self.format(record).rstrip())
            self._write()
        except (OSError, ValueError, TypeError):  # a full disk must not end a run by its log
            self.handleError(record)

    def into(self, folder: Path, process: int = 0) -> None:
        """Write to a folder from now on, what was kept first; each process its own file."""
        self.path = folder / (LOG if process == 0 else f"log-{process}.txt")
        self._write()

    def describe(self) -> str:
        """Where messages are, for people; "" where there are none."""
        if not self.count:
            return ""
        messages = "1 message" if self.count == 1 else f"{self.count} messages"
        return f"{messages} of the libraries in {self.path}"

    def _write(self) -> None:
        if self.path is None or not self.kept:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self.kept)
        self.count += len(self.kept)
        self.kept = []


@contextmanager
def quiet(argv: Sequence[str] | None = None) -> Iterator[LibraryLog]:
    """Keep the terminal to our own lines; as it was afterwards.

    Args:
        argv: the words of the command line; with ``--verbose`` nothing changes. None for those of
            the process.
    """
    log = LibraryLog()
    if is_verbose(sys.argv[1:] if argv is None else argv):
        yield log
        return
    loggers = [logging.getLogger(name) for name in ("", *_LIBRARIES)]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    shown = warnings.showwarning
    for logger in loggers:
        logger.handlers = []
        logger.propagate = True
    loggers[0].addHandler(log)
    logging.captureWarnings(True)
    enable = _without_bars()
    try:
        yield log
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = shown
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        enable()


def is_verbose(words: Sequence[str]) -> bool:
    """Whether a command line asks for the libraries' messages; of several, the last one counts."""
    found = False
    for at, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "--verbose":
            following = words[at + 1] if at + 1 < len(words) else ""
            found = (value or following).lower() not in ("false", "no", "0", "f", "n")
    return found


def _without_bars() -> Callable[[], None]:
    """Switch the libraries' bars off but for downloads; gives what switches them on again."""
    had_datasets, had_others = (
        not datasets.are_progress_bars_disabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    with_download_bars()

    def restore() -> None:
        if had_datasets:
            datasets.enable_progress_bars()
        if had_others:
            transformers_logging.enable_progress_bar()

    return restore
