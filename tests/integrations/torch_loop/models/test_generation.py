"""Generated answers against loops that feed one token after the other, and against the softmax."""

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_model
from transformers import GenerationConfig, LlamaForCausalLM

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.torch_loop.models.generation import end_tokens, generate
from amidmath.integrations.torch_loop.models.modes import evaluation_mode

TOKENIZER = byte_tokenizer()
PROMPTS = [torch.arange(5, 5 + n) for n in (3, 11, 1, 7, 7)]


@torch.no_grad()
def greedy(
    model: LlamaForCausalLM, prompt: torch.Tensor, count: int, ends: Sequence[int]
) -> list[int]:
    """The most probable token each time, without batch, padding or cache."""
    ids = prompt.tolist()
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_greedy_answers_do_not_depend_on_the_batch(batch_size: int) -> None:
    model = tiny_model(2, 1).eval()
    found = generate(model, PROMPTS, tokenizer=TOKENIZER, max_new_tokens=6, batch_size=batch_size)
    expected = [greedy(model, prompt, 6, [1]) for prompt in PROMPTS]
    assert [ids.tolist() for ids in found] == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_an_answer_ends_with_any_end_token() -> None:
    model = tiny_model(2, 1).eval()
    free = [greedy(model, prompt, 8, []) for prompt in PROMPTS]
    ends = [free[0][2], free[1][4], TOKENIZER.eos_token_id]
    model.generation_config.eos_token_id = ends[:2]
    found = generate(model, PROMPTS, tokenizer=TOKENIZER, max_new_tokens=8)
    expected = [greedy(model, prompt, 8, ends) for prompt in PROMPTS]
    assert [ids.tolist() for ids in found] == expected
    lengths = [len(ids) for ids in found]
    assert lengths[0] <= 3
    assert lengths[1] <= 5
    assert all(len(ids) == 8 or int(ids[-1]) in ends for ids in found)


def test_end_tokens() -> None:
    model = tiny_model(1, 1)
    model.generation_config.eos_token_id = 7
    assert end_tokens(model, TOKENIZER) == [1, 7]
    model.generation_config.eos_token_id = [7, 1]
    assert end_tokens(model, TOKENIZER) == [1, 7]
    model.generation_config.eos_token_id = None
    assert end_tokens(model, TOKENIZER) == [1]
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="a token that ends an answer"):
        end_tokens(model, tokenizer)


def test_samples_follow_the_tempered_softmax_whatever_the_model_says() -> None:
    model = tiny_model(1, 1).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40.0)  # an untrained model is close to uniform
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, temperature=9.0, repetition_penalty=5.0, eos_token_id=1
    )
    prompt, count, temperature = PROMPTS[1], 4000, 0.7
    found = generate(
        model,
        [prompt] * count,
        tokenizer=TOKENIZER,
        max_new_tokens=1,
        temperature=temperature,
        seed=3,
        batch_size=500,
    )
    with torch.no_grad():
        logits = model(input_ids=prompt[None]).logits[0, -1]
    expected = (logits / temperature).double().softmax(-1)
    share = torch.bincount(torch.cat(found), minlength=len(expected)).double() / count
    assert expected.max() < 0.9
    deviation = (expected * (1 - expected) / count).sqrt()
    assert bool(((share - expected).abs() < 5 * deviation + 1 / count).all())


def test_samples_stay_in_the_nucleus() -> None:
    model = tiny_model(1, 1).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40.0)
        probabilities, order = (
            model(input_ids=PROMPTS[1][None]).logits[0, -1].softmax(-1).sort(descending=True)
        )
    size = int((probabilities.cumsum(-1) < 0.5).sum()) + 1
    found = generate(
        model,
        [PROMPTS[1]] * 500,
        tokenizer=TOKENIZER,
        max_new_tokens=1,
        temperature=1.0,
        top_p=0.5,
        seed=0,
        batch_size=500,
    )
    assert 1 < size < 20
    assert set(torch.cat(found).tolist()) == set(order[:size].tolist())


def sampled(model: LlamaForCausalLM, seed: int | None) -> list[list[int]]:
    answers = generate(
        model, PROMPTS, tokenizer=TOKENIZER, max_new_tokens=5, temperature=1.0, seed=seed
    )
    return [ids.tolist() for ids in answers]


def test_a_seed_repeats_answers_and_leaves_the_generator_alone() -> None:
    model = tiny_model(1, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert sampled(model, 1) == sampled(model, 1) != sampled(model, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_generator_is_drawn_from() -> None:
    model = tiny_model(1, 1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = sampled(model, None), sampled(model, None)
    assert first != second
    torch.set_rng_state(state)
    assert sampled(model, None) == first


def test_mode_and_settings_are_restored() -> None:
    model = tiny_model(2, 1, attention_dropout=0.5)
    expected = [greedy(model.eval(), prompt, 6, [1]) for prompt in PROMPTS]
    model.train()
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model.model.layers[0].eval()  # one part is frozen
    modes = [module.training for module in model.modules()]
    own = model.generation_config
    settings = own.to_dict()
    found = generate(model, PROMPTS, tokenizer=TOKENIZER, max_new_tokens=6)
    assert [ids.tolist() for ids in found] == expected
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is own
    assert own.to_dict() == settings
    assert model.config.use_cache is False
    assert model.is_activation_checkpointing


def test_mode_is_restored_after_an_error() -> None:
    model = tiny_model(1, 1).train()
    with pytest.raises(RuntimeError), evaluation_mode(model):  # noqa: PT012
        assert not model.training
        raise RuntimeError
    assert model.training


def test_an_adapter_answers_too() -> None:
    model = tiny_model(1, 1)
    adapted = get_peft_model(
        model, LoraConfig(target_modules=["down_proj"], lora_alpha=512, init_lora_weights=False)
    )
    expected = [greedy(adapted.eval(), prompt, 4, [1]) for prompt in PROMPTS]
    own = adapted.generation_config
    found = generate(adapted, PROMPTS, tokenizer=TOKENIZER, max_new_tokens=4)
    assert [ids.tolist() for ids in found] == expected
    assert adapted.generation_config is own
    with adapted.disable_adapter():
        plain = [greedy(adapted, prompt, 4, [1]) for prompt in PROMPTS]
    assert plain != expected


def test_progress_counts_prompts() -> None:
    seen: list[int] = []
    generate(
        tiny_model(1, 1),
        PROMPTS,
        tokenizer=TOKENIZER,
        max_new_tokens=1,
        batch_size=2,
        on_batch=seen.append,
    )
    assert seen == [2, 2, 1]


def test_no_prompts() -> None:
    assert generate(tiny_model(1, 1), [], tokenizer=TOKENIZER, max_new_tokens=1) == []


def test_prompts_that_do_not_fit() -> None:
    model = tiny_model(1, 1)  # reads 128 tokens
    prompts = [torch.full((120,), 9), torch.full((121,), 9)]
    assert len(generate(model, prompts[:1], tokenizer=TOKENIZER, max_new_tokens=8)[0]) == 8
    with pytest.raises(InputError, match=r"row 1: its prompt has 121 tokens.*128.*may have 120"):
        generate(model, prompts, tokenizer=TOKENIZER, max_new_tokens=8)
    with pytest.raises(InputError, match="row 0: its prompt has no tokens"):
        generate(model, [prompts[0][:0]], tokenizer=TOKENIZER, max_new_tokens=8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or positive and finite, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\], got 1.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_parameters_out_of_range(changes: dict[str, float], says: str) -> None:
    settings: dict[str, float] = {"max_new_tokens": 2} | changes
    with pytest.raises(ValueError, match=says):
        generate(tiny_model(1, 1), PROMPTS, tokenizer=TOKENIZER, **settings)  # type: ignore[arg-type]
