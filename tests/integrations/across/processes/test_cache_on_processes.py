"""Two processes write the cache that one writes, and train from it as one does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cache_rank
import pytest
from safetensors.torch import load_file
from tiny import SENTENCES, words, write_jsonl
from torch import testing
from transformers import AutoModelForCausalLM

from amidmath.integrations import cache_teacher, torch_distill

RANKS = 2
STEPS, ROWS_A_STEP = 2, 4


@pytest.fixture(scope="module")
def commands(
    teacher_dir: Path, student_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path, int], list[tuple[str, list[str], int]]]:
    """What is run in a folder by so many processes."""
    data = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"{i}: ", "completion": SENTENCES[i % 4][: 9 + i % 23]} for i in range(21)]
    shared = {
        "model_name_or_path": str(student_dir),
        "dataset_name": str(write_jsonl(data / "rows.jsonl", rows[:16])),
        "eval_dataset_name": str(write_jsonl(data / "held_out.jsonl", rows[16:])),
        "max_length": "64",
        "per_device_eval_batch_size": "2",
        "disable_tqdm": "true",
        "use_cpu": "true",
    }

    def run(folder: Path, processes: int) -> list[tuple[str, list[str], int]]:
        caching = words(
            shared
            | {
                "teacher_model_name_or_path": str(teacher_dir),
                "output_dir": str(folder / "cache"),
                "k": "8",
                "shard_megabytes": "0.001",
            }
        )
        training = words(
            shared
            | {
                "output_dir": str(folder / "run"),
                "teacher_cache": str(folder / "cache"),
                "max_steps": str(STEPS),
                "per_device_train_batch_size": str(ROWS_A_STEP // processes),
                "train_sampling_strategy": "sequential",
                "optim": "sgd",
                "learning_rate": "1.0",
                "lr_scheduler_type": "constant",
                "max_grad_norm": "0.0",
                "logging_steps": "1",
                "save_strategy": "no",
                "report_to": "none",
            }
        )
        evaluating = ["--eval_strategy", "steps", "--eval_steps", "1"]
        return [
            ("cache", caching, 0),
            ("distill", [*training, *evaluating], 2),  # there are no held-out rows yet
            ("cache", [*caching, "--held_out", "true"], 0),
            ("distill", [*training, *evaluating], 0),
        ]

    return run


Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(
    commands: Callable[[Path, int], list[tuple[str, list[str], int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Folders:
    """What one process leaves, and what two do."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    jobs = commands(together, RANKS)
    (together / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(RANKS):
        with (together / f"{rank}.txt").open("w") as said:
            command = [sys.executable, cache_rank.__file__, str(rank), str(RANKS), str(together)]
            processes.append(
                subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
            )
    try:
        scripts = {"cache": cache_teacher.main, "distill": torch_distill.main}
        for script, arguments, status in commands(alone, 1):
            assert scripts[script](arguments) == status
        for rank, process in enumerate(processes):
            assert process.wait(timeout=300) == 0, (together / f"{rank}.txt").read_text()
    finally:
        for process in processes:
            process.kill()
    return alone, together


@pytest.mark.parametrize("part", ["", "held_out"])
def test_the_caches_are_the_same(folders: Folders, part: str) -> None:
    one, two = (
        {path.name: path.read_bytes() for path in (folder / "cache" / part).glob("*.*")}
        for folder in folders
    )
    assert len(one) > 2 * RANKS if part == "" else len(one) > RANKS
    assert two == one


def test_each_process_wrote(folders: Folders) -> None:
    said = (folders[1] / "0.txt").read_text()
    assert "2 processes: about" in " ".join(said.split())
    assert "Vocabularies" not in (folders[1] / "1.txt").read_text()
    assert "error: --eval_strategy steps: the cache" in (folders[1] / "1.txt").read_text()


def test_the_table_says_what_is_compared(folders: Folders) -> None:
    said = " ".join((folders[1] / "0.txt").read_text().split())
    assert "KL in nats a token, over the teacher's 8 cached tokens and the rest as one" in said


def test_rows_that_are_prepared_otherwise(
    folders: Folders,
    commands: Callable[[Path, int], list[tuple[str, list[str], int]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, training, _ = commands(folders[0], 1)[-1]
    others = ["--output_dir", str(tmp_path / "run"), "--max_length", "24"]
    assert torch_distill.main([*training, *others]) == 2
    said = capsys.readouterr().err
    assert "the prepared rows differ: --max_length 24 (cached with 64)" in said


def test_two_processes_train_from_a_cache_as_one(folders: Folders, student_dir: Path) -> None:
    one, two = (load_file(folder / "run" / "student" / "model.safetensors") for folder in folders)
    start = AutoModelForCausalLM.from_pretrained(student_dir).state_dict()
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert (weight - start[name]).abs().max() > 1e-5, f"{name} was not trained"
        testing.assert_close(two[name], weight, rtol=1e-5, atol=5e-7)


def test_two_processes_evaluate_from_a_cache_as_one(folders: Folders) -> None:
    one, two = (
        [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        for folder in folders
    )
    held_out = [line for line in one if "eval_kl" in line]
    assert len(held_out) == STEPS
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "eval_loss", "eval_kl", "eval_overlap"):
            assert (name in mine) == (name in theirs)
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name
    tables = [json.loads((folder / "run" / "results.json").read_text()) for folder in folders]
    assert set(tables[0]) == {"student before", "student after"}
    for model, figures in tables[0].items():
        assert tables[1][model] == pytest.approx(figures, rel=1e-5)
    assert tables[0]["student after"]["kl"] < tables[0]["student before"]["kl"]
    # Five rows have few positions that count: the log looks at all of them.
    last = held_out[-1]
    assert tables[0]["student after"]["kl"] == pytest.approx(last["eval_kl"], rel=1e-5)
