"""Which vocabularies can be compared, what is said of those that cannot, and the mass outside."""

import numpy as np
import pytest
import torch

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.text.vocabularies import compare_vocabularies
from amidmath.integrations.torch_loop.loss.outside_mass import outside_mass
from amidmath.integrations.torch_loop.models.states import States


def tokens(count: int, *added: str) -> dict[str, int]:
    names = [*(f"t{n}" for n in range(count)), *added]
    return {name: number for number, name in enumerate(names)}


def test_the_same_tokens_and_logits() -> None:
    for mode in ("strict", "common"):
        found = compare_vocabularies(tokens(100), tokens(100), 100, 100, mode)
        assert (found.mode, found.common) == (mode, 100)
        assert (found.only_student, found.only_teacher) == (0, 0)
        assert "the same for both" in found.describe()


def test_one_is_padded() -> None:
    with pytest.raises(InputError, match=r"128 and 120 logits: one is padded.*--vocab common"):
        compare_vocabularies(tokens(100), tokens(100), 128, 120)
    found = compare_vocabularies(tokens(100), tokens(100), 128, 120, "common")
    assert (found.common, found.only_student, found.only_teacher) == (120, 0, 0)
    assert "120 tokens in common, of 128" in found.describe()


def test_a_teacher_with_more_tokens() -> None:
    more = tokens(100, "<a>", "<b>")
    with pytest.raises(InputError, match=r"from token 100 on.*None.*'<a>'.*--vocab common"):
        compare_vocabularies(tokens(100), more, 100, 102)
    found = compare_vocabularies(tokens(100), more, 100, 102, "common")
    assert (found.common, found.only_student, found.only_teacher) == (100, 0, 2)
    assert "2 the teacher's only" in found.describe()


def test_a_token_where_the_other_has_a_padding_logit() -> None:
    found = compare_vocabularies(tokens(100), tokens(100, "<a>"), 128, 128, "common")
    assert (found.common, found.only_teacher) == (128, 1)


def test_different_tokens_after_a_common_prefix() -> None:
    ours, theirs = tokens(100, "<a>"), tokens(100, "<b>", "<c>")
    with pytest.raises(InputError, match=r"token 100 is '<a>' for the student and '<b>'.*Resize"):
        compare_vocabularies(ours, theirs, 128, 128, "common")
    found = compare_vocabularies(ours, theirs, 128, 128, "common", cached=True)
    assert (found.common, found.only_student, found.only_teacher) == (100, 1, 2)
    found = compare_vocabularies(ours, theirs, 128, 100, "common")
    assert found.common == 100


@pytest.mark.parametrize("mode", ["strict", "common"])
@pytest.mark.parametrize("more", [("<image>",), ("<image>", "<b>", "<c>")])
def test_tokens_without_a_logit_do_not_count(mode: str, more: tuple[str, ...]) -> None:
    """Gemma 3: 262,145 tokens and 262,144 embeddings."""
    for ours, theirs in ((more, more), (more, ()), ((), more)):
        found = compare_vocabularies(tokens(100, *ours), tokens(100, *theirs), 100, 100, mode)
        assert (found.common, found.only_student, found.only_teacher) == (100, 0, 0)
        assert "the same for both" in found.describe()
    beside = tokens(100, *more)
    with pytest.raises(InputError, match="100 and 164 logits: one is padded"):
        compare_vocabularies(beside, beside, 100, 164)
    found = compare_vocabularies(beside, beside, 100, 164, "common")
    assert (found.common, found.only_student, found.only_teacher) == (100, 0, len(more))


@pytest.mark.parametrize("mode", ["strict", "common"])
@pytest.mark.parametrize("cached", [False, True])
def test_different_tokenizers(mode: str, cached: bool) -> None:
    ours = {f"t{n}": n for n in range(100)}
    theirs = {f"t{n}": (n if n < 60 else 159 - n) for n in range(100)}
    with pytest.raises(InputError) as caught:
        compare_vocabularies(ours, theirs, 100, 100, mode, cached=cached)
    text = str(caught.value)
    assert "different tokenizers (100 and 100 tokens, 60 of them in common" in text
    assert "'t60' for one is number 60 for the student and 99 for the teacher" in text
    assert "one model family" in text


def test_an_unknown_mode() -> None:
    with pytest.raises(InputError, match=r"--vocab must be one of .*common_only, got 'some'"):
        compare_vocabularies(tokens(9), tokens(9), 9, 9, "some")


def test_mass_outside_of_states() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, generator=generator)
    head = am.Head(torch.randn(11, 4, generator=generator), softcap=5.0)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    logits = 5.0 * np.tanh(hidden.double().numpy() @ head.weight.double().numpy().T / 5.0)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = p[mask.numpy()][:, 8:].sum(-1).mean()
    found = outside_mass(States(am.Hidden(hidden, head), head), 8, mask)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(outside_mass(States(am.Hidden(hidden, head), head), 11, mask)) == 0.0
    assert (
        float(outside_mass(States(am.Hidden(hidden, head), head), 8, torch.zeros_like(mask))) == 0.0
    )


def test_mass_outside_of_lists() -> None:
    p = torch.tensor([[[0.5, 0.25, 0.125], [0.5, 0.1, 0.1]]])
    top = am.TopK(p.log(), torch.tensor([[[3, 9, 10], [12, 0, -1]]]))
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert float(outside_mass(top, 10, mask)) == pytest.approx((0.125 + 0.5) / 2)
