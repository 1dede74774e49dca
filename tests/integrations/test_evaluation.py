"""Held-out figures against torch's own losses in float64."""

import pytest
import torch
from tiny import tiny_model
from torch.nn import functional as F  # noqa: N812

from amidmath.integrations.torch_loop.evaluation import evaluate


def test_figures() -> None:
    teacher, student = tiny_model(2, 1).eval(), tiny_model(1, 2).train()
    torch.manual_seed(0)
    batches = []
    for _ in range(2):
        ids = torch.randint(3, 259, (2, 12))
        labels = ids.clone()
        labels[0, :5] = -100
        batches.append({"input_ids": ids, "labels": labels})
    kl, agree, nll, count = 0.0, 0, 0.0, 0
    with torch.no_grad():
        for batch in batches:
            keep = batch["labels"][:, 1:] != -100
            p = teacher(input_ids=batch["input_ids"]).logits[:, :-1][keep].double().log_softmax(-1)
            q = student(input_ids=batch["input_ids"]).logits[:, :-1][keep].double().log_softmax(-1)
            kl += float(F.kl_div(q, p, log_target=True, reduction="sum"))
            agree += int((p.argmax(-1) == q.argmax(-1)).sum())
            nll += float(F.nll_loss(q, batch["labels"][:, 1:][keep], reduction="sum"))
            count += int(keep.sum())
    found = evaluate({"student": student}, teacher, batches, torch.device("cpu"))
    assert found["student"].kl == pytest.approx(kl / count, rel=1e-5)
    assert found["student"].agreement == agree / count
    assert found["student"].perplexity == pytest.approx(
        float(torch.exp(torch.tensor(nll / count))), rel=1e-5
    )
    assert found["student"].tokens == count == 36
    assert found["teacher"].kl == 0.0
    assert student.training


def test_no_token_that_counts() -> None:
    ids = torch.ones(1, 4, dtype=torch.int64)
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    with pytest.raises(ValueError, match="no token that counts"):
        evaluate({}, tiny_model(1, 1), [batch], torch.device("cpu"))
