"""Settings by which tests make rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What rows are made by; the first ones are SFTConfig's too."""

    max_length: int | None = 1024
    packing: bool = False
    packing_strategy: str = "bfd"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    dataset_text_field: str = "text"
    dataset_num_proc: int | None = None
    drop_unlearnable_rows: bool = False
