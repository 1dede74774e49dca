"""Hidden states and heads of the model families, their adapters and their refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.objective import compare
from amidmath.integrations.torch_loop.models.states import (
    States,
    expose_states,
    gives_logits,
    head_of,
    logits_of,
)

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2_SIZES = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


def _models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {
        "llama": tiny_model(layers=2, seed=0),
        "tied": tiny_model(layers=2, seed=0, tie_word_embeddings=True),
        "soft cap": Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=0.3)),
        "divided": GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
        "multiplied": CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
        "bias": PhiForCausalLM(PhiConfig(**SIZES)),
        "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    }


def _logits(states: States) -> torch.Tensor:
    return states.logits


@pytest.mark.parametrize("name", list(_models()))
def test_head_and_states_make_the_models_logits(name: str) -> None:
    model = _models()[name].eval()
    if name == "bias":
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    ids = torch.arange(24).view(2, 12) * 5 % 61
    expected = model(input_ids=ids).logits
    expose_states(model)
    found = model(input_ids=ids, with_states=_logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=0)


def test_packed_positions_reach_the_backbone() -> None:
    model = tiny_model(layers=2, seed=0).eval()
    inputs = {
        "input_ids": torch.arange(12)[None] + 3,
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]]),
    }
    ids = inputs["input_ids"]
    alone = [model(input_ids=part).logits for part in (ids[:, :4], ids[:, 4:])]
    expose_states(model)
    found = model(**inputs, with_states=_logits)
    torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["q_proj", "lm_head", "saved"])
def test_an_adapter_is_in_the_states_and_not_in_the_base_head(target: str) -> None:
    base = tiny_model(layers=2, seed=0)
    ids = torch.arange(10)[None] + 3
    plain = base.eval()(input_ids=ids).logits
    targets = ["q_proj"] if target == "saved" else [target]
    saved = ["lm_head"] if target == "saved" else None
    model = get_peft_model(
        base, LoraConfig(target_modules=targets, modules_to_save=saved, init_lora_weights=False)
    ).eval()
    if target == "saved":
        trained = model.base_model.model.lm_head.modules_to_save["default"].weight
        with torch.no_grad():
            trained.add_(torch.randn_like(trained))
    expected = model(input_ids=ids).logits
    expose_states(model.get_base_model())
    torch.testing.assert_close(
        model(input_ids=ids, with_states=_logits), expected, rtol=1e-5, atol=1e-5
    )
    with model.disable_adapter():
        states = model(input_ids=ids, with_states=lambda states: states)
        off = states.logits
        torch.testing.assert_close(off, plain, rtol=1e-5, atol=1e-5)
    on = model(input_ids=ids, with_states=lambda states: states)
    bare = logits_of(states.hidden, on.base_head)
    torch.testing.assert_close(bare, plain, rtol=1e-5, atol=1e-5)
    assert not on.base_head.weight.requires_grad


def test_gradients_reach_an_adapter_on_the_head() -> None:
    model = get_peft_model(tiny_model(layers=1, seed=0), LoraConfig(target_modules=["lm_head"]))
    expose_states(model.get_base_model())
    model(input_ids=torch.arange(6)[None], with_states=_logits).square().sum().backward()
    layer = model.base_model.model.lm_head
    assert layer.lora_B["default"].weight.grad.abs().sum() > 0
    assert layer.base_layer.weight.grad is None


def test_dropout_on_the_head_is_refused() -> None:
    model = get_peft_model(
        tiny_model(layers=1, seed=0), LoraConfig(target_modules=["lm_head"], lora_dropout=0.1)
    )
    with pytest.raises(InputError, match=r"--lora_dropout 0\.1 on the output layer"):
        head_of(model.get_base_model())


def shifted() -> PreTrainedModel:
    class Shifted(type(tiny_model(layers=1, seed=0))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + torch.arange(384) / 384
            return output

    return Shifted(tiny_model(layers=1, seed=0).config)


def nested() -> PreTrainedModel:
    model = tiny_model(layers=1, seed=0)
    model.lm_head = torch.nn.Sequential(model.lm_head)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("make", [shifted, nested])
def test_logits_made_in_an_unknown_way_are_taken_whole(
    make: Callable[[], PreTrainedModel],
) -> None:
    model, ids = make().eval(), torch.arange(12)[None] + 3
    expected = model(input_ids=ids).logits
    expose_states(model)
    assert gives_logits(model)
    states = model(input_ids=ids, with_states=lambda states: states)
    assert states.head is None
    torch.testing.assert_close(states.logits, expected, rtol=0, atol=0)
    assert states.first(7).vocabulary == 7
    assert not gives_logits(tiny_model(layers=1, seed=0))


@pytest.mark.parametrize("tokens", [None, 5])
@pytest.mark.parametrize("sizes", [(8, 8), (8, 5), (5, 8)])
@pytest.mark.parametrize("whole", ["student", "teacher", "both"])
def test_whole_logits_have_the_loss_of_hidden_states(
    whole: str, sizes: tuple[int, int], tokens: int | None
) -> None:
    torch.manual_seed(0)
    heads = [am.Head(torch.randn(size, 4), bias=torch.randn(size)) for size in sizes]
    hidden = [torch.randn(2, 6, 4, requires_grad=n == 0) for n in range(2)]
    labels = torch.randint(0, min(sizes), (2, 6))
    labels[0, :3] = -100
    loss = am.AMiD(am.KL(), alpha=-1.0, lam=0.2) + am.AMiD(am.TotalVariation(), lam=0.3)
    found = {}
    for chosen in ("none", whole):
        states = [
            States(logits_of(x, head))
            if chosen in (name, "both")
            else States(am.Hidden(x, head), head)
            for name, x, head in zip(("student", "teacher"), hidden, heads, strict=True)
        ]
        batch = Batch(labels, None, "common", 0.5, tokens=tokens)
        value = compare(loss, states[0], states[1], batch.mask, batch)
        found[chosen] = (value, *torch.autograd.grad(value, hidden[:1]))
    torch.testing.assert_close(found[whole], found["none"], rtol=1e-5, atol=1e-6)
