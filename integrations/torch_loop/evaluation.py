"""How close a student is to its teacher, and how good both are, on held-out text."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

import amidmath as am
from amidmath._buckets import fold
from amidmath.integrations.shared.objective import KL_TO_TEACHER
from amidmath.integrations.shared.prepared import ROW
from amidmath.integrations.shared.quality import Quality
from amidmath.integrations.torch_loop.generation import evaluation_mode
from amidmath.integrations.torch_loop.objective import next_token_targets
from amidmath.integrations.torch_loop.processes import reshard, summed
from amidmath.integrations.torch_loop.teacher_cache import CachedTeacher

# Tokens at a time: their logits are copied in float32, 150 MB each for 150,000 words.
_CHUNK = 256


@torch.no_grad()
def evaluate(
    models: Mapping[str, PreTrainedModel],
    teacher: torch.nn.Module | CachedTeacher | None,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
) -> dict[str, Quality]:
    """Quality of the teacher (under "teacher") and of each model, in one pass over the batches.

    With several processes, of all their batches together.

    The logits of a batch are held for the teacher and one model at a time, in the type that the
    model gives them; what is computed of them is float32.

    Args:
        models: the models to judge by name. Where one has logits over more or fewer tokens than
            the teacher, KL and agreement are over the first tokens that both have, and all others
            as one more token; perplexity is over a model's own.
        teacher: the reference. Of a cache, which has no figures of its own, KL is over the listed
            tokens and all others as one more, at the temperature of the lists. None if there is
            none, and KL and agreement are NaN.
        batches: collated batches with ``input_ids`` and ``labels``, and ``row`` for a cache.
        device: where the models are.

    Returns:
        One entry a model, in the order given, the teacher first if there is one.
    """
    cached = teacher if isinstance(teacher, CachedTeacher) else None
    in_memory = None if isinstance(teacher, CachedTeacher) else teacher
    everyone: dict[str, torch.nn.Module] = {} if in_memory is None else {"teacher": in_memory}
    everyone |= models
    kl = KL_TO_TEACHER if cached is None else cached.rows.kl_to_teacher
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in everyone}
    count = 0
    with evaluation_mode(*everyone.values()):
        for batch in batches:
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
            labels = inputs.pop("labels")
            predicted = next_token_targets(labels).flatten()
            positions = (predicted != -100).nonzero().squeeze(-1)
            targets = predicted[positions]
            count += targets.numel()
            lists = None if cached is None else cached.give(inputs, _flat)
            inputs.pop(ROW, None)
            reference: torch.Tensor | None = None
            if in_memory is not None:
                reference = in_memory(**inputs, use_cache=False).logits.flatten(0, 1)
            for name, model in everyone.items():
                same = model is in_memory
                logits: torch.Tensor = (
                    reference
                    if same and reference is not None
                    else model(**inputs, use_cache=False).logits.flatten(0, 1)
                )
                for chunk, words in zip(
                    positions.split(_CHUNK), targets.split(_CHUNK), strict=True
                ):
                    theirs: torch.Tensor | am.TopK | None = None
                    if lists is not None:
                        theirs = am.TopK(*(array[chunk] for array in lists))
                    elif reference is not None and not same:
                        theirs = reference[chunk].float()
                    found = _figures(logits[chunk].float(), theirs, words, kl)
                    sums[name] += found.to("cpu", torch.float64)
    for model in everyone.values():
        reshard(model)
    added = summed(torch.cat([*sums.values(), torch.tensor([float(count)])]))
    sums, count = dict(zip(sums, added[:-1].split(3), strict=True)), int(added[-1])
    if count == 0:
        raise ValueError("the held-out batches have no token that counts")
    return {
        name: Quality.of_sums(of_model.tolist(), count, teacher is not None)
        for name, of_model in sums.items()
    }


def _flat(top: am.TopK) -> am.TopK:
    """One list after the other, (B · L, k)."""
    return am.TopK(*(array.flatten(0, 1) for array in top))


def _figures(
    logits: torch.Tensor,
    reference: torch.Tensor | am.TopK | None,
    targets: torch.Tensor,
    kl: am.AMiD,
) -> torch.Tensor:
    """KL, agreements and negative log-likelihood, summed; without a reference, to the model itself.

    Args:
        logits: (tokens, vocabulary).
        reference: the teacher's, (tokens, its vocabulary), or lists (tokens, k).
        targets: (tokens,).
        kl: to the teacher.
    """
    nll = F.cross_entropy(logits, targets, reduction="sum")
    if reference is None:
        return torch.stack([torch.zeros_like(nll), torch.full_like(nll, len(targets)), nll])
    if isinstance(reference, am.TopK):  # the first of a list is the most probable
        agreements = (logits.argmax(-1) == reference.indices[:, 0]).sum()
        return torch.stack([kl.sparse(logits, reference, reduction="sum"), agreements, nll])
    ours, theirs = logits, reference
    if logits.shape[-1] != reference.shape[-1]:
        common = min(logits.shape[-1], reference.shape[-1])
        ours, theirs = fold(logits, common, xp), fold(reference, common, xp)
    agreements = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    return torch.stack([kl(ours, theirs, reduction="sum"), agreements, nll])
