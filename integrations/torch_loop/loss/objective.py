"""The loss of a batch from what teacher and student say of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

import amidmath as am
from amidmath.integrations.common.recipe.measures import (
    KL_TO_TEACHER,
    SAMPLE,
    TOTAL_VARIATION,
    to_reference,
)
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.rows.marks import STUDENT_ROWS
from amidmath.integrations.common.text.vocabularies import measured_first
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.whole_logits import compare_logits
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.teachers.teachers import BaseStates, Reference


def recipe_loss(
    recipe: Recipe,
    step: int,
    total: int,
    student: States,
    reference: Reference,
    batch: Batch,
) -> torch.Tensor:
    """The batch's loss by a recipe at optimiser step ``step`` of ``total``."""
    overlap = overlaps(student, reference, batch) if recipe.schedules.per_token else None
    return total_loss(recipe.losses(step, total, overlap), student, reference, batch)


def total_loss(
    losses: Mapping[str, am.Loss], student: States, reference: Reference, batch: Batch
) -> torch.Tensor:
    """The batch's loss, a scalar, under autograd.

    Args:
        losses: ``{"any": loss}``, or one for the rows of each source, of which this is the sum.
        student: the student's states.
        reference: the teacher's.
        batch: the rest.
    """
    if "any" in losses:
        return compare(losses["any"], student, reference, batch.mask, batch)
    if batch.source is None:
        raise ValueError(f"the losses {sorted(losses)} need a batch with a source for every row")
    by_student = (batch.source == STUDENT_ROWS)[:, None]
    parts = {"teacher": batch.mask & ~by_student, "student": batch.mask & by_student}
    count = batch.mask.sum().clamp(min=1) if batch.denominator is None else batch.denominator
    total = student.hidden.new_zeros((), dtype=torch.float32)
    for name, mask in parts.items():
        whole = replace(batch, denominator=count)
        total = total + compare(losses[name], student, reference, mask, whole)
    return total


def compare(
    loss: am.Loss,
    student: States,
    reference: Reference,
    mask: torch.Tensor,
    batch: Batch,
    reduction: str = "mean",
) -> torch.Tensor:
    """One loss over the positions of a mask."""
    if isinstance(reference, BaseStates):
        reference = reference.beside(student)
    if student.head is None or (isinstance(reference, States) and reference.head is None):
        return compare_logits(
            loss,
            student.first(batch.tokens).logits,
            reference.first(batch.tokens).logits if isinstance(reference, States) else reference,
            mask,
            batch,
            reduction,
        )
    labels: dict[str, Any] = {"labels": batch.targets, "label_weight": batch.label_weight}
    value: torch.Tensor = loss(
        student.first(batch.tokens).output,
        _teacher(reference, batch),
        mask=mask,
        reduction=reduction,
        denominator=batch.denominator if reduction == "mean" else None,
        **(labels if batch.label_weight else {}),
    )
    return value


def _teacher(reference: States | am.TopK, batch: Batch) -> am.Hidden | am.TopK:
    """The teacher's side as an input of a loss."""
    if isinstance(reference, am.TopK):  # of common tokens only, wherever it comes from
        return reference
    if reference.head is None:
        raise ValueError("reference must have a head, got logits")
    others = "common" if batch.vocab == "common" and batch.tokens is None else "strict"
    return am.Hidden(reference.hidden, reference.head.first(batch.tokens), others)


@torch.no_grad()
def overlaps(student: States, reference: Reference, batch: Batch) -> torch.Tensor:
    """Σ min(p, q) of every position, (B, L); 1 where it does not count."""
    plain = replace(batch, denominator=None, label_weight=0.0)
    distance = to_reference(TOTAL_VARIATION, reference, batch.lists_at)
    return 1.0 - compare(distance, student, reference, batch.mask, plain, "none")


def sampled_positions(batch: Batch) -> torch.Tensor:
    """Up to ``SAMPLE`` of the positions that count, spread over the batch: a mask (B, L)."""
    mask = batch.mask.flatten()
    rank = mask.cumsum(0) - 1
    stride = ((mask.sum() + SAMPLE - 1) // SAMPLE).clamp(min=1)
    return (mask & (rank % stride == 0)).view(batch.labels.shape)


@torch.no_grad()
def sampled_statistics(student: States, reference: Reference, batch: Batch) -> torch.Tensor:
    """Sums of KL(p‖q) and of the overlap, and the count, over positions spread over the batch.

    Over up to ``SAMPLE`` positions that count, so that looking costs little: a tensor (3,).
    """
    chosen = sampled_positions(batch)
    tokens = batch.tokens
    if isinstance(reference, States):
        tokens = measured_first(student.vocabulary, reference.vocabulary, tokens)
    plain = replace(batch, denominator=None, label_weight=0.0, tokens=tokens)
    kl, distance = (
        compare(
            to_reference(loss, reference, batch.lists_at),
            student,
            reference,
            chosen,
            plain,
            "sum",
        )
        for loss in (KL_TO_TEACHER, TOTAL_VARIATION)
    )
    count = chosen.sum()
    return torch.stack([kl.float(), count - distance.float(), count.float()])
