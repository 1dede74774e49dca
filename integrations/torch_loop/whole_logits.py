"""A loss of whole logits, for models that make them in a way of their own."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

import amidmath as am
from amidmath.integrations.shared.objective import NO_LABEL

if TYPE_CHECKING:
    from amidmath.integrations.torch_loop.objective import Batch


def compare_logits(
    loss: am.Loss,
    student: torch.Tensor,
    teacher: "torch.Tensor | am.TopK",
    mask: torch.Tensor,
    batch: "Batch",
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
        value: torch.Tensor = loss.sparse(student, teacher, mask, reduction=added)
    else:
        teacher = teacher.to(student.dtype)
        common = min(student.shape[-1], teacher.shape[-1])
        ours, theirs = student, teacher
        if ours.shape[-1] != theirs.shape[-1]:
            ours, theirs = _with_others(ours, common), _with_others(theirs, common)
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


def _with_others(logits: torch.Tensor, common: int) -> torch.Tensor:
    """The first logits, and one for all others together; -inf where there are none."""
    others = logits[..., common:]
    if others.shape[-1]:
        one = others.logsumexp(-1, keepdim=True)
    else:
        one = torch.full_like(logits[..., :1], -torch.inf)
    return torch.cat([logits[..., :common], one], dim=-1)
