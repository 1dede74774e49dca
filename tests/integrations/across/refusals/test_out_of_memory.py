"""Memory that does not suffice: one line, while what, and what to lower."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from tiny import words, write_jsonl

from amidmath.integrations import jax_distill, torch_distill
from amidmath.integrations.common.cli.memory import OutOfMemoryError, within_memory
from amidmath.integrations.common.errors import InputError, TrainingError, while_preparing
from amidmath.integrations.common.run import run_folder
from amidmath.integrations.jax_loop.evaluation.quality import Judge
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer
from amidmath.integrations.torch_loop.run import distillation
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

ERRORS: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 4 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes."),
    MemoryError("Unable to allocate 745. GiB for an array with shape (100000,)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_allocator_is_understood(error: BaseException) -> None:
    said = r"^out of memory while inner: lower --a or --b; "
    with (
        pytest.raises(OutOfMemoryError, match=said) as raised,
        within_memory("outer", ("--c",)),
        within_memory("inner", ("--a", "--b")),
    ):
        raise error
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, TrainingError)


def test_other_errors_stay() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), within_memory("work", ("--a",)):
        raise RuntimeError("shapes")


def test_before_anything_is_written_it_is_an_input_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"^out of memory while"), while_preparing():  # noqa: SIM117
        with within_memory("evaluating", ("--per_device_eval_batch_size",)):
            raise MemoryError


PLACES: dict[str, tuple[Callable[[list[str]], int], tuple[Any, str], tuple[Any, str]]] = {
    "torch": (torch_distill.main, (distillation, "evaluate"), (AMiDTrainer, "training_step")),
    "jax": (jax_distill.main, (Judge, "__call__"), (JaxTrainer, "make_step")),
}


@pytest.mark.parametrize("stage", ["evaluating", "training"])
@pytest.mark.parametrize("framework", PLACES)
def test_a_run_ends_with_one_line(
    framework: str,
    stage: str,
    student_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, *places = PLACES[framework]

    def full(*args: object, **kwargs: object) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(*places[stage == "training"], full)
    arguments = {
        "model_name_or_path": student_dir,
        "teacher_model_name_or_path": teacher_dir,
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", [{"text": "some text"}] * 8),
        "output_dir": tmp_path / "run",
        "max_length": 32,
        "max_steps": 1,
        "disable_tqdm": "true",
    }
    status = main(words(arguments))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: out of memory while {stage}: lower --per_device_")
    assert status == (1 if stage == "training" else 2)
    assert (tmp_path / "run" / run_folder.RUN).exists() == (stage == "training")
