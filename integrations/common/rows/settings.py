"""Settings of rows of token ids, under the names of TRL's SFTConfig."""

from abc import abstractmethod
from typing import Protocol

STRATEGIES = ("bfd", "wrapped")
"""Ways to pack rows: whole ones, by best-fit decreasing; or one stream, cut anywhere."""


class RowSettings(Protocol):
    """Settings of rows, under the names of TRL's SFTConfig.

    Attributes:
        packing: whether several rows are put into one of ``max_length``.
        packing_strategy: one of ``STRATEGIES``.
        completion_only_loss: whether prompts are not learned; None for not, where there are some.
        assistant_only_loss: whether of conversations only what the assistant says is learned.
        dataset_text_field: the column of rows that are text only.
        dataset_num_proc: how many processes tokenise.
        drop_unlearnable_rows: whether rows without a token to learn, or that the chat template
            refuses, are left out, and no error.
    """

    packing: bool
    packing_strategy: str
    completion_only_loss: bool | None
    assistant_only_loss: bool
    dataset_text_field: str
    dataset_num_proc: int | None
    drop_unlearnable_rows: bool

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """How many tokens a row may have; None for any number."""
