"""How close a student is to its teacher, and how good both are, on held-out text."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from amidmath._buckets import fold
from amidmath.integrations.shared.quality import Quality
from amidmath.integrations.torch_loop.generation import evaluation_mode
from amidmath.integrations.torch_loop.objective import KL_TO_TEACHER, next_token_targets
from amidmath.integrations.torch_loop.processes import reshard, summed

# Tokens at a time: their logits are copied in float32, 150 MB each for 150,000 words.
_CHUNK = 256


@torch.no_grad()
def evaluate(
    models: Mapping[str, PreTrainedModel],
    teacher: torch.nn.Module | None,
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
        teacher: the reference; None if there is none, and KL and agreement are NaN.
        batches: collated batches with ``input_ids`` and ``labels``.
        device: where the models are.

    Returns:
        One entry a model, in the order given, the teacher first if there is one.
    """
    everyone: dict[str, torch.nn.Module] = {} if teacher is None else {"teacher": teacher}
    everyone |= models
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
            reference: torch.Tensor | None = None
            if teacher is not None:
                reference = teacher(**inputs, use_cache=False).logits.flatten(0, 1)
            for name, model in everyone.items():
                same = model is teacher
                logits: torch.Tensor = (
                    reference
                    if same and reference is not None
                    else model(**inputs, use_cache=False).logits.flatten(0, 1)
                )
                for chunk, words in zip(
                    positions.split(_CHUNK), targets.split(_CHUNK), strict=True
                ):
                    sums[name] += _figures(
                        logits[chunk].float(),
                        None if same or reference is None else reference[chunk].float(),
                        words,
                    ).to("cpu", torch.float64)
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


def _figures(
    logits: torch.Tensor, reference: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """KL, agreements and negative log-likelihood, summed; without a reference, to the model itself.

    Args:
        logits: (tokens, vocabulary).
        reference: the teacher's, (tokens, its vocabulary).
        targets: (tokens,).
    """
    nll = F.cross_entropy(logits, targets, reduction="sum")
    if reference is None:
        return torch.stack([torch.zeros_like(nll), torch.full_like(nll, len(targets)), nll])
    ours, theirs = logits, reference
    if logits.shape[-1] != reference.shape[-1]:
        common = min(logits.shape[-1], reference.shape[-1])
        ours, theirs = fold(logits, common, xp), fold(reference, common, xp)
    agreements = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    return torch.stack([KL_TO_TEACHER(ours, theirs, reduction="sum"), agreements, nll])
