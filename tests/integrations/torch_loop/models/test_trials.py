"""What a family does with packed rows and left padding is found out before anything is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families.build import tiny_family
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, words, write_jsonl
from transformers import PreTrainedModel

from amidmath.integrations import cache_teacher, torch_distill
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.torch_loop.models.generation import generate
from amidmath.integrations.torch_loop.models.modes import evaluation_mode
from amidmath.integrations.torch_loop.models.states import expose_states
from amidmath.integrations.torch_loop.models.trials import (
    answers_together,
    caches_right,
    check_adapter,
    check_causal,
    check_packing,
    check_padded,
    documents,
)

APART = ("llama", "qwen2", "gpt2", "gemma2", "mixtral")
TOGETHER = (
    "falcon",
    "opt",
    "bloom",
    "xglm",
    "biogpt",
    "gpt_oss",
    "afmoe",
    "jamba",
    "mamba",
    "rwkv",
)


def exposed(family: str, **changes: bool) -> PreTrainedModel:
    model = tiny_family(family, **changes)
    expose_states(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", APART)
def test_families_that_keep_rows_apart(family: str, dtype: torch.dtype) -> None:
    check_packing("student", exposed(family).to(dtype), "--packing")


@pytest.mark.parametrize("family", TOGETHER)
def test_families_whose_packed_rows_see_each_other(family: str) -> None:
    with pytest.raises(InputError, match=r"--packing true: the teacher, a \w+, does not"):
        check_packing("teacher", exposed(family), "--packing")


@pytest.mark.parametrize("family", ["llama", "opt", "rwkv"])
def test_answers_are_those_of_each_prompt_alone(family: str) -> None:
    model, tokenizer = exposed(family), byte_tokenizer()
    assert answers_together(model) == ("alone" if family == "rwkv" else "padded")
    prompts = [*documents(model), documents(model)[2] + 1]
    settings = {"tokenizer": tokenizer, "max_new_tokens": 6}
    together = generate(model, prompts, batch_size=4, **settings)
    for prompt, answer in zip(prompts, together, strict=True):
        assert torch.equal(generate(model, [prompt], **settings)[0], answer)


@pytest.mark.parametrize("family", ["roberta", "camembert"])
def test_families_that_generate_from_other_logits_than_their_own(family: str) -> None:
    """Generation numbers positions from 0, and these families' own passes do not."""
    with pytest.raises(InputError, match=r"^\w+ generates from other logits than it gives"):
        answers_together(exposed(family))


def test_a_model_whose_cache_is_wrong_generates_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exposed("llama")
    forward = model.forward

    def forgets(*args: object, past_key_values: object = None, **kwargs: object) -> object:
        return forward(*args, past_key_values=None, **kwargs)

    assert caches_right(exposed("llama"))
    monkeypatch.setattr(model, "forward", forgets)
    assert not caches_right(model)
    assert answers_together(model) == "padded"


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba", "rwkv"])
def test_padding_after_a_row_changes_nothing(family: str) -> None:
    check_padded("student", exposed(family))


def test_a_family_to_which_padding_after_a_row_means_something() -> None:
    with pytest.raises(InputError, match=r"the teacher, a ProphetNetForCausalLM, makes something"):
        check_padded("teacher", exposed("prophetnet"))


@pytest.mark.parametrize("family", ["llama", "mixtral", "laguna"])
def test_adapters_that_are_not_loaded_as_they_were_saved(family: str) -> None:
    """PEFT renames weights of Laguna on the way back, and finds no place for them."""
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(exposed(family), settings)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    if family == "laguna":
        with pytest.raises(InputError, match=r"PEFT does not load 6 of 32 weights .* gate_proj, "):
            check_adapter(model)
    else:
        check_adapter(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_an_adapter_that_no_gradient_reaches() -> None:
    """Reformer's reversible layers pass gradients on to what comes before them alone."""
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(exposed("reformer"), settings)
    with pytest.raises(InputError, match=r"a ReformerModelWithLMHead lets no gradient through"):
        check_adapter(model)


@pytest.mark.parametrize("target", ["lm_head", "v_proj"])
def test_an_adapter_on_one_layer_is_learned(target: str) -> None:
    settings = LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM")
    check_adapter(get_peft_model(exposed("llama"), settings))


def test_an_adapter_with_which_a_model_does_not_run() -> None:
    """Llama 4's router is a linear layer that returns two tensors, which PEFT does not know."""
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_family("llama4_text"), settings)
    with pytest.raises(InputError, match=r"as adapted .AttributeError.*--lora_target_modules"):
        expose_states(model.get_base_model())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_no_causal_model(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"the student, a BertGenerationDecoder, reads the tokens"):
        check_causal("student", exposed("bert-generation", is_decoder=False).to(dtype))
    check_causal("student", exposed("bert-generation").to(dtype))


def test_a_model_that_does_not_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exposed("llama")

    def none(**kwargs: object) -> None:
        raise ValueError("it has no way to")

    monkeypatch.setattr(model, "generate", none)
    with pytest.raises(InputError, match=r"does not generate .ValueError: it has no way to."):
        answers_together(model)


@pytest.mark.parametrize("role", ["student", "teacher", "cache"])
def test_a_run_is_refused(
    role: str,
    student_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "mamba"
    tiny_family("mamba").save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    student, teacher = (other, student_dir) if role == "student" else (student_dir, other)
    arguments = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", [{"text": "some text"}] * 8),
        "output_dir": tmp_path / "run",
        "packing": "true",
        "max_length": 64,
    }
    command = words(arguments)
    main: Callable[[list[str]], int] = cache_teacher.main if role == "cache" else torch_distill.main
    assert main(command) == 2
    who = "student" if role == "student" else "teacher"
    assert f"--packing true: the {who}, a MambaForCausalLM" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_attention_that_takes_16_bits_is_run_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_family("llama")
    with evaluation_mode(model):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with evaluation_mode(model):
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
