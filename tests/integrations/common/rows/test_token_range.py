"""Tokens of rows that a model has no embedding for."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console
from tiny import byte_tokenizer, save, tiny_model, vocabulary_size, words, write_jsonl

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.token_range import check_prompts, check_tokens
from amidmath.integrations.common.text.tokenizers import padding
from amidmath.integrations.jax_loop.run import cache_source as jax_source
from amidmath.integrations.jax_loop.run.loading import prepare as prepare_jax
from amidmath.integrations.jax_loop.settings import cache_arguments as jax_cache
from amidmath.integrations.jax_loop.settings.arguments import parse_arguments as jax_arguments
from amidmath.integrations.torch_loop.run import cache_source as torch_source
from amidmath.integrations.torch_loop.run.loading import prepare as prepare_torch
from amidmath.integrations.torch_loop.settings import cache_arguments as torch_cache
from amidmath.integrations.torch_loop.settings.arguments import parse_arguments as torch_arguments

SIZE = vocabulary_size()
LOAD: dict[str, Callable[[list[str]], Any]] = {
    "torch": lambda words: prepare_torch(torch_arguments([*words, "--use_cpu"])),
    "jax": lambda words: prepare_jax(jax_arguments(words), print),
    "torch cache": lambda words: torch_source.load(
        torch_cache.parse_arguments([*words, "--use_cpu", "--k", "4"]), Console()
    ),
    "jax cache": lambda words: jax_source.load(
        jax_cache.parse_arguments([*words, "--k", "4"]), Console()
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers with one token more than embeddings, as Gemma 3's; and a student that has it."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"])
    for name, size in (("student", SIZE), ("teacher", SIZE), ("larger", SIZE + 1)):
        save(tiny_model(1, 1, vocab_size=size), folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def told(models: Path, rows: list[dict[str, Any]], tmp_path: Path, **changes: Any) -> list[str]:
    given = {
        "model_name_or_path": models / "student",
        "teacher_model_name_or_path": models / "teacher",
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", rows),
        "output_dir": tmp_path / "run",
        "max_length": 32,
        "eval_fraction": 0.2,
        "train_sampling_strategy": "sequential",
        **changes,
    }
    return words(given)


@pytest.mark.parametrize("loop", LOAD)
def test_a_token_that_no_row_uses_is_no_matter(loop: str, models: Path, tmp_path: Path) -> None:
    fine = [{"text": "the teacher knows"}] * 8
    LOAD[loop](told(models, fine, tmp_path))
    fine[2] = {"text": "see <image> here"}
    test = str(write_jsonl(tmp_path / "test.jsonl", fine[:2]))
    given = told(models, fine, tmp_path, eval_dataset_name=test)
    role = "teacher" if "cache" in loop else "student"
    last = SIZE - 1
    says = rf"train row 2: token {SIZE} \('<image>'\) at position 4 is beyond those that the "
    with pytest.raises(InputError, match=rf"{says}(student|{role}) reads, which end at {last}:"):
        LOAD[loop](given)
    assert not (tmp_path / "run" / "student").exists()


@pytest.mark.parametrize("loop", LOAD)
def test_tokens_that_only_the_student_has(loop: str, models: Path, tmp_path: Path) -> None:
    rows = [{"text": "the teacher knows"}] * 7 + [{"text": "<image>"}]
    test = str(write_jsonl(tmp_path / "test.jsonl", rows[:2]))
    changes = {"model_name_or_path": models / "larger", "vocab": "common"}
    given = told(models, rows, tmp_path, eval_dataset_name=test, **changes)
    with pytest.raises(InputError, match=rf"train row 7: token {SIZE} .* the teacher reads"):
        LOAD[loop](given)
    LOAD[loop](told(models, rows[:7], tmp_path, eval_dataset_name=test, **changes))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too large": ({"input_ids": [3, SIZE]}, rf"token {SIZE} \('<image>'\) at position 1 is beyond"),
    "much too large": ({"input_ids": [3, 99999, 4]}, "token 99999 at position 1 is beyond"),
    "negative": ({"input_ids": [3, 4, -1]}, "token -1 at position 2 is no token"),
    "label": ({"input_ids": [3, 4], "labels": [3, -1]}, "label -1 at position 1 is no token"),
    "large label": ({"input_ids": [3, 4], "labels": [-100, SIZE]}, f"label {SIZE} at position 1"),
    "null": ({"input_ids": [3, None]}, "no integers of 32 bits in column 'input_ids'"),
    "none": ({"input_ids": None}, "no integers of 32 bits in column 'input_ids', but None"),
    "wide": ({"input_ids": [3, 2**40]}, "no integers of 32 bits in column 'input_ids'"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("loop", ["torch", "jax"])
def test_ids_that_are_given(name: str, loop: str, models: Path, tmp_path: Path) -> None:
    bad, says = BAD[name]
    good = {"input_ids": [3, 4]} | ({"labels": [-100, 4]} if "labels" in bad else {})
    given = told(models, [good, good, bad, good], tmp_path)
    test = str(write_jsonl(tmp_path / "test.jsonl", [good]))
    with pytest.raises(InputError, match=f"train row 2.*{says}"):
        LOAD[loop]([*given, "--eval_dataset_name", test])


def test_rows_of_any_lengths() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(0, 5, 12)
        ids = [rng.integers(0, 9, n).tolist() for n in lengths]
        labels = [[-100] * n for n in lengths]
        check_tokens(Dataset.from_dict({"input_ids": ids, "labels": labels}), {"a": 9}, "x", None)
        row = int(rng.choice(np.flatnonzero(lengths)))
        at = int(rng.integers(lengths[row]))
        ids[row][at] = int(rng.choice([-3, 9, 2**31 - 1]))
        rows = Dataset.from_dict({"input_ids": ids, "labels": labels})
        says = f"x row {row}: token {ids[row][at]} at position {at} "
        with pytest.raises(InputError, match=says):
            check_tokens(rows, {"b": 10**6, "a": 9}, "x", None)
        with pytest.raises(InputError, match=f"row {row + 5}: token {ids[row][at]} "):
            check_prompts(ids, range(5, 17), {"a": 9}, None)


def test_a_token_that_fills_batches(models: Path, tmp_path: Path) -> None:
    tokenizer: Any = SimpleNamespace(pad_token_id=9)
    assert [padding(tokenizer, [1], size) for size in (10, 9)] == [9, 1]
    rows = [{"text": "the teacher knows"}] * 8
    given = told(models, rows, tmp_path, pad_token="<image>")
    with pytest.raises(InputError, match=rf"'<image>' that fills batches is number {SIZE}, beyond"):
        LOAD["torch"](given)
