"""The processes that a launcher has started, and what they agree on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from amidmath.integrations.common.errors import InputError

T = TypeVar("T")


def main_console() -> Console:
    """A console that prints on the main process only."""
    return Console(quiet=not PartialState().is_main_process)


def on_main_process(work: Callable[[], T]) -> T:
    """The result of ``work`` on the main process, on every process; its InputError too.

    For what all processes must agree on while one of them may change the files.
    """
    state = PartialState()
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = work()
        except InputError as error:
            answer[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return cast("T", answer[0])


class Launched:
    """The processes that accelerate has launched, for a distillation and for a cache."""

    @property
    def index(self) -> int:
        """Of this process; 0 is the main one's."""
        return int(PartialState().process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(PartialState().num_processes)

    def together(self) -> AbstractContextManager[None]:
        """A block that any process may end; the launcher then ends the others."""
        return nullcontext()

    def agreed(self, work: Callable[[], T]) -> T:
        """The finding of ``work`` on the main process, on every process; its InputError too."""
        return on_main_process(work)

    def on_main(self, work: Callable[[], T]) -> T:
        """Work of the main process, for which the others wait; they have its result too."""
        return on_main_process(work)

    def wait(self) -> None:
        """Until all are here."""
        PartialState().wait_for_everyone()
