"""Models that generate tokens which the other one has not: both scripts sample the common ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import save, tiny_model, words, write_jsonl

from amidmath.integrations import jax_distill, torch_distill

Main = Callable[[list[str]], int]
ROWS = [{"prompt": f"{name}: ", "completion": "an answer"} for name in "abcdefgh"]


@pytest.mark.parametrize("main", [torch_distill.main, jax_distill.main], ids=["torch", "jax"])
@pytest.mark.parametrize(
    ("policy", "padded"), [("sequence_level", "teacher"), ("on_policy", "student")]
)
def test_a_padded_vocabulary_generates_what_both_can_read(
    main: Main, policy: str, padded: str, student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    # Untrained, it gives a third of the mass to tokens that the other has not.
    larger = save(tiny_model(1, 3, vocab_size=576), tmp_path / "larger")
    arguments = {
        "model_name_or_path": larger if padded == "student" else student_dir,
        "teacher_model_name_or_path": larger if padded == "teacher" else teacher_dir,
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", ROWS),
        "output_dir": tmp_path / "run",
        "vocab": "common",
        "policy": policy,
        "max_new_tokens": 12,
        "max_length": 48,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    assert callable(main)
    assert main(words(arguments)) == 0
