"""The settings of every loop's held-out rows."""

from dataclasses import dataclass, field

from amidmath.integrations.common.errors import InputError


@dataclass
class HeldOutSettings:
    """On what a run is judged, and beside what."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out dataset: hub name, folder or file. Without it, the dataset's "
            "`dataset_test_split`, or else `eval_fraction` of the training rows is held out."
        },
    )
    eval_fraction: float = field(
        default=0.05,
        metadata={"help": "Share of rows held out when the dataset brings no held-out split."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on the first so many held-out rows (after packing) only."},
    )
    baseline: bool = field(
        default=False,
        metadata={
            "help": "Also train a student with plain cross-entropy on the same data, steps and "
            "seed, and report it beside the distilled one."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Say what would be trained and how much memory it would take, and stop before "
            "the first step; nothing is written."
        },
    )

    def check_held_out(self) -> None:
        """Raise InputError on values out of range."""
        if not 0.0 < self.eval_fraction < 1.0:
            raise InputError(
                f"--eval_fraction must lie between 0 and 1, both excluded, got {self.eval_fraction}"
            )
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise InputError(f"--max_eval_samples must be at least 1, got {self.max_eval_samples}")
