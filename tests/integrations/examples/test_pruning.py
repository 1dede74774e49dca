from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from amidmath.integrations.examples.pruning import main, prune_layers

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {
    "vocab_size": 384,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LAYERS = [0, 2, 5]
INPUT_IDS = torch.arange(3, 15).reshape(2, 6)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def teacher(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=request.param)).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


def test_keeps_weights(teacher: LlamaForCausalLM) -> None:
    student = prune_layers(teacher, LAYERS)
    assert type(student) is LlamaForCausalLM
    expected = {
        name: value
        for name, value in teacher.state_dict().items()
        if not name.startswith("model.layers.")
    }
    for new, old in enumerate(LAYERS):
        for name, value in teacher.model.layers[old].state_dict().items():
            expected[f"model.layers.{new}.{name}"] = value
    state = student.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


def test_all_layers_give_teacher_logits(teacher: LlamaForCausalLM) -> None:
    assert torch.equal(logits(prune_layers(teacher, range(6))), logits(teacher))


def test_leaves_teacher_untouched(teacher: LlamaForCausalLM) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = teacher.config.to_dict()
    student = prune_layers(teacher, LAYERS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert teacher.config.to_dict() == config
    assert [layer.self_attn.layer_idx for layer in teacher.model.layers] == list(range(6))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_renumbers(teacher: LlamaForCausalLM) -> None:
    student = prune_layers(teacher, LAYERS)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]
    assert student.config.num_hidden_layers == student.model.config.num_hidden_layers == 3
    assert student.model.layers[2].self_attn.config is student.config


def test_keeps_ties(teacher: LlamaForCausalLM) -> None:
    student = prune_layers(teacher, LAYERS)
    tied = student.lm_head.weight is student.model.embed_tokens.weight
    assert tied == teacher.config.tie_word_embeddings


def test_save_load_round_trip(teacher: LlamaForCausalLM, tmp_path: Path) -> None:
    student = prune_layers(teacher, LAYERS)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(student))
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == teacher.config.tie_word_embeddings


def test_generation_with_cache(teacher: LlamaForCausalLM) -> None:
    student = prune_layers(teacher, LAYERS)
    with_cache, without = (
        student.generate(
            INPUT_IDS,
            attention_mask=torch.ones_like(INPUT_IDS),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    )
    assert with_cache.shape == (2, 14)
    assert torch.equal(with_cache, without)


def test_per_layer_config_follows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kinds = ["full_attention", "sliding_attention"] * 3
    config = Qwen2Config(**SIZES, layer_types=kinds, sliding_window=3, use_sliding_window=True)
    student = prune_layers(Qwen2ForCausalLM(config).eval(), LAYERS)
    assert student.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(student))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"layers must name at least one layer to keep, got \[\]"),
        ([0, 6], r"layers must lie in 0\.\.5, got 6"),
        ([-1, 2], r"layers must lie in 0\.\.5, got -1"),
        ([0, 3, 3], r"layers must be strictly increasing, got 3 after 3"),
        ([4, 1], r"layers must be strictly increasing, got 1 after 4"),
    ],
)
def test_bad_layers(teacher: LlamaForCausalLM, layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_layers(teacher, layers)


def test_other_architecture() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match=r"in model\.model\.layers, GPT2LMHeadModel does not"):
        prune_layers(model, [0])


def test_config_that_cannot_follow() -> None:
    config = Qwen3MoeConfig(**SIZES, mlp_only_layers=[1], num_experts=2, moe_intermediate_size=8)
    model = Qwen3MoeForCausalLM(config)
    assert prune_layers(model, [0, 1]).config.num_hidden_layers == 2
    with pytest.raises(ValueError, match=r"layers \[1, 2\] do not make a Qwen3MoeForCausalLM"):
        prune_layers(model, [1, 2])


def test_command_line(
    teacher: LlamaForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "teacher", tmp_path / "out" / "student"
    teacher.save_pretrained(source)
    ByT5Tokenizer().save_pretrained(source)
    arguments = ["--teacher_model_name_or_path", str(source), "--output_dir", str(output)]

    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--layers", "0,9"])
    assert stopped.value.code
    assert "layers must lie in 0..5, got 9" in capsys.readouterr().err
    assert not output.exists()

    output.mkdir(parents=True)
    main([*arguments, "--layers", "0,2,5"])
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(logits(loaded), logits(prune_layers(teacher, LAYERS)))
    assert (output / "tokenizer_config.json").exists()
    assert list(output.parent.iterdir()) == [output]

    config = (output / "config.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--layers", "0"])
    assert stopped.value.code
    assert f"{output} is not an empty directory" in capsys.readouterr().err
    assert (output / "config.json").read_bytes() == config
