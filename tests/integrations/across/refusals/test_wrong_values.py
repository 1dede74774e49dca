"""Flags × wrong values: a line that names the flag, found before anything is written, or a run."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import words, write_jsonl

from amidmath.integrations import jax_distill, torch_distill
from amidmath.integrations.common.cli.ranges import RANGES
from amidmath.integrations.common.errors import InputError, while_preparing
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.torch_loop.settings.config import AMiDConfig

CONFIGS: dict[str, Callable[..., Any]] = {"torch": AMiDConfig, "jax": JaxConfig}
SCRIPTS = {"torch": torch_distill.main, "jax": jax_distill.main}
VALUES = (0, -1, 10**12, math.nan, math.inf, -math.inf)


def numeric(kind: Any) -> dict[str, tuple[float, ...]]:
    """The flags of a configuration that take numbers, and wrong ones of what the line can say."""
    found: dict[str, tuple[float, ...]] = {}
    for each in dataclasses.fields(kind):
        kinds = str(each.type)
        if each.init and "dict" not in kinds and ("float" in kinds or "int" in kinds):
            found[each.name] = VALUES if "float" in kinds else VALUES[:3]
    return found


def refusal(make: Callable[[], Any]) -> str | None:
    """What is said of arguments that are refused."""
    try:
        with while_preparing():
            make()
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("framework", CONFIGS)
def test_every_number_is_taken_or_refused_by_its_flag(framework: str, tmp_path: Path) -> None:
    make, folder = CONFIGS[framework], str(tmp_path / "run")
    flags = numeric(make)
    assert len(flags) > 25
    for name, values in flags.items():
        for value in values:
            said = refusal(partial(make, output_dir=folder, **{name: value}))
            if said is not None:
                assert "\n" not in said
                assert name in said.replace("-", "_"), f"{name} {value}: {said}"
            else:
                infinite = name == "alpha" and abs(value) == math.inf
                assert math.isfinite(value) or infinite, f"{name} takes {value}"
                assert name not in RANGES or RANGES[name].holds(value), f"{name} takes {value}"
    assert not (tmp_path / "run").exists()


BOTH: list[tuple[str, str, str]] = [
    ("gradient_accumulation_steps", "0", "--gradient_accumulation_steps must be at least 1, got 0"),
    ("logging_steps", "0", "--logging_steps must be"),
    ("learning_rate", "0", "--learning_rate 0 trains nothing"),
    ("learning_rate", "inf", "--learning_rate must be at least 0 and finite, got inf"),
    ("warmup_steps", "1", "--warmup_steps 1: the learning rate is 0 at each of the 1 steps"),
    ("num_train_epochs", "nan", "--num_train_epochs must be finite, got nan"),
    ("save_total_limit", "-1", "--save_total_limit must be at least 1, got -1"),
    ("weight_decay", "-1", "--weight_decay must be at least 0"),
    ("seed", "-1", "--seed must"),
    ("optim", "ADAMW", "--optim"),
    ("vocab", "COMMON", "--vocab"),
    ("bf16", "perhaps", "--bf16"),
    ("max_steps", "", "--max_steps"),
    ("dataset_name", "", "--dataset_name must be given"),
]
TORCH = [
    ("bf16", "true", "--bf16 true: there is no GPU here"),
    ("fp16", "true", "--fp16 true: there is no GPU here"),
    ("deepspeed", "zero3.json", "--deepspeed zero3.json: DeepSpeed is not installed"),
    ("activation_offloading", "true", "--activation_offloading true: there is no accelerator"),
    ("metric_for_best_model", "accuracy", "--metric_for_best_model accuracy: evaluations give"),
    ("neftune_noise_alpha", "-1", "--neftune_noise_alpha must be positive"),
    ("logging_nan_inf_filter", "true", "--logging_nan_inf_filter True: it would log"),
    ("activation_checkpointing_kwargs", "x", "--activation_checkpointing_kwargs must be a JSON"),
    ("lora_r", "0", "--lora_r must be at least 1"),
    ("lora_r", "4", "--lora_r 4: without an adapter the whole student would be trained"),
    ("pad_to_multiple_of", "x", "--pad_to_multiple_of must be auto or a whole number"),
    ("pad_to_multiple_of", "0", "--pad_to_multiple_of must be at least 1"),
    ("accelerator_config", "nonsense", "nonsense"),
]


@pytest.fixture
def good(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run that would work."""
    return {
        "model_name_or_path": student_dir,
        "teacher_model_name_or_path": teacher_dir,
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", [{"text": "some text"}] * 8),
        "output_dir": tmp_path / "run",
        "max_length": 32,
        "max_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": "true",
    }


CASES = [(name, *case) for name in SCRIPTS for case in BOTH] + [("torch", *c) for c in TORCH]


@pytest.mark.parametrize(("framework", "flag", "value", "says"), CASES)
def test_a_wrong_value_is_one_line_before_anything_is_written(
    framework: str,
    flag: str,
    value: str,
    says: str,
    good: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert SCRIPTS[framework](words(good | {flag: value})) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert says in said[0]
    assert not (tmp_path / "run").exists()


def test_one_name_of_a_layer_is_enough_for_an_adapter(good: dict[str, Any], tmp_path: Path) -> None:
    adapter = {"use_peft": "true", "lora_target_modules": "q_proj"}
    assert torch_distill.main(words(good | adapter)) == 0
    assert (tmp_path / "run" / "student" / "adapter_model.safetensors").exists()


def test_joined_rows_without_packing_train(good: dict[str, Any]) -> None:
    assert torch_distill.main(words(good | {"padding_free": "true"})) == 0
