"""The same student, teacher and data in torch and in JAX: the same losses, step by step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiled import compilations
from datasets import Dataset
from tiny import SENTENCES, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from amidmath.integrations.jax_loop.run.loading import Prepared, prepare
from amidmath.integrations.jax_loop.settings.arguments import Arguments, JaxScriptArguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.torch_loop.models.model_files import freeze_embeddings
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

STEPS = 20
TEXTS = [{"text": f"{i}: {SENTENCES[i % 4]}"[: 30 + 5 * (i % 4)]} for i in range(30)]
ANSWERS = [
    {"prompt": f"{name}: ", "completion": f"an answer of {n} words"}
    for n, name in enumerate("abcdefghijklmnopqrst")
]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in ANSWERS
]
SETTINGS: dict[str, tuple[list[dict[str, str]], dict[str, Any]]] = {
    "texts, clipped, accumulated": (
        TEXTS,
        {
            "alpha": 0.0,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.05,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 4,
            "weight_decay": 0.1,
        },
    ),
    "answers, labels, schedules": (
        ANSWERS,
        {
            "divergence": "alpha_beta",
            "divergence_kwargs": {"alpha": 0.2, "beta": 0.7},
            "order": "rq",
            "label_weight": 0.5,
            "schedule": ["alpha=linear:-5:1", "lam=cosine:0.1:0.9"],
        },
    ),
    "taid": (ANSWERS, {"method": "taid", "schedule": ["t=taid:0.4:1"], "max_grad_norm": 0.0}),
    "overlap of tokens": (ANSWERS, {"schedule": ["alpha=overlap_token:-5:1"], "order": "qr"}),
    "temperature": (TEXTS, {"schedule": ["temperature=linear:2:1"], "freeze_embeddings": True}),
    "pairs": (PAIRS, {"method": "distillm2", "schedule": ["beta=linear:1:1.5"]}),
    "random order": (TEXTS, {"train_sampling_strategy": "random", "seed": 3}),
    "packed": (
        TEXTS,
        {
            "packing": True,
            "packing_strategy": "wrapped",
            "method": "gkd",
            "schedule": ["beta=linear:0.1:0.9"],
        },
    ),
}


def losses_of_torch(
    student: Path, teacher: Path, rows: list[dict[str, str]], settings: dict[str, Any], folder: Path
) -> tuple[list[float], AMiDTrainer]:
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    if settings.get("freeze_embeddings"):
        freeze_embeddings(model)
    trainer = AMiDTrainer(
        model,
        AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32),
        AMiDConfig(output_dir=str(folder), report_to="none", use_cpu=True, **settings),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:2]),
        processing_class=AutoTokenizer.from_pretrained(student),
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer


@pytest.mark.parametrize("name", SETTINGS)
def test_torch_and_jax_have_the_same_losses(
    name: str, student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    rows, changes = SETTINGS[name]
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_length": 48,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
        **changes,
    }
    expected, trainer = losses_of_torch(
        student_dir, teacher_dir, rows, settings, tmp_path / "torch"
    )
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = JaxConfig(output_dir=str(tmp_path / "jax"), **settings)
    script = JaxScriptArguments(dataset_name=str(data), eval_dataset_name=str(data))
    arguments = Arguments(str(student_dir), str(teacher_dir), tmp_path / "jax", script, config)
    prepared = prepare(arguments, print)
    found = _logged(prepared)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.02  # it learns, or its target moves
    ours = np.asarray(prepared.trainer.student.head().weight)
    theirs = trainer.student.get_output_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)


def _logged(prepared: Prepared) -> list[float]:
    """The loss of every step, by a trainer that compiles its step once."""
    found: list[float] = []
    trainer = prepared.trainer
    log: Callable[[dict[str, Any]], None] = trainer.log

    def watch(logs: dict[str, Any]) -> None:
        found.append(logs["loss"])
        log(logs)

    trainer.log = watch  # type: ignore[method-assign]
    with compilations() as programs:
        trainer.train()
    assert programs.count("jit(_train)") == 1
    return found
