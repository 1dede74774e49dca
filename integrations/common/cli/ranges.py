"""Bounds of the numbers of the command line, in either loop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from amidmath.integrations.common.errors import InputError


@dataclass(frozen=True)
class Range:
    """The bounds of a number.

    Args:
        least: the smallest.
        most: the largest.
        without_least: the smallest itself is not one.
        without_most: the largest itself is not one.
        beside: a value that means something else, such as -1 for no limit.
    """

    least: float
    most: float = math.inf
    without_least: bool = False
    without_most: bool = True
    beside: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value lies in it; infinity and NaN never do."""
        if value == self.beside:
            return True
        above = value > self.least if self.without_least else value >= self.least
        below = value < self.most if self.without_most else value <= self.most
        return above and below

    def describe(self) -> str:
        """In words, after "must"."""
        if self.most < math.inf:
            ends = "(" if self.without_least else "[", ")" if self.without_most else "]"
            return f"lie in {ends[0]}{self.least:g}, {self.most:g}{ends[1]}"
        if self.least == -math.inf:
            return "be finite"
        return "be positive" if self.without_least else f"be at least {self.least:g}"


COUNT = Range(1)
"""The bounds of a count."""

SHARE = Range(0, 1)
"""A share that is not all."""

# More of them would take the machine's memory before anything else is said.
_PROCESSES = 1024

# What may be infinite: alpha is then the larger or the smaller probability.
_MAY_BE_INFINITE = ("alpha",)

STEPS_TO_LOOK_AT = 1000
"""The length of a run up to which its learning rate must not be 0 at every step."""

_NUMBER, _POSITIVE = Range(0), Range(0, without_least=True)
# Every so many steps; in torch, below 1 a share of all steps.
_EVERY = _POSITIVE

RANGES: dict[str, Range] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "torch_empty_cache_steps"), COUNT),
    **dict.fromkeys(("save_total_limit", "eval_accumulation_steps"), COUNT),
    **dict.fromkeys(("dataloader_prefetch_factor", "pad_to_multiple_of", "ddp_timeout"), COUNT),
    **dict.fromkeys(("lora_r", "generation_batch_size", "ddp_bucket_cap_mb"), COUNT),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _EVERY),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), _NUMBER),
    "eval_delay": _NUMBER,
    "dataset_num_proc": Range(1, _PROCESSES, without_most=False),
    "dataloader_num_workers": Range(0, _PROCESSES, without_most=False),
    **dict.fromkeys(("adam_epsilon", "neftune_noise_alpha", "lora_alpha"), _POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), SHARE),
    "max_length": Range(2),
    "seed": Range(0, 2**32),
    "data_seed": Range(0, 2**32),
    "num_train_epochs": Range(-math.inf, without_least=True),
}


def check_ranges(settings: Any, ranges: Mapping[str, Range] = RANGES) -> None:
    """Raise InputError on the first number that is out of its range.

    Args:
        settings: a dataclass of arguments; those that it lacks, and None, are not looked at.
        ranges: by argument.
    """
    for name, allowed in ranges.items():
        value = getattr(settings, name, None)
        if isinstance(value, int | float) and not allowed.holds(value):
            ends = allowed.least > -math.inf and allowed.most == math.inf
            finite = " and finite" if ends and isinstance(value, float) else ""
            raise InputError(f"--{name} must {allowed.describe()}{finite}, got {value}")


def check_finite(settings: Any) -> None:
    """Raise InputError on a number that is NaN or, with few exceptions, infinite.

    Args:
        settings: a dataclass of arguments.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if not isinstance(value, float) or math.isfinite(value):
            continue
        if math.isnan(value) or each.name not in _MAY_BE_INFINITE:
            raise InputError(f"--{each.name} must be finite, got {value}")


def untrained(settings: Any, total: int) -> str:
    """The message of a run whose learning rate is 0 at every step."""
    if settings.learning_rate == 0.0:
        return "--learning_rate 0 trains nothing; give a positive one"
    return (
        f"--warmup_steps {settings.warmup_steps:g}: the learning rate is 0 at each of the {total} "
        "steps, which train nothing; give fewer of them, or more --max_steps"
    )
