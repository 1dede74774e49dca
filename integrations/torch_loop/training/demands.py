"""The demands of a run on its models, tried out before anything is written."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from amidmath.integrations.common.policies.base import Policy, Source
from amidmath.integrations.torch_loop.models.states import expose_states
from amidmath.integrations.torch_loop.models.trials import (
    answers_together,
    check_adapter,
    check_causal,
    check_packing,
    check_padded,
)
from amidmath.integrations.torch_loop.settings.config import AMiDConfig


@dataclass(frozen=True)
class Demands:
    """A run's demands.

    Args:
        joined_by: the flag by which several rows make one sequence; None where they do not.
        pads: rows of a batch are filled up to one length.
        answering: the roles of the models that generate.
    """

    joined_by: str | None
    pads: bool
    answering: frozenset[str]

    @classmethod
    def of(cls, args: AMiDConfig, policy: Policy, *, joined: bool, scored: bool) -> "Demands":
        """Those of a configuration.

        Args:
            args: the configuration.
            policy: the data policy.
            joined: the collator joins the rows of a batch.
            scored: the student's answers on a task are scored.
        """
        asked_by = "--packing" if args.packing else "--padding_free"
        rows = max(args.per_device_train_batch_size, args.per_device_eval_batch_size)
        sources = {"student": {Source.STUDENT, Source.BUFFER}, "teacher": {Source.TEACHER}}
        answering = {role for role, of in sources.items() if of & policy.sources}
        return cls(
            asked_by if joined else None,
            rows > 1,
            frozenset(answering | ({"student"} if scored else set())),
        )

    def check(self, role: str, model: PreTrainedModel) -> None:
        """Raise InputError where a model, its states exposed, cannot do what is demanded."""
        check_causal(role, model)
        if self.joined_by is not None:
            check_packing(role, model, self.joined_by)
        elif self.pads:
            check_padded(role, model)
        if role in self.answering:
            answers_together(model)

    def check_student(self, model: Any) -> None:
        """Expose a student's states, and check it and its adapter, if it has one."""
        adapted = hasattr(model, "get_base_model")
        inner = model.get_base_model() if adapted else model
        expose_states(inner)
        if adapted:
            check_adapter(model)
        self.check("student", inner)
