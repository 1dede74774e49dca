"""Figures of optimiser steps and evaluations beside the loss: KL, overlap, mass outside."""

import math

import torch

from amidmath.integrations.common.tasks.scores import with_prefix
from amidmath.integrations.torch_loop.devices.shares import summed
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.objective import sampled_statistics
from amidmath.integrations.torch_loop.loss.outside_mass import OutsideMass
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.teachers.teachers import Reference, Teacher

TRAIN, EVAL = "train", "eval"


class Statistics:
    """Adds up what batches show, in training and in an evaluation apart.

    Args:
        teacher: the trainer's.
        vocab: as ``--vocab`` has it; the mass outside of common tokens is looked at unless
            "strict".
    """

    def __init__(self, teacher: Teacher, vocab: str) -> None:
        self._outside = None if vocab == "strict" else OutsideMass(teacher)
        self._seen: dict[str, torch.Tensor] = {}  # sums of KL and overlap, and the count, by mode
        self._held_out = torch.zeros(2, dtype=torch.float64)

    def look(self, mode: str, student: States, reference: Reference, batch: Batch) -> None:
        """Take in a batch.

        Args:
            mode: ``TRAIN`` or ``EVAL``.
            student: the student's states.
            reference: the teacher's.
            batch: the rest.
        """
        found = sampled_statistics(student, reference, batch)
        self._seen[mode] = self._seen[mode] + found if mode in self._seen else found
        if self._outside is not None:
            self._outside.look(mode, student, reference, batch)

    def of_step(self) -> tuple[dict[str, float], float | None]:
        """The figures of the batches of an optimiser step, over all processes.

        Returns:
            Figures for the log, and the mean overlap for schedules: None where no batch was looked
            at, NaN where none had a position that counts.
        """
        figures: dict[str, float] = {}
        overlap = None
        if TRAIN in self._seen:
            kl, of_overlap, count = summed(self._seen.pop(TRAIN)).tolist()
            overlap = of_overlap / count if count else math.nan
            if count:
                figures |= {"kl": kl / count, "overlap": overlap}
        if self._outside is not None:
            figures |= self._outside.take(TRAIN)
        return figures, overlap

    def begin_evaluation(self, device: torch.device) -> None:
        """Forget the last evaluation; the sums of a step of training are kept."""
        self._held_out = torch.zeros(2, dtype=torch.float64, device=device)
        self._seen[EVAL] = torch.zeros(3, device=device)

    def add_held_out(self, loss: torch.Tensor, count: torch.Tensor) -> None:
        """Take in the sum of the losses of a held-out batch, and of how many tokens it is."""
        self._held_out = self._held_out + torch.stack([loss, count]).double()

    def of_evaluation(self, prefix: str) -> dict[str, float]:
        """The figures of the evaluation since it began, over all tokens and processes."""
        total, count = summed(self._held_out).tolist()
        kl, overlap, looked = summed(self._seen.pop(EVAL)).tolist()
        figures = {"loss": total / count if count else math.nan}
        if looked:
            figures |= {"kl": kl / looked, "overlap": overlap / looked}
        if self._outside is not None:
            figures |= self._outside.take(EVAL)
        return with_prefix(prefix, figures)
