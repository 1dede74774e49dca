"""What a person reads when something given does not fit, to either script; nothing is written."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save, tiny_model, write_jsonl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from amidmath.integrations import jax_distill, torch_distill
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.settings.config import JaxConfig

ROWS = [{"text": "the teacher knows the answer. "}] * 8
SCRIPTS = {"torch": torch_distill.main, "jax": jax_distill.main}

# What these are arguments of; the JAX script does not know them.
TORCH_ONLY = {
    "--label_smoothing_factor": "transformers' Trainer",
    "--dataset_streaming": "TRL's ScriptArguments",
    "--trust_remote_code": "TRL's ModelConfig",
    "--loss_type": "TRL's SFTConfig",
    "--truncation_mode": "TRL's SFTConfig",
    "--router_aux_loss_coef": "TRL's SFTConfig",
    "--model_init_kwargs": "TRL's SFTConfig, for from_pretrained",
    "--eos_token": "TRL's SFTConfig",
}


@pytest.fixture
def good(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Arguments of a run that would work."""
    return {
        "--model_name_or_path": str(student_dir),
        "--teacher_model_name_or_path": str(teacher_dir),
        "--dataset_name": str(write_jsonl(tmp_path / "rows.jsonl", ROWS)),
        "--output_dir": str(tmp_path / "run"),
        "--max_length": "64",
        "--max_steps": "1",
    }


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    """Which script is run."""
    return str(request.param)


@pytest.fixture
def refuse(
    script: str, good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[dict[str, str | None]], str]:
    """Run with changed arguments (None leaves one out); gives the one-line error."""

    def run(changes: dict[str, str | None]) -> str:
        merged = {flag: value for flag, value in (good | changes).items() if value is not None}
        command = [word for flag, value in merged.items() for word in (flag, value) if word]
        assert SCRIPTS[script](command) == 2
        assert not (tmp_path / "run").exists()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return run


Refuse = Callable[[dict[str, str | None]], str]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--model_name_or_path": None}, ["--model_name_or_path must be given"]),
        ({"--dataset_name": None}, ["--dataset_name must be given"]),
        ({"--model_name_or_path": "no/model"}, ["--model_name_or_path", "'no/model'", "folder"]),
        ({"--teacher_model_name_or_path": "no/model"}, ["--teacher_model_name_or_path", "no/mo"]),
        ({"--dataset_name": "no/dataset"}, ["--dataset_name", "'no/dataset'"]),
        ({"--dataset_name": "no.jsonl"}, ["--dataset_name", "no such file: no.jsonl"]),
        ({"--dataset_train_split": "training"}, ["--dataset_train_split", "'training'", "train"]),
        ({"--lam": "1.2"}, ["--lam", "[0, 1]", "1.2"]),
        ({"--alpha": "nan"}, ["--alpha", "nan"]),
        ({"--temperature": "0"}, ["--temperature must be positive", "0.0"]),
        ({"--order": "qp"}, ["--order", "'qp'", "pr", "rq"]),
        ({"--divergence": "kl2"}, ["--divergence", "'kl2'", "alpha_beta"]),
        ({"--eval_fraction": "1.5"}, ["--eval_fraction", "between 0 and 1", "1.5"]),
        ({"--max_eval_samples": "0"}, ["--max_eval_samples", "at least 1"]),
        ({"--max_length": "4096"}, ["--max_length 4096", "context of 128", "--max_length 128"]),
        ({"--label_smoothing_factor": "0.1"}, ["--label_smoothing_factor 0.1", "leave it out"]),
        ({"--loss_type": "dft"}, ["--loss_type dft", "leave it out"]),
        ({"--trust_remote_code": "true"}, ["--trust_remote_code", "never run"]),
        ({"--dataset_streaming": "true"}, ["--dataset_streaming"]),
        ({"--config": "no.yaml"}, ["--config", "no.yaml"]),
        ({"--max_length": "0"}, ["--max_length must be at least 2", "0"]),
        ({"--max_steps": "0"}, ["--max_steps 0", "no step"]),
        ({"--divergence": "alpha_beta"}, ["--divergence_kwargs", "alpha, beta"]),
        ({"--divergence_kwargs": '{"alpha": 1}'}, ["--divergence_kwargs", "kl", "'alpha'"]),
        ({"--divergence_kwargs": "alpha=1"}, ["--divergence_kwargs", "JSON", "alpha=1"]),
        ({"--divergence_kwargs": "[1]"}, ["--divergence_kwargs", "JSON object", "[1]"]),
        (
            {"--divergence": "renyi", "--divergence_kwargs": '{"rho": -1}'},
            ["--divergence_kwargs", "rho", "positive", "-1"],
        ),
        ({"--alpha": "abc"}, ["--alpha", "'abc'"]),
        ({"--dataset_test_split": "validation"}, ["--dataset_test_split", "'validation'"]),
        ({"--dataset_config": "en"}, ["--dataset_config en", "is local"]),
        ({"--truncation_mode": "keep_end"}, ["--truncation_mode keep_end", "leave it out"]),
        ({"--router_aux_loss_coef": "5"}, ["--router_aux_loss_coef 5", "leave it out"]),
        ({"--model_init_kwargs": '{"token": "hf_SECRET"}'}, ["token", "HF_TOKEN"]),
        ({"--model_init_kwargs": '{"trust_remote_code": true}'}, ["trust_remote_code", "never"]),
        ({"--use_peft": "true", "--lora_target_modules": "nothing"}, ["nothing"]),
        ({"--eos_token": "<none>"}, ["<none>"]),
        ({"--lambda": "0.1"}, ["unknown argument --lambda", "did you mean --lam?"]),
        ({"--resume_from_checkpoint": "true"}, ["--resume_from_checkpoint", "no checkpoint"]),
        ({"--policy": "on_policy", "--packing": "true"}, ["on_policy", "leave out --packing"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments(
    script: str, refuse: Refuse, changes: dict[str, str | None], says: list[str]
) -> None:
    error = refuse(changes)
    unknown = [flag for flag in changes if flag in TORCH_ONLY] if script == "jax" else []
    if unknown:
        says = [f"unknown argument {unknown[0]}"]
    for words in says:
        assert words in error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adam_beta1": 1.0}, r"--adam_beta1 must lie in \[0, 1\), got 1.0"),
        ({"adam_beta2": -0.1}, r"--adam_beta2 must lie in \[0, 1\), got -0.1"),
        ({"adam_beta2": math.nan}, r"--adam_beta2 must lie in \[0, 1\), got nan"),
        ({"adam_epsilon": 0.0}, "--adam_epsilon must be positive and finite, got 0.0"),
        ({"num_train_epochs": math.nan}, "--num_train_epochs must be finite, got nan"),
        ({"num_train_epochs": math.inf}, "--num_train_epochs must be finite, got inf"),
        ({"dataset_num_proc": 0}, r"--dataset_num_proc must lie in \[1, 1024\], got 0"),
    ],
    ids=str,
)
def test_numbers_of_the_jax_script(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        JaxConfig(**changes)
    JaxConfig(adam_beta1=0.0, dataset_num_proc=1)


def test_a_warm_up_beyond_the_last_step_is_said(
    good: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = good | {"--max_steps": "-1", "--num_train_epochs": "2", "--warmup_steps": "3"}
    words = [word for pair in changed.items() for word in pair]
    assert jax_distill.main([*words, "--dry_run"]) == 0
    assert "--warmup_steps 3 is more than the 2 steps of the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], ["has no rows"]),
        ([{"question": "why?"}] * 4, ["['question']", "'messages'", "--dataset_text_field"]),
        ([{"prompt": "why?"}] * 4, ["['prompt']", "completion"]),
        ([{"text": "only one"}], ["one row"]),
        ([{"text": "good"}, {"text": None}], ["row 1", "'text'", "None"]),
        ([{"text": 17}] * 4, ["row 0", "'text'", "17"]),
        ([{"prompt": "why?", "completion": 1.5}] * 4, ["row 0", "'completion'", "1.5"]),
        ([{"messages": [{"who": "me", "says": "hi"}]}] * 4, ["row 0", "messages[0]", "'role'"]),
        ([{"messages": []}] * 4, ["row 0", "'messages'", "[]"]),
        (
            [{"prompt": "why? " * 20, "completion": "so"}] * 4,
            ["prompt has 100 tokens", "--max_length 64", "raise --max_length"],
        ),
        ([{"prompt": "why?", "completion": ""}] * 4, ["no token to learn", "drop_unlearnable"]),
        (
            [{"messages": [{"role": "narrator", "content": "then"}]}] * 4,
            ["train row ", "'narrator'", "--drop_unlearnable_rows"],
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}] * 4,
            ["row 0", "messages[0]", "'image'", "no text"],
        ),
        ([{"input_ids": [3, 99999]}] * 4, ["train row ", "token 99999", "position 1"]),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_datasets(
    refuse: Refuse, rows: list[dict[str, object]], says: list[str], tmp_path: Path
) -> None:
    error = refuse({"--dataset_name": str(write_jsonl(tmp_path / "bad.jsonl", rows))})
    for words in says:
        assert words in error


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.parquet", "data.xyz"])
def test_unreadable_files(refuse: Refuse, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"text": "never closed')
    assert str(path) in refuse({"--dataset_name": str(path)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("alpha: [1, 2", ["is no YAML file"]),
        ("- alpha\n- lam\n", ["argument: value"]),
        ("", ["argument: value"]),
        ("seed: 1.5", ["--seed", "1.5"]),
        ("packing_strategy: tight", ["--packing_strategy", "'tight'", "bfd"]),
        ("lambda: 0.1", ["unknown argument --lambda", "--lam"]),
    ],
    ids=["malformed", "list", "empty", "type", "choice", "unknown"],
)
def test_config_files(refuse: Refuse, tmp_path: Path, content: str, says: list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    error = refuse({"--config": str(path)})
    for words in says:
        assert words in error


@pytest.fixture
def broken(student_dir: Path, tmp_path: Path) -> Path:
    """A copy of the student to break."""
    return Path(shutil.copytree(student_dir, tmp_path / "broken"))


def test_damaged_weights(refuse: Refuse, broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "--model_name_or_path" in refuse({"--model_name_or_path": str(broken)})


def test_missing_weights(refuse: Refuse, broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    error = refuse({"--model_name_or_path": str(broken)})
    assert "lacks 1 of the model's" in error
    assert "model.layers.0.mlp.up_proj.weight" in error


def test_pickled_weights_are_not_read(refuse: Refuse, broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    assert "safetensors" in refuse({"--model_name_or_path": str(broken)})


def test_code_of_a_model_is_not_run(refuse: Refuse, broken: Path, tmp_path: Path) -> None:
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    config = json.loads((broken / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (broken / "config.json").write_text(json.dumps(config))
    refuse({"--model_name_or_path": str(broken)})
    assert not (tmp_path / "was_run").exists()


def test_an_adapter_on_an_adapter(refuse: Refuse, good: dict[str, str], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(good["--model_name_or_path"])
    get_peft_model(base, LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(good["--model_name_or_path"]).save_pretrained(
        tmp_path / "adapter"
    )
    changes = {"--model_name_or_path": str(tmp_path / "adapter"), "--use_peft": "true"}
    error = refuse(changes)
    assert f"{tmp_path / 'adapter'} is an adapter" in error
    assert "merge it into its base first" in error


def test_an_empty_model_folder(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = refuse({"--model_name_or_path": str(tmp_path / "empty")})
    assert f"the folder {tmp_path / 'empty'} holds no" in error


def test_a_model_without_a_tokenizer(refuse: Refuse, tmp_path: Path) -> None:
    tiny_model(1, 0).save_pretrained(tmp_path / "bare")
    error = refuse({"--teacher_model_name_or_path": str(tmp_path / "bare")})
    assert "holds no tokenizer" in error


def test_unequal_tokenizers(refuse: Refuse, tmp_path: Path) -> None:
    folder = save(tiny_model(1, 0, vocab_size=512), tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["teacher"])
    tokenizer.save_pretrained(folder)
    error = refuse({"--teacher_model_name_or_path": str(folder)})
    assert "'teacher'" in error
    assert "--vocab common" in error


def test_tokenizers_of_two_families(refuse: Refuse, tmp_path: Path) -> None:
    folder = save(tiny_model(1, 0), tmp_path / "other")
    letters = {chr(0x4E00 + i): i for i in range(384)}
    Tokenizer(WordLevel(letters, unk_token=next(iter(letters)))).save(str(folder / "t.json"))
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "t.json")).save_pretrained(folder)
    error = refuse({"--teacher_model_name_or_path": str(folder)})
    assert "different tokenizers" in error
    assert "one model family" in error


def test_unequal_vocabularies(refuse: Refuse, tmp_path: Path) -> None:
    folder = save(tiny_model(1, 0, vocab_size=512), tmp_path / "padded")
    error = refuse({"--teacher_model_name_or_path": str(folder)})
    assert "384 and 512" in error


def test_an_output_that_is_a_file(refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    assert "is a file" in refuse({"--output_dir": str(path)})
    assert path.read_text() == "mine"


def test_rows_left_out_on_request_are_counted(
    script: str, good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "why? ", "completion": "so"}] * 8
    rows[3] = {"prompt": "why? " * 20, "completion": "so"}
    data = str(write_jsonl(tmp_path / "some.jsonl", rows))
    changed = good | {"--dataset_name": data, "--eval_dataset_name": good["--dataset_name"]}
    command = [word for pair in changed.items() for word in pair]
    command += ["--drop_unlearnable_rows", "--policy", "adaptive", "--buffer_capacity", "1"]
    assert SCRIPTS[script](command) == 2
    captured = capsys.readouterr()
    assert "Left out: 1 of 8 train rows" in captured.out
    assert "--buffer_capacity 1 is less than the 8 rows" in captured.err
