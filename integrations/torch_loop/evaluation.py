"""How close a student is to its teacher, and how good both are, on held-out text."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

import amidmath as am
from amidmath.integrations.torch_loop.trainer import next_token_mask

# At λ = 0 the assistant is the student itself, so this is KL(p‖q).
_KL_TO_TEACHER = am.AMiD(am.KL(), order="pr", lam=0.0)


@dataclass(frozen=True)
class Quality:
    """Held-out figures of one model, means over the tokens that count.

    Args:
        kl: KL(teacher‖model) a token, in nats.
        agreement: share of tokens where the model's most probable token is the teacher's.
        perplexity: exp of the mean negative log-likelihood of the text.
        tokens: how many tokens were counted.
    """

    kl: float
    agreement: float
    perplexity: float
    tokens: int


@torch.no_grad()
def evaluate(
    models: Mapping[str, PreTrainedModel],
    teacher: PreTrainedModel,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
) -> dict[str, Quality]:
    """Quality of the teacher (under "teacher") and of each model, in one pass over the batches.

    Args:
        models: the models to judge by name, with the teacher's vocabulary.
        teacher: the reference.
        batches: collated batches with ``input_ids`` and ``labels``.
        device: where the models are.

    Returns:
        One entry a model, in the order given, the teacher first.
    """
    everyone = {"teacher": teacher, **models}
    was_training = {name: model.training for name, model in everyone.items()}
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in everyone}
    count = 0
    for model in everyone.values():
        model.eval()
    for batch in batches:
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
        labels = inputs.pop("labels")
        keep = next_token_mask(labels)
        targets = labels[..., 1:][keep[..., :-1]]
        count += targets.numel()
        reference = teacher(**inputs, use_cache=False).logits[keep]
        for name, model in everyone.items():
            same = model is teacher
            logits = reference if same else model(**inputs, use_cache=False).logits[keep]
            sums[name] += torch.stack(
                [
                    logits.new_zeros(())
                    if same
                    else _KL_TO_TEACHER(logits, reference, reduction="sum"),
                    (logits.argmax(-1) == reference.argmax(-1)).sum(),
                    F.cross_entropy(logits.float(), targets, reduction="sum"),
                ]
            ).to("cpu", torch.float64)
    for name, model in everyone.items():
        model.train(was_training[name])
    if count == 0:
        raise ValueError("the held-out batches have no token that counts")
    return {
        name: Quality(
            kl=float(kl) / count,
            agreement=float(agree) / count,
            perplexity=_exp(float(nll) / count),
            tokens=count,
        )
        for name, (kl, agree, nll) in sums.items()
    }


def _exp(nats: float) -> float:
    """exp, and inf where it would overflow."""
    return math.exp(nats) if nats < 700.0 else math.inf
