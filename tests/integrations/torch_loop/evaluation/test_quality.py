"""Held-out figures against torch's own losses in float64."""

import pytest
import torch
from tiny import tiny_model
from torch.nn import functional as F  # noqa: N812

from amidmath.integrations.torch_loop.evaluation import quality as evaluation
from amidmath.integrations.torch_loop.evaluation.quality import evaluate


@pytest.mark.parametrize("chunk", [5, 256])  # rows
def test_figures(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK_BYTES", chunk * 4 * 2 * 384)
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


def one_batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(3, 259, (2, 12))
    labels = ids.clone()
    labels[1, :4] = -100
    return {"input_ids": ids, "labels": labels}


def test_padding_and_what_it_holds_change_nothing() -> None:
    teacher, student = tiny_model(2, 1), tiny_model(1, 2)
    batch = one_batch()
    mask = torch.ones(2, 15, dtype=torch.int64)
    mask[:, 12:] = 0
    padded = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 3), value=77),
        "attention_mask": mask,
        "labels": torch.nn.functional.pad(batch["labels"], (0, 3), value=-100),
    }
    expected, found = (
        evaluate({"student": student}, teacher, [b], torch.device("cpu"))["student"]
        for b in (batch, padded)
    )
    assert found.kl == pytest.approx(expected.kl, rel=1e-5)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert (found.agreement, found.tokens) == (expected.agreement, expected.tokens)


def test_a_teacher_in_another_data_type() -> None:
    teacher, student = tiny_model(2, 1), tiny_model(1, 2)
    exact = evaluate({"student": student}, teacher, [one_batch()], torch.device("cpu"))["student"]
    half = evaluate(
        {"student": student}, teacher.to(torch.bfloat16), [one_batch()], torch.device("cpu")
    )
    assert half["student"].kl == pytest.approx(exact.kl, rel=0.05)
    assert half["student"].perplexity == pytest.approx(exact.perplexity, rel=1e-6)


@pytest.mark.parametrize("vocab", ["common", "common_only"])
@pytest.mark.parametrize("sizes", [(300, 384), (384, 300)])
def test_further_tokens_count_as_one_or_not_at_all(sizes: tuple[int, int], vocab: str) -> None:
    ours, theirs = sizes
    student, teacher = tiny_model(1, 2, vocab_size=ours), tiny_model(2, 1, vocab_size=theirs)
    batch = one_batch()
    cpu = torch.device("cpu")
    found = evaluate({"student": student}, teacher, [batch], cpu, vocab)["student"]
    keep = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        q, p = (
            m.eval()(input_ids=batch["input_ids"]).logits[:, :-1][keep].double().softmax(-1)
            for m in (student, teacher)
        )
    nll = -q.log().gather(-1, batch["labels"][:, 1:][keep][:, None]).mean()
    assert found.perplexity == pytest.approx(float(nll.exp()), rel=1e-5)
    # As one they would make KL infinite where the teacher has them: there they are left out too.
    if vocab == "common_only" or ours < theirs:
        q, p = (x[:, :300] / x[:, :300].sum(-1, keepdim=True) for x in (q, p))
    else:
        q, p = (torch.cat([x[:, :300], x[:, 300:].sum(-1, keepdim=True)], -1) for x in (q, p))
    agreement = (q.argmax(-1) == p.argmax(-1)).double().mean()
    assert found.agreement == pytest.approx(float(agreement))
    kl = torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-5)


def test_modes_are_restored_after_an_error() -> None:
    student = tiny_model(1, 2).train()
    with pytest.raises(RuntimeError):
        evaluate(
            {"student": student},
            tiny_model(2, 1),
            [{"input_ids": torch.ones(1, 2), "labels": torch.ones(1, 2)}],
            torch.device("cpu"),
        )
    assert student.training
