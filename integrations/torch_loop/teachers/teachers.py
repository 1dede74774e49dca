"""Teachers of a batch: a model in memory, or the student without its adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from transformers import PreTrainedModel

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.recipe.supports import check_finite
from amidmath.integrations.common.text.vocabularies import compared_first
from amidmath.integrations.torch_loop.devices.engines import reshard
from amidmath.integrations.torch_loop.models.model_files import logits_of_model
from amidmath.integrations.torch_loop.models.states import States, expose_states
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher

T = TypeVar("T")


@dataclass(frozen=True)
class BaseStates:
    """Hidden states of a student's base model, whose head is the student's ``base_head``."""

    hidden: torch.Tensor

    def beside(self, student: States) -> States:
        """The states with their head, which the student knows."""
        if student.base_head is None:
            raise ValueError("student must have a base_head, got whole logits")
        return States(am.Hidden(self.hidden, student.base_head), student.base_head)


Reference = States | BaseStates | am.TopK
"""A teacher's word on a batch: hidden states with a head, or its most probable tokens."""


class Teacher(Protocol):
    """Gives what the loss compares a student with.

    Attributes:
        knows_new_rows: it can judge sequences that are not of the dataset.
    """

    knows_new_rows: bool

    @property
    def model(self) -> torch.nn.Module | None:
        """A causal language model that gives its logits; None if it is not in memory."""
        ...

    def give(self, batch: dict[str, Any], then: Callable[[Reference], T]) -> T:
        """``then`` of the reference for a batch.

        Called while the teacher's parameters are whole, which engines that keep them in parts
        (FSDP, ZeRO-3) grant during its forward pass only.

        Args:
            batch: what a model takes, without labels; further entries are for teachers that need
                them ("row", the numbers of the rows, for a cache).
            then: what to do with the reference.
        """
        ...

    def describe(self) -> str:
        """The teacher in one line."""
        ...


class ModelTeacher:
    """A frozen model in memory; wrapped by an engine or not.

    Args:
        model: as the engine gives it back, its states exposed.
        name: for people.
    """

    knows_new_rows = True

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        self.model: torch.nn.Module = model
        self.name = name

    def give(self, batch: dict[str, Any], then: Callable[[Reference], T]) -> T:
        """See :class:`Teacher`."""
        with_gradient = torch.is_grad_enabled()
        results: list[T] = []

        def go_on(states: States) -> None:
            with torch.set_grad_enabled(with_gradient):
                results.append(then(states))

        # Not as the model's output, whose gradients an engine may cut off, it being without any.
        with torch.no_grad():
            self.model(**batch, with_states=go_on)
        reshard(self.model)
        return results[0]

    def describe(self) -> str:
        """Its name."""
        return self.name


class AdapterBaseTeacher:
    """The student's own base model: the student with its adapter switched off.

    It costs no memory: teacher and student share all weights but the adapter's.

    Args:
        student: gives the student as the engine wraps it.
        adapter_model: the student as a PEFT model.

    Raises:
        InputError: the student has no adapter.
    """

    knows_new_rows = True

    def __init__(self, student: Callable[[], torch.nn.Module], adapter_model: Any) -> None:
        if not hasattr(adapter_model, "disable_adapter"):
            raise InputError(
                "--teacher_is_base: the student has no adapter whose base could teach it; add "
                "--use_peft, or name a teacher with --teacher_model_name_or_path"
            )
        self.student, self.adapter_model = student, adapter_model
        self.model: torch.nn.Module = _AdapterOff(adapter_model)

    def give(self, batch: dict[str, Any], then: Callable[[Reference], T]) -> T:
        """See :class:`Teacher`; ``then`` runs with the adapter on again."""
        model = self.student()
        was_training = model.training
        model.eval()  # dropout would make the teacher random
        with torch.no_grad(), self.adapter_model.disable_adapter():
            hidden: torch.Tensor = model(**batch, with_states=lambda states: states.hidden)
        model.train(was_training)
        return then(BaseStates(hidden))

    def describe(self) -> str:
        """The teacher in one line."""
        return "the student's base model (its adapter off)"


def compared_with(teacher: Teacher, ours: int, vocab: str, recipe: Recipe) -> int | None:
    """Over how many first tokens the loss is where others are left out; None where none are.

    Args:
        teacher: what a student learns from.
        ours: how many logits the student has.
        vocab: as ``--vocab`` has it.
        recipe: the loss.

    Raises:
        InputError: the loss would be infinite whatever the student learns.
    """
    if isinstance(teacher, CachedTeacher):
        return teacher.rows.tokens
    if not isinstance(teacher, ModelTeacher):
        return None
    theirs = logits_of_model(teacher.model)
    check_finite(recipe, vocab, ours, theirs)
    return compared_first(vocab, ours, theirs)


class _AdapterOff(torch.nn.Module):
    """A PEFT model as its base model."""

    def __init__(self, adapter_model: Any) -> None:
        super().__init__()
        self.adapter_model = adapter_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's."""
        with self.adapter_model.disable_adapter():
            return self.adapter_model(*args, **kwargs)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, with no parameter that trains, its states exposed."""
    model.eval()
    model.requires_grad_(False)
    expose_states(model)
    return model
