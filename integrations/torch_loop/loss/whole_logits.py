"""A loss of whole logits, for models that make them in a way of their own."""

import array_api_compat.torch as xp
import torch
from torch.nn import functional as F  # noqa: N812

import amidmath as am
from amidmath.formulas.buckets import fold
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.torch_loop.loss.batch import Batch


def compare_logits(
    loss: am.Loss,
    student: torch.Tensor,
    teacher: torch.Tensor | am.TopK,
    mask: torch.Tensor,
    batch: Batch,
    reduction: str = "mean",
) -> torch.Tensor:
    """One loss over the positions of a mask, as ``objective.compare`` takes it of hidden states.

    Args:
        loss: of whole rows.
        student: logits (B, L, V).
        teacher: logits (B, L, W), or lists (B, L, k).
        mask: shape (B, L).
        batch: the rest.
        reduction: "mean", "sum" or "none".
    """
    added = "none" if reduction == "none" else "sum"
    if isinstance(teacher, am.TopK):
        value: torch.Tensor = loss(student, teacher, mask, reduction=added)
    else:
        teacher = teacher.to(student.dtype)
        common = min(student.shape[-1], teacher.shape[-1])
        ours, theirs = student, teacher
        if ours.shape[-1] != theirs.shape[-1]:
            ours, theirs = (
                fold(side.flatten(0, 1), common, xp).unflatten(0, mask.shape)
                for side in (ours, theirs)
            )
        value = loss(ours, theirs, mask=mask, reduction=added)
    if reduction == "none":
        return value
    if batch.label_weight:
        targets = batch.targets.masked_fill(~mask, NO_LABEL).flatten()
        logits = student.flatten(0, 1).float()
        nll = F.cross_entropy(logits, targets, ignore_index=NO_LABEL, reduction="sum")
        value = value + batch.label_weight * nll
    if reduction == "sum":
        return value
    count = mask.sum().clamp(min=1) if batch.denominator is None else batch.denominator
    return value / count
