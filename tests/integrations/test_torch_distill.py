"""The distillation script from end to end, on a byte-level model made on the spot."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from tiny import SENTENCES, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from amidmath.integrations import cache_teacher
from amidmath.integrations.torch_distill import main
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

ROOT = Path(__file__).parents[2]
TEXT_ROWS = [{"text": sentence} for sentence in SENTENCES * 6]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", TEXT_ROWS)


def arguments_of(student: Path, teacher: Path, run: Path) -> list[str]:
    """What every run needs but a dataset."""
    return [
        *("--model_name_or_path", str(student)),
        *("--teacher_model_name_or_path", str(teacher)),
        *("--output_dir", str(run)),
        *("--max_length", "64"),
        *("--per_device_train_batch_size", "4"),
        *("--max_steps", "2"),
        *("--gradient_checkpointing", "false"),
        *("--logging_steps", "1"),
    ]


@pytest.fixture
def arguments(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> list[str]:
    """Those of a run in a folder of its own."""
    return arguments_of(student_dir, teacher_dir, tmp_path / "run")


def test_a_whole_run(
    arguments: list[str], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments, "--dataset_name", str(text_file), "--baseline", "--alpha", "0"]
    assert main([*command, "--max_steps", "30", "--learning_rate", "1e-2"]) == 0
    printed = capsys.readouterr().out
    assert "divergence = KL(), order = pr, alpha = 0, lam = 0.1" in printed
    assert "30 steps of 4 sequences" in printed
    assert "cross-entropy only" in printed

    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert list(results) == ["teacher", "student before", "student after", "cross-entropy only"]
    before, after = results["student before"], results["student after"]
    assert after["kl"] < 0.5 * before["kl"]
    assert after["agreement"] > before["agreement"]
    assert after["perplexity"] < before["perplexity"]
    assert results["teacher"]["kl"] == 0.0
    assert results["teacher"]["agreement"] == 1.0

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["model"] == "student" and "loss" in line]
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]
    assert {line["model"] for line in lines} == {"student", "baseline"}
    assert all(line["tokens_per_second"] > 0 for line in lines if "num_tokens" in line)
    assert json.loads((run / "run.json").read_text())["training"]["alpha"] == 0.0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    student = AutoModelForCausalLM.from_pretrained(run / "student")
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    batch = tokenizer(SENTENCES[:1], return_tensors="pt")
    assert student(**batch, labels=batch["input_ids"]).loss < 4.0
    assert not list(run.rglob("*.partial"))
    assert not list((run / "student").rglob("*.bin"))


def test_the_file_runs_as_a_script_from_anywhere(
    arguments: list[str], text_file: Path, tmp_path: Path
) -> None:
    script = ROOT / "integrations" / "torch_distill.py"
    done = subprocess.run(
        [sys.executable, script, *arguments, "--dataset_name", text_file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "top-1 agreement" in done.stdout
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()


MESSAGES = [
    {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": s}]}
    for s in SENTENCES * 2
]
PROMPTS = [{"prompt": "say it: ", "completion": s} for s in SENTENCES * 2]


@pytest.mark.parametrize("rows", [MESSAGES, PROMPTS], ids=["messages", "prompt-completion"])
def test_trl_formats(arguments: list[str], rows: list[dict[str, object]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main([*arguments, "--dataset_name", str(data), "--max_length", "128"]) == 0


@pytest.mark.parametrize("ending", [".json", ".parquet", ".txt", ".csv", "folder", "saved"])
def test_files_and_folders(
    arguments: list[str], ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is trained on; of the others a dry run says that they are read and prepared."""
    rows = Dataset.from_list(TEXT_ROWS)
    data = tmp_path / f"data{ending}"
    if ending == ".json":
        data.write_text(json.dumps(TEXT_ROWS))
    elif ending == ".parquet":
        rows.to_parquet(data)
    elif ending == ".txt":
        data.write_text("\n\n".join(SENTENCES * 3) + "\n")
    elif ending == ".csv":
        rows.to_csv(data)
    elif ending == "folder":
        data.mkdir()
        write_jsonl(data / "train.jsonl", TEXT_ROWS)
        write_jsonl(data / "test.jsonl", TEXT_ROWS[:4])
    else:
        rows.save_to_disk(data)
    command = [*arguments, "--dataset_name", str(data)]
    assert main(command if ending == ".parquet" else [*command, "--dry_run"]) == 0
    total, held_out = {".txt": (12, 1), "folder": (28, 4)}.get(ending, (24, 2))
    said = " ".join(capsys.readouterr().out.split())
    assert f"{total - held_out} sequences of up to 64 tokens, {held_out} held out" in said


@pytest.mark.parametrize(
    "flags",
    [
        ["--divergence", "reverse_kl", "--order", "qr", "--lam", "0.9"],
        [
            "--divergence",
            "alpha_beta",
            "--divergence_kwargs",
            '{"alpha": 0.2, "beta": 0.7}',
            "--order",
            "rp",
            "--alpha",
            "-inf",
        ],
        ["--order", "rq", "--alpha", "1", "--lam", "0.5", "--temperature", "2"],
        ["--packing", "--packing_strategy", "wrapped", "--freeze_embeddings"],
        ["--eval_strategy", "steps", "--eval_steps", "1", "--baseline"],
        ["--disable_tqdm", "true", "--temperature", "1e0"],
    ],
    ids=["reverse-kl", "alpha-beta", "geometric", "packing", "eval-and-baseline", "no-bars"],
)
def test_options(arguments: list[str], flags: list[str], text_file: Path, tmp_path: Path) -> None:
    assert main([*arguments, "--dataset_name", str(text_file), *flags]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")


def test_frozen_embeddings_do_not_move(
    arguments: list[str], text_file: Path, student_dir: Path, tmp_path: Path
) -> None:
    assert main([*arguments, "--dataset_name", str(text_file), "--freeze_embeddings"]) == 0
    before = AutoModelForCausalLM.from_pretrained(student_dir)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    torch.testing.assert_close(
        after.get_input_embeddings().weight, before.get_input_embeddings().weight, rtol=0, atol=0
    )
    assert not torch.equal(after.lm_head.weight, before.lm_head.weight)


def test_a_config_file_and_the_command_line(
    arguments: list[str], text_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"dataset_name: {text_file}\nlam: 0.4\nalpha: 3.0\n")
    assert main([*arguments, "--config", str(config), "--lam", "0.3"]) == 0
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["training"]["lam"] == 0.3
    assert written["training"]["alpha"] == 3.0


def test_warns_when_the_teacher_is_no_better(
    arguments: list[str],
    text_file: Path,
    student_dir: Path,
    teacher_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    swapped = ["--model_name_or_path", str(teacher_dir), "--teacher_model_name_or_path"]
    command = [*arguments, "--dataset_name", str(text_file), *swapped, str(student_dir)]
    assert main(command) == 0
    assert "no better than the student" in " ".join(capsys.readouterr().out.split())


def test_a_lora_student_names_its_base(
    arguments: list[str],
    text_file: Path,
    student_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(student_dir.parent)
    lora = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
    command = [*arguments, "--dataset_name", str(text_file), *lora]
    assert main([*command, "--model_name_or_path", student_dir.name]) == 0
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "run" / "student" / "adapter_model.safetensors").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")


class Ended(NamedTuple):
    """A run that has ended."""

    command: list[str]
    run: Path


@pytest.fixture(scope="module")
def trained_once(
    student_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ended:
    folder = tmp_path_factory.mktemp("ended")
    text, run = write_jsonl(folder / "text.jsonl", TEXT_ROWS), folder / "run"
    command = [*arguments_of(student_dir, teacher_dir, run), "--dataset_name", str(text)]
    assert main(command) == 0
    shutil.copytree(run, folder / "kept")
    return Ended(command, run)


@pytest.fixture
def ended(trained_once: Ended) -> Ended:
    """A run that has just ended, whatever earlier tests have done to it."""
    shutil.rmtree(trained_once.run, ignore_errors=True)
    shutil.copytree(trained_once.run.with_name("kept"), trained_once.run)
    return trained_once


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_an_earlier_run_is_replaced_when_told(ended: Ended) -> None:
    run = ended.run
    (run / "checkpoint-2" / "mine.txt").write_text("of the earlier run")
    assert main([*ended.command, "--overwrite_output_dir", "--lam", "0.7"]) == 0
    assert json.loads((run / "run.json").read_text())["training"]["lam"] == 0.7
    assert not (run / "previous").exists()
    assert not list(run.rglob("mine.txt"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--lam", "0.7"],
        ["--overwrite_output_dir", "--learning_rate", "-1"],
        ["--overwrite_output_dir", "--per_device_train_batch_size", "0"],
        ["--overwrite_output_dir", "--optim", "no_such_optimiser"],
        ["--overwrite_output_dir", "--lam", "2"],
        ["--resume_from_checkpoint", "no/such/checkpoint"],
        ["--resume_from_checkpoint", "."],
    ],
    ids=lambda flags: "_".join(flags).replace("--", "").replace("/", "."),
)
def test_an_earlier_run_survives_what_does_not_fit(ended: Ended, flags: list[str]) -> None:
    before = files(ended.run)
    assert main([*ended.command, *flags]) == 2
    assert files(ended.run) == before


def test_the_same_command_again_has_nothing_to_do(
    ended: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(ended.run)
    assert main(ended.command) == 0
    assert "is complete" in capsys.readouterr().out
    assert files(ended.run) == before


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    arguments: list[str],
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*arguments, "--dataset_name", str(text_file), "--dry_run"]) == 0
    said = capsys.readouterr().out
    for words in ("parameters", "memory", "optimiser states", "steps"):
        assert words in said
    assert not (tmp_path / "run").exists()


def test_the_card_names_method_and_meaning(ended: Ended) -> None:
    card = (ended.run / "student" / "README.md").read_text("utf-8")
    for words in ("library_name: transformers", "amid(", "lam = 0.1", "KL to teacher"):
        assert words in card


def test_an_earlier_student_survives_an_interruption(
    ended: Ended,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ended.run
    before = files(run / "student")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # the second time what is left of the first is in the way
        with monkeypatch.context() as patch:
            patch.setattr(AMiDTrainer, "compute_loss", interrupt)
            assert main([*ended.command, "--overwrite_output_dir"]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert not (run / "student").exists()
        assert files(run / "previous" / "student") == before
    assert main([*ended.command, "--overwrite_output_dir"]) == 0
    assert not (run / "previous").exists()


def test_a_folder_with_other_files_is_not_touched(
    arguments: list[str], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "README.md").write_text("mine")
    command = [*arguments, "--dataset_name", str(text_file), "--overwrite_output_dir"]
    assert main(command) == 2
    assert "no earlier run" in capsys.readouterr().err
    assert files(run) == {"README.md": b"mine"}


def test_a_checkpoint_from_elsewhere_is_no_permission(
    ended: Ended, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(ended.run / "checkpoint-2")
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    command = [*ended.command, "--resume_from_checkpoint", checkpoint, "--output_dir", str(other)]
    assert main(command) == 2
    assert "no earlier run" in capsys.readouterr().err
    assert files(other) == {"README.md": b"mine"}


def test_held_out_rows_are_not_overwritten(
    ended: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write_jsonl(ended.run / "held_out.jsonl", TEXT_ROWS)
    before = files(ended.run)
    command = [*ended.command, "--overwrite_output_dir", "--eval_dataset_name", str(held_out)]
    assert main(command) == 2
    assert "which the run reads" in capsys.readouterr().err
    assert files(ended.run) == before


def test_the_student_is_not_overwritten(
    arguments: list[str], text_file: Path, student_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(student_dir)
    command = [*arguments, "--dataset_name", str(text_file), "--overwrite_output_dir"]
    assert main([*command, "--output_dir", str(student_dir)]) == 2
    assert "which the run reads" in capsys.readouterr().err
    assert files(student_dir) == before


def test_training_goes_on_from_a_checkpoint(
    arguments: list[str], text_file: Path, tmp_path: Path
) -> None:
    command = [*arguments, "--dataset_name", str(text_file), "--save_steps", "2", "--baseline"]
    whole = [*command, "--max_steps", "4", "--lr_scheduler_type", "constant"]
    assert main(whole) == 0
    run = tmp_path / "run"
    expected = (run / "student" / "model.safetensors").read_bytes()
    assert main([*whole, "--resume_from_checkpoint", str(run / "checkpoint-2")]) == 0
    assert (run / "student" / "model.safetensors").read_bytes() == expected
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["model"], line["step"]) for line in lines if "loss" in line]
    assert steps == [(model, n) for model in ("student", "baseline") for n in (1, 2, 3, 4)]


def test_a_run_from_a_teachers_cache(
    arguments: list[str],
    text_file: Path,
    teacher_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = arguments.index("--teacher_model_name_or_path")
    rest = [*arguments[:at], *arguments[at + 2 :]]
    length = [word for pair in pairwise(rest) if pair[0] == "--max_length" for word in pair]
    cache = str(tmp_path / "cache")
    made = cache_teacher.main(
        [
            *("--teacher_model_name_or_path", str(teacher_dir), "--dataset_name", str(text_file)),
            *("--output_dir", cache, "--k", "32", *length),
        ]
    )
    assert made == 0
    command = [*rest, "--dataset_name", str(text_file), "--teacher_cache", cache]
    assert main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results) == {"student before", "student after"}
    assert results["student after"]["kl"] == "nan"
    assert results["student after"]["perplexity"] < results["student before"]["perplexity"]
    capsys.readouterr()
    assert main([*command, "--overwrite_output_dir", "--policy", "on_policy"]) == 2
    assert "knows the dataset's rows only" in capsys.readouterr().err
