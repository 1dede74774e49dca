"""Generated answers against transformers' own, and against the softmax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled import compilations
from flax import nnx
from tiny import byte_tokenizer
from transformers import PreTrainedModel

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.text.tokenizers import check_lengths
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.generation import end_tokens, generate
from amidmath.integrations.jax_loop.models.model_files import LoadedModel

Pairs = Callable[[str], tuple[PreTrainedModel, LoadedModel]]
PROMPTS = [np.arange(5, 5 + n) for n in (3, 11, 1, 7, 7)]
KEY = jax.random.key(0)


@torch.no_grad()
def greedy(
    model: PreTrainedModel, prompt: np.ndarray[Any, Any], count: int, ends: list[int]
) -> Any:
    """The answer of transformers, without batch and padding."""
    ids = torch.tensor(prompt)[None]
    settings = {"eos_token_id": ends, "pad_token_id": 0, "do_sample": False}
    found = model.generate(
        ids, max_new_tokens=count, attention_mask=torch.ones_like(ids), **settings
    )
    return found[0, len(prompt) :].tolist()


def answers(decoder: Decoder, prompts: Any = PROMPTS, **changes: Any) -> list[list[int]]:
    settings = {"end_tokens": [1], "pad": 0, "max_new_tokens": 8, "key": KEY, "length_bucket": 12}
    return [ids.tolist() for ids in generate(decoder, prompts, **(settings | changes))]


def sharpened(decoder: Decoder, factor: float) -> Decoder:
    """With a distribution that is farther from uniform than an untrained model's."""
    copy: Decoder = nnx.clone(decoder)
    assert copy.output_head is not None
    copy.output_head[...] *= factor
    return copy


def next_probabilities(decoder: Decoder, prompt: Any, temperature: float) -> Any:
    logits = np.asarray(decoder(jnp.asarray(prompt)[None])[0, -1], np.float64) / temperature
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


@pytest.mark.parametrize("variant", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_greedy_answers_are_those_of_transformers(variant: str, pair: Pairs) -> None:
    theirs, ours = pair(variant)
    expected = [greedy(theirs, prompt, 8, [1]) for prompt in PROMPTS]
    assert answers(ours.decoder, batch_size=3) == expected
    assert len({tuple(ids) for ids in expected}) > 3


def test_an_answer_ends_with_any_end_token(pair: Pairs) -> None:
    theirs, ours = pair("llama")
    free = [greedy(theirs, prompt, 8, [1]) for prompt in PROMPTS]
    ends = [free[0][2], free[1][4], 1]
    expected = [greedy(theirs, prompt, 8, ends) for prompt in PROMPTS]
    found = answers(ours.decoder, end_tokens=ends)
    assert found == expected
    assert len(found[0]) <= 3
    assert len(found[1]) <= 5
    assert all(len(ids) == 8 or ids[-1] in ends for ids in found)
    assert answers(ours.decoder, max_new_tokens=1) == [ids[:1] for ids in free]


def test_end_tokens(pair: Pairs) -> None:
    model = pair("llama")[1]
    tokenizer = byte_tokenizer()

    def named(content: dict[str, Any] | None) -> list[int]:
        return end_tokens(LoadedModel(model.decoder, model.hf_config, content), tokenizer)

    assert named(None) == [1]  # the configuration's
    assert named({"eos_token_id": 7}) == [1, 7]
    assert named({"eos_token_id": [7, 1, 9]}) == [1, 7, 9]
    tokenizer.eos_token = None
    assert named({"eos_token_id": [7]}) == [7]
    with pytest.raises(InputError, match="a token that ends an answer"):
        named({"eos_token_id": None})


def test_samples_follow_the_tempered_softmax(pair: Pairs) -> None:
    decoder = sharpened(pair("llama")[1].decoder, 3.0)
    count, temperature = 4000, 0.8
    found = answers(
        decoder, [PROMPTS[1]] * count, max_new_tokens=2, temperature=temperature, batch_size=1000
    )
    first = np.array([ids[0] for ids in found])
    expected = next_probabilities(decoder, PROMPTS[1], temperature)
    assert 0.1 < expected.max() < 0.9
    shares = np.bincount(first, minlength=len(expected)) / count
    np.testing.assert_array_less(np.abs(shares - expected), 4.5 * np.sqrt(expected / count) + 1e-3)

    # The second token follows the first, and is drawn anew.
    top = int(expected.argmax())
    second = np.array([ids[1] for ids in found if ids[0] == top])
    expected = next_probabilities(decoder, [*PROMPTS[1], top], temperature)
    shares = np.bincount(second, minlength=len(expected)) / len(second)
    bound = 4.5 * np.sqrt(expected / len(second)) + 2e-3
    np.testing.assert_array_less(np.abs(shares - expected), bound)


def test_the_nucleus(pair: Pairs) -> None:
    decoder = sharpened(pair("llama")[1].decoder, 3.0)
    count = 2000
    exact = next_probabilities(decoder, PROMPTS[1], 1.0)
    order = np.argsort(-exact)
    top_p = float(exact[order[:4]].sum() + exact[order[4]] / 2)  # so it takes five
    found = answers(
        decoder,
        [PROMPTS[1]] * count,
        max_new_tokens=1,
        temperature=1.0,
        top_p=top_p,
        batch_size=1000,
    )
    assert {ids[0] for ids in found} == set(order[:5].tolist())
    expected = exact[order[:5]] / exact[order[:5]].sum()
    shares = np.array([sum(ids[0] == token for ids in found) for token in order[:5]]) / count
    np.testing.assert_array_less(np.abs(shares - expected), 4.5 * np.sqrt(expected / count))
    smallest = answers(
        decoder, [PROMPTS[1]] * 9, max_new_tokens=1, temperature=1.0, top_p=1e-6, batch_size=1000
    )
    assert smallest == [[int(order[0])]] * 9


def test_a_key_repeats_its_answers_whatever_the_batch(pair: Pairs) -> None:
    decoder = pair("llama")[1].decoder
    found = [
        answers(decoder, temperature=1.0, batch_size=size, max_new_tokens=20, key=key)
        for size, key in ((2, KEY), (2, KEY), (5, KEY), (2, jax.random.key(1)))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0] != found[3]
    assert found[0][3] != found[0][4]  # the same prompt twice


def test_one_program_for_each_bucket(pair: Pairs) -> None:
    decoder = pair("mistral")[1].decoder
    settings: dict[str, Any] = {"max_new_tokens": 3, "length_bucket": 6, "batch_size": 4}
    with compilations() as first:
        answers(decoder, PROMPTS[:1], temperature=0.5, **settings)
    assert first
    changed: Decoder = nnx.clone(decoder)
    changed.embedding[...] *= 1.5
    with compilations() as again:
        answers(decoder, [np.arange(2, 8)] * 7, temperature=0.7, key=jax.random.key(3), **settings)
        answers(changed, PROMPTS[:1] * 9, temperature=1.2, **settings)
    assert not again
    with compilations() as longer:
        answers(decoder, PROMPTS[1:2], temperature=0.7, **settings)
    assert len(longer) == 1


def test_one_program_for_prompts_up_to_a_length(pair: Pairs) -> None:
    theirs, ours = pair("mistral")
    settings: dict[str, Any] = {"max_new_tokens": 9, "length_bucket": 4, "prompt_length": 11}
    with compilations() as first:
        answers(ours.decoder, PROMPTS[2:3], **settings)
    assert first
    with compilations() as again:
        found = answers(ours.decoder, max_length=13, **settings)
    assert not again
    whole = [greedy(theirs, prompt, 9, [1]) for prompt in PROMPTS]
    room = [min(9, 13 - len(prompt)) for prompt in PROMPTS]
    assert found == [ids[:count] for ids, count in zip(whole, room, strict=True)]
    with pytest.raises(InputError, match=r"row 1: its prompt has 11 tokens, which with 1 new"):
        answers(ours.decoder, max_length=11, **settings)


def test_answers_of_the_first_tokens_only(pair: Pairs) -> None:
    decoder = pair("llama")[1].decoder
    free = answers(decoder, temperature=2.0, max_new_tokens=20)
    assert max(map(max, free)) >= 50
    for temperature in (0.0, 2.0):
        found = answers(decoder, temperature=temperature, max_new_tokens=20, tokens=50)
        assert max(map(max, found)) < 50


def test_no_prompts_and_progress(pair: Pairs) -> None:
    decoder = pair("llama")[1].decoder
    assert answers(decoder, []) == []
    seen: list[int] = []
    answers(decoder, batch_size=3, on_batch=seen.append)
    assert seen == [3, 2]


def test_prompts_up_to_the_context(pair: Pairs) -> None:
    theirs, ours = pair("gpt2")
    prompt = np.arange(3, 3 + 120)
    expected = [greedy(theirs, prompt, 8, [1])]
    assert answers(ours.decoder, [prompt], length_bucket=100) == expected
    with pytest.raises(
        InputError, match=r"row 1: .* 121 tokens, which with 8 new .* context of 128"
    ):
        answers(ours.decoder, [prompt, np.arange(121)])
    with pytest.raises(InputError, match="row 0: its prompt has no tokens"):
        answers(ours.decoder, [prompt[:0]])
    with pytest.raises(InputError, match="row 17: its prompt has 5 tokens"):
        check_lengths(8, [3, 5], 4, numbers=[4, 17])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"length_bucket": 0}, "length_bucket must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or positive and finite, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 or positive and finite, got nan"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"end_tokens": []}, "end_tokens must name at least one token"),
        ({"pad": -1}, "pad must be a token of the model, below 384, got -1"),
        ({"pad": 384}, "pad must be a token of the model, below 384, got 384"),
    ],
)
def test_parameters_out_of_range(changes: dict[str, Any], message: str, pair: Pairs) -> None:
    with pytest.raises(ValueError, match=message):
        answers(pair("llama")[1].decoder, **changes)
