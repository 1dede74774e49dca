"""The settings of every loop's data policy."""

import math
from dataclasses import dataclass, field

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.kinds import POLICIES, REPLAY_RATIOS, Policy, policy
from amidmath.integrations.common.policies.replay_buffer import ReplayBuffer


@dataclass
class PolicySettings:
    """The sequences to train on: the dataset's, or generated ones."""

    policy: str = field(
        default="off_policy",
        metadata={
            "help": "Where sequences come from: the dataset's completions (off_policy), the "
            "student's (on_policy), either (mixed), DistiLLM's adaptive off-policy with a replay "
            "buffer (adaptive), the teacher's (sequence_level).",
            "choices": list(POLICIES),
        },
    )
    student_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of steps on the student's sequences; mixed (default 0.5)."},
    )
    loss_eps: float | None = field(
        default=None,
        metadata={
            "help": "How much the held-out loss must rise to raise the threshold; adaptive "
            "(default 0.1)."
        },
    )
    replay_ratio: str | None = field(
        default=None,
        metadata={
            "help": "How the share of newly generated sequences changes; adaptive (default "
            "decreasing).",
            "choices": list(REPLAY_RATIOS),
        },
    )
    init_threshold: float | None = field(
        default=None, metadata={"help": "The threshold at the start; adaptive (default 0)."}
    )
    buffer_capacity: int = field(
        default=1000,
        metadata={
            "help": "Sequences that a replay buffer holds: one for each process in torch, one for "
            "the whole run in JAX."
        },
    )
    max_new_tokens: int = field(
        default=128, metadata={"help": "Tokens to generate at most for a prompt."}
    )
    generation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of generation; 0 takes the likeliest token."}
    )
    generation_top_p: float = field(
        default=1.0, metadata={"help": "Generate from the likeliest tokens of this mass."}
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Prompts at a time; by default per_device_train_batch_size."},
    )

    def data_policy(self) -> Policy:
        """The data policy; raises InputError where settings do not fit it."""
        names = ("student_fraction", "loss_eps", "replay_ratio", "init_threshold")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return policy(self.policy, seed=int(getattr(self, "seed", 0)), **given)

    def replay_buffer(self) -> ReplayBuffer:
        """An empty replay buffer."""
        try:
            return ReplayBuffer(self.buffer_capacity)
        except InputError as error:
            raise InputError(f"--buffer_capacity: {error}") from error

    def check_generation(self) -> None:
        """Raise InputError on settings of generation that make no sense."""
        if self.max_new_tokens < 1:
            raise InputError(f"--max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 <= self.generation_temperature < math.inf:
            raise InputError(
                f"--generation_temperature must be a finite number from 0 on, "
                f"got {self.generation_temperature}"
            )
        if not 0.0 < self.generation_top_p <= 1.0:
            raise InputError(f"--generation_top_p must lie in (0, 1], got {self.generation_top_p}")
        if self.generation_batch_size is not None and self.generation_batch_size < 1:
            raise InputError(
                f"--generation_batch_size must be at least 1, got {self.generation_batch_size}"
            )
