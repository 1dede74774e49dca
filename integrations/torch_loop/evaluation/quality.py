"""The closeness of a student to its teacher, and the quality of both, on held-out text."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.nn import functional as F  # noqa: N812

import amidmath as am
from amidmath.formulas.buckets import fold
from amidmath.integrations.common.evaluation.quality import CHUNK_BYTES, Quality
from amidmath.integrations.common.recipe.measures import KL_TO_TEACHER
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.text.vocabularies import compared_first, measured_first
from amidmath.integrations.torch_loop.devices.engines import reshard
from amidmath.integrations.torch_loop.devices.shares import summed
from amidmath.integrations.torch_loop.loss.batch import next_token_targets
from amidmath.integrations.torch_loop.models.model_files import base_of
from amidmath.integrations.torch_loop.models.modes import evaluation_mode
from amidmath.integrations.torch_loop.models.states import States, expose_states, logits_of
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import (
    BaseStates,
    ModelTeacher,
    Reference,
    Teacher,
)


@torch.no_grad()
def evaluate(
    models: Mapping[str, torch.nn.Module],
    teacher: Teacher | torch.nn.Module | None,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
    vocab: str = "common",
) -> dict[str, Quality]:
    """Quality of the teacher (under "teacher") and of each model, in one pass over the batches.

    With several processes, of all their batches together.

    Logits are made of hidden states, of a few positions at a time; what is computed of them is
    float32.

    Args:
        models: the models to judge by name. Where one has logits over more or fewer tokens than
            the teacher, KL and agreement are over the first tokens that both have, and all others
            as one more token; perplexity is over a model's own.
        teacher: the reference. Of a cache, which has no figures of its own, KL is over the listed
            tokens and all others as one more, at the temperature of the lists. None if there is
            none, and KL and agreement are NaN.
        batches: collated batches with ``input_ids`` and ``labels``, and ``row`` for a cache.
        device: where the models are.
        vocab: "common_only" leaves the others out, and so does any where the teacher has more
            tokens, as KL would be infinite.

    Returns:
        One entry a model, in the order given, the teacher first if there is one.
    """
    asked = _teacher(teacher)
    in_memory = asked is not None and not isinstance(asked, CachedTeacher)
    for model in models.values():
        expose(model)
    sums = _Sums(["teacher"] if in_memory else [], models, asked, vocab)
    count = 0
    evaluated = [*models.values(), *([asked.model] if asked is not None and asked.model else [])]
    with evaluation_mode(*evaluated):
        for batch in batches:
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
            predicted = next_token_targets(inputs.pop("labels")).flatten()
            positions = (predicted != NO_LABEL).nonzero().squeeze(-1)
            count += positions.numel()
            at = (positions, predicted[positions])
            to_model = {k: v for k, v in inputs.items() if k != ROW}
            if asked is None:
                sums.add(models, to_model, at, None)
            else:
                given = to_model if in_memory else inputs
                asked.give(given, partial(sums.add, models, to_model, at))
    for model in evaluated:
        reshard(model)
    added = summed(torch.cat([*sums.by_name.values(), torch.tensor([float(count)])]))
    totals, count = dict(zip(sums.by_name, added[:-1].split(3), strict=True)), int(added[-1])
    if count == 0:
        raise ValueError("the held-out batches have no token that counts")
    return {
        name: Quality.of_sums(of_model.tolist(), count, asked is not None)
        for name, of_model in totals.items()
    }


def expose(model: Any) -> None:
    """Let a model give its states, with an adapter around it or not."""
    expose_states(base_of(model))


def _teacher(given: Teacher | torch.nn.Module | None) -> Teacher | None:
    if isinstance(given, torch.nn.Module):
        expose(given)
        return ModelTeacher(given, "teacher")
    return given


At = tuple[torch.Tensor, torch.Tensor]
"""The positions (P,) of a flattened batch that count, and the token that each predicts (P,)."""


class _Sums:
    """KL, agreements and negative log-likelihood by model, added up over batches.

    Args:
        first: names beside the models'.
        models: by name.
        teacher: what they are compared with.
        vocab: how.
    """

    def __init__(
        self, first: list[str], models: Mapping[str, Any], teacher: Teacher | None, vocab: str
    ) -> None:
        names = [*first, *models]
        self.by_name = {name: torch.zeros(3, dtype=torch.float64) for name in names}
        self.vocab, self.kl, self.tokens = vocab, KL_TO_TEACHER, None
        if isinstance(teacher, CachedTeacher):
            self.kl, self.tokens = teacher.rows.kl_to_teacher, teacher.rows.tokens

    def add(
        self,
        models: Mapping[str, torch.nn.Module],
        inputs: dict[str, Any],
        at: At,
        reference: Reference | None,
    ) -> None:
        """Ask the models, while the teacher's head is whole."""
        if isinstance(reference, States):
            self._look("teacher", reference, None, at)
        seen = [isinstance(reference, States)]

        def look(name: str, ours: States) -> None:
            theirs = reference
            if isinstance(theirs, BaseStates):  # the student knows the head
                theirs = theirs.beside(ours)
                if not seen[0]:
                    self._look("teacher", theirs, None, at)
                    seen[0] = True
            self._look(name, ours, theirs, at)

        for name, model in models.items():
            model(**inputs, with_states=partial(look, name))

    def _look(self, name: str, ours: States, theirs: States | am.TopK | None, at: At) -> None:
        positions, targets = at
        hidden = ours.hidden.flatten(0, 1)[positions]
        width, tokens = ours.vocabulary, self.tokens
        others: list[torch.Tensor] = []
        if isinstance(theirs, States):
            size = theirs.vocabulary
            tokens = measured_first(width, size, compared_first(self.vocab, width, size))
            width, others = width + size, [theirs.hidden.flatten(0, 1)[positions]]
        elif theirs is not None:
            others = [array.flatten(0, 1)[positions] for array in theirs]
        step = max(1, CHUNK_BYTES // (4 * width))
        chunks = [array.split(step) for array in (hidden, targets, *others)]
        for part, words, *rest in zip(*chunks, strict=True):
            reference: torch.Tensor | am.TopK | None = None
            if isinstance(theirs, States):
                reference = logits_of(rest[0], theirs.head).float()
            elif theirs is not None:
                reference = am.TopK(*rest)
            logits = logits_of(part, ours.head).float()
            found = _figures(logits, reference, words, self.kl, tokens)
            self.by_name[name] += found.to("cpu", torch.float64)


def _figures(
    logits: torch.Tensor,
    reference: torch.Tensor | am.TopK | None,
    targets: torch.Tensor,
    kl: am.AMiD,
    tokens: int | None,
) -> torch.Tensor:
    """KL, agreements and negative log-likelihood, summed; without a reference, to the model itself.

    Args:
        logits: (tokens, vocabulary).
        reference: the teacher's, (tokens, its vocabulary), or lists (tokens, k).
        targets: (tokens,).
        kl: to the teacher.
        tokens: how many first ones are compared, where the others are left out.
    """
    nll = F.cross_entropy(logits, targets, reduction="sum")
    if reference is None:
        return torch.stack([torch.zeros_like(nll), torch.full_like(nll, len(targets)), nll])
    ours = logits[:, :tokens]
    if isinstance(reference, am.TopK):  # the first of a list is the most probable
        agreements = (ours.argmax(-1) == reference.indices[:, 0]).sum()
        return torch.stack([kl(ours, reference, reduction="sum"), agreements, nll])
    theirs = reference[:, :tokens]
    if ours.shape[-1] != theirs.shape[-1]:
        common = min(ours.shape[-1], theirs.shape[-1])
        ours, theirs = fold(ours, common, xp), fold(theirs, common, xp)
    agreements = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    return torch.stack([kl(ours, theirs, reduction="sum"), agreements, nll])
