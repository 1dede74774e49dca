"""Which configurations are read, and that no setting is passed over."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from tiny_families import VARIANTS, tiny_family
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.models.decoder_config import Llama3Scaling, Rotary
from amidmath.integrations.jax_loop.models.families import FAMILIES, read_config


def configuration(model_type: str, **settings: Any) -> PreTrainedConfig:
    found: PreTrainedConfig = AutoConfig.for_model(model_type, **settings)
    return found


def test_the_variants_are_of_all_families() -> None:
    assert {model_type for model_type, _ in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_defaults_of_a_family_are_read(model_type: str) -> None:
    read_config(configuration(model_type))


def test_settings_become_the_shape() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = read_config(
        configuration(
            "llama",
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=2,
            rope_theta=5e5,
            rope_scaling=rope | {"original_max_position_embeddings": 8192},  # the older way
            mlp_bias=True,
            tie_word_embeddings=True,
        )
    )
    assert (found.heads, found.kv_heads, found.head_dim, found.query_scale) == (4, 2, 16, 0.25)
    assert (found.mlp_bias, found.qkv_bias, found.tied) == (True, False, True)
    assert found.rotaries == (Rotary(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192.0)),) * 2

    gemma = read_config(configuration("gemma3_text", num_hidden_layers=7, sliding_window=512))
    assert gemma.windows == (512,) * 5 + (None, 512)
    assert [rotary.theta for rotary in gemma.rotaries] == [1e4] * 5 + [1e6, 1e4]
    qwen = read_config(configuration("qwen2", num_hidden_layers=2))
    assert qwen.windows == (None, None)  # without use_sliding_window


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("mixtral", {}, r"model_type 'mixtral' is not supported; supported are llama, mistral,"),
        ("llama", {"hidden_act": "quick_gelu"}, "activation 'quick_gelu'"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ("llama", {"num_experts": 4}, "num_experts = 4"),
        ("llama", {"sliding_window": 64}, "sliding_window = 64"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved = True"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "one of default, linear"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "one of default"),
        ("llama", {"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "type default are"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types"),
        ("qwen3", {"layer_types": ["chunked_attention"], "num_hidden_layers": 1}, "chunked"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma2", {"sliding_window": None}, "sliding_window is None"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping = 5.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
    ],
)
def test_what_is_not_supported_is_refused(
    model_type: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_config(configuration(model_type, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_interleaved": False, "num_experts": 0, "is_llama_config": True},
        {"attention_dropout": 0.3, "pretraining_tp": 2, "use_cache": False},
        {"partial_rotary_factor": 1.0},
    ],
)
def test_what_does_not_matter_is_not_refused(settings: dict[str, Any]) -> None:
    assert read_config(configuration("llama", **settings)) == read_config(configuration("llama"))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_setting_that_is_new_in_transformers_is_refused(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(model_type)
    name = next(field.name for field in fields(config) if field.name == "use_cache")
    neutral = "amidmath.integrations.jax_loop.models.family_settings._NEUTRAL"
    monkeypatch.setattr(neutral, {f.name for f in fields(config)} - {name})
    read_config(config)
    config.use_cache = False
    with pytest.raises(InputError, match="its setting use_cache = False is not supported"):
        read_config(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotary_frequencies_are_those_of_transformers(variant: str) -> None:
    config = tiny_family(variant).config
    shape = read_config(config)
    if config.model_type == "gpt2":
        assert shape.rotaries == ()
        return
    kinds = getattr(config, "layer_types", None) if config.model_type == "gemma3_text" else None
    for layer, rotary in enumerate(shape.rotaries):
        rope = config.rope_parameters[kinds[layer]] if kinds else config.rope_parameters
        found = rotary.frequencies(shape.head_dim)
        assert found.dtype == np.float32
        if rope["rope_type"] == "default":
            exact = rope["rope_theta"] ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
        else:
            exact = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)[0].numpy()
        np.testing.assert_allclose(found, exact, rtol=3e-7)
