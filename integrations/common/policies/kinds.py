"""Data policies by name: where the sequences of an optimiser step come from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.base import DrawnPolicy
from amidmath.integrations.common.policies.base import Policy as Policy
from amidmath.integrations.common.policies.base import Source as Source
from amidmath.integrations.common.policies.replay_buffer import ReplayBuffer

REPLAY_RATIOS = ("decreasing", "constant", "increasing")


@dataclass
class OffPolicy(Policy):
    """The dataset's own completions."""

    name: ClassVar[str] = "off_policy"
    sources: ClassVar[frozenset[Source]] = frozenset({Source.DATASET})

    def choose(self, step: int, total: int, buffer: ReplayBuffer) -> Source:
        """The dataset, always."""
        return Source.DATASET

    def describe(self) -> str:
        """The policy in words."""
        return "off-policy: the completions of the dataset"


@dataclass
class OnPolicy(Policy):
    """Sequences that the student generates at that step."""

    name: ClassVar[str] = "on_policy"
    sources: ClassVar[frozenset[Source]] = frozenset({Source.STUDENT})

    def choose(self, step: int, total: int, buffer: ReplayBuffer) -> Source:
        """The student, always."""
        return Source.STUDENT

    def describe(self) -> str:
        """The policy in words."""
        return "on-policy: completions that the student generates"


@dataclass
class SequenceLevel(Policy):
    """Sequences that the teacher generates (sequence-level distillation, Kim and Rush, 2016)."""

    name: ClassVar[str] = "sequence_level"
    sources: ClassVar[frozenset[Source]] = frozenset({Source.TEACHER})

    def choose(self, step: int, total: int, buffer: ReplayBuffer) -> Source:
        """The teacher, always."""
        return Source.TEACHER

    def describe(self) -> str:
        """The policy in words."""
        return "sequence-level: completions that the teacher generates"


@dataclass
class Mixed(DrawnPolicy):
    """A fraction of the steps on what the student generates, the others on the dataset (GKD's λ).

    TRL's GKDTrainer calls the fraction ``lmbda``.
    """

    name: ClassVar[str] = "mixed"
    sources: ClassVar[frozenset[Source]] = frozenset({Source.DATASET, Source.STUDENT})

    student_fraction: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        _check_unit("--student_fraction", self.student_fraction)

    def choose(self, step: int, total: int, buffer: ReplayBuffer) -> Source:
        """The student with probability ``student_fraction``."""
        return Source.STUDENT if self._rng.random() < self.student_fraction else Source.DATASET

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self.check_state(state, "generator")
        self.restore_generator(state["generator"])

    def describe(self) -> str:
        """The policy in words."""
        return (
            f"mixed: a fraction {self.student_fraction:g} of the steps on completions that the "
            "student generates, the others on the dataset"
        )


@dataclass
class Adaptive(DrawnPolicy):
    """DistiLLM's adaptive off-policy training with a replay buffer (Ko et al., 2024).

    A threshold θ grows by 0.1, up to 1, at each evaluation whose loss is at least ``loss_eps``
    above the reference; only then does that loss become the reference. Step n of N, counted
    from 1 as in the authors' code, draws u from U(0, 1) and takes

        what the student generates now   if u < τ, or if u < θ and the buffer is not full,
        the buffer                       else if u < θ,
        the dataset                      else,

    with τ = θ (1 - n/N), θ/2 or θ n/N for a ``replay_ratio`` that is decreasing, constant or
    increasing. (The authors raise n one micro-batch early when gradients are accumulated.) An
    evaluation that is not finite is left out. The buffer's capacity must be at least what a step
    samples from it: only a full one is ever sampled.
    """

    name: ClassVar[str] = "adaptive"
    sources: ClassVar[frozenset[Source]] = frozenset(
        {Source.DATASET, Source.STUDENT, Source.BUFFER}
    )

    loss_eps: float = 0.1
    replay_ratio: str = "decreasing"
    init_threshold: float = 0.0
    _threshold: float = field(init=False, repr=False)
    _reference: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 0.0 <= self.loss_eps < math.inf:
            raise InputError(f"--loss_eps must be a finite number from 0 on, got {self.loss_eps}")
        if self.replay_ratio not in REPLAY_RATIOS:
            raise InputError(
                f"--replay_ratio must be one of {', '.join(REPLAY_RATIOS)}, "
                f"got {self.replay_ratio!r}"
            )
        _check_unit("--init_threshold", self.init_threshold)
        self._threshold = self.init_threshold

    @property
    def threshold(self) -> float:
        """θ, the probability of a step on what the student generated, now or before."""
        return self._threshold

    def choose(self, step: int, total: int, buffer: ReplayBuffer) -> Source:
        """Draw from student, buffer and dataset as above."""
        threshold = self._threshold
        if self.replay_ratio == "decreasing":
            fresh = threshold * (1.0 - (step + 1) / total)
        elif self.replay_ratio == "constant":
            fresh = threshold * 0.5
        else:
            fresh = threshold * (step + 1) / total
        drawn = self._rng.random()
        if drawn < fresh or (drawn < threshold and not buffer.full):
            return Source.STUDENT
        return Source.BUFFER if drawn < threshold else Source.DATASET

    def observe_evaluation(self, value: float) -> None:
        """Raise θ if the held-out loss rose by ``loss_eps``; the first one is the reference."""
        if not math.isfinite(value):
            return
        if self._reference is None:
            self._reference = float(value)
        elif value >= self._reference + self.loss_eps:
            self._threshold = min(self._threshold + 0.1, 1.0)
            self._reference = float(value)

    def state(self) -> dict[str, Any]:
        """θ, the reference and the random state."""
        return {**super().state(), "threshold": self._threshold, "reference": self._reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self.check_state(state, "generator", "threshold", "reference")
        threshold, reference = state["threshold"], state["reference"]
        if not (_is_number(threshold) and 0.0 <= threshold <= 1.0):
            raise self.damaged(f"threshold must lie in [0, 1], got {threshold!r}")
        if not (reference is None or _is_number(reference)):
            raise self.damaged(f"reference must be a number or null, got {reference!r}")
        self.restore_generator(state["generator"])
        self._threshold, self._reference = threshold, reference

    def describe(self) -> str:
        """The policy in words."""
        return (
            f"adaptive off-policy: threshold from {self.init_threshold:g}, raised by 0.1 when the "
            f"held-out loss rises by {self.loss_eps:g}, {self.replay_ratio} share of newly "
            "generated completions, the others from the replay buffer"
        )


POLICIES: dict[str, type[Policy]] = {
    kind.name: kind for kind in (OffPolicy, OnPolicy, Mixed, Adaptive, SequenceLevel)
}


def policy(name: str, *, seed: int = 0, **settings: Any) -> Policy:
    """The policy that the flags ask for.

    Args:
        name: One of ``POLICIES``.
        seed: Of its random draws, the same on all processes; policies without draws need none.
        settings: Its own settings, by the names of their flags.

    Raises:
        InputError: no such policy, a setting that it does not have, or one out of range.
    """
    if name not in POLICIES:
        raise InputError(f"--policy must be one of {', '.join(POLICIES)}, got {name!r}")
    kind = POLICIES[name]
    known = {entry.name for entry in fields(kind) if entry.init}  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            own = ", ".join(f"--{entry}" for entry in sorted(known - {"seed"}))
            raise InputError(
                f"--{setting} has no effect with --policy {name}; leave it out"
                + (f" (it has {own})" if own else "")
            )
    return kind(**settings, **({"seed": seed} if "seed" in known else {}))


def _check_unit(flag: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{flag} must lie in [0, 1], got {value}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
