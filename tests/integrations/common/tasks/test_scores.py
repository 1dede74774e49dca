"""A student's answers scored while it trains: right, and nothing that training notices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import SENTENCES, write_jsonl

from amidmath.integrations import jax_distill, torch_distill, torch_eval
from amidmath.integrations.common.run import plots
from amidmath.integrations.common.run.progress import TIME_FIELDS, LiveWords

ROWS = [{"prompt": s[:9], "completion": s[9:]} for s in SENTENCES * 3]
# A model that samples bytes hits a letter sooner than a word.
LETTERS = " ".join("abcdefghijklmnopqrstuvwxyz")
QUESTIONS: list[dict[str, Any]] = [
    {"prompt": "the teacher", "output": ["knows the answer.", LETTERS]},
    {"prompt": "a mixture of", "output": ["two distributions lies between them.", LETTERS]},
    {"prompt": "every", "output": LETTERS},
]
SCORES = ("eval_rouge_l", "eval_exact_match", "eval_unfinished")
LENGTH = ("--eval_task_max_new_tokens", "32")

Run = Callable[..., int]


SCRIPTS = {"torch": (torch_distill.main, ["--use_cpu"]), "jax": (jax_distill.main, [])}


@pytest.fixture(params=SCRIPTS)
def run(
    request: pytest.FixtureRequest, student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> Run:
    """Distils by either script on the student's own, sampled answers; gives the exit status.

    The student is the model that has learned something, so that its answers score.
    """
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    main, more_of_script = SCRIPTS[request.param]

    def start(name: str, *more: str) -> int:
        return main(
            [
                *("--model_name_or_path", str(teacher_dir)),
                *("--teacher_model_name_or_path", str(student_dir)),
                *("--dataset_name", str(data), "--output_dir", str(tmp_path / name)),
                *("--max_length", "64", "--max_steps", "4", "--learning_rate", "1e-3"),
                *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
                *("--lr_scheduler_type", "constant", "--report_to", "none"),
                *("--policy", "on_policy", "--max_new_tokens", "6", "--logging_steps", "1"),
                *("--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"),
                *more_of_script,
                *more,
            ]
        )

    return start


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    """Flags that have sampled answers scored."""
    path = write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
    return ["--eval_task", "dolly", "--eval_task_dataset", str(path), *LENGTH]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log, without what depends on time."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k not in TIME_FIELDS} for t in text]


def weights(folder: Path) -> bytes:
    return (folder / "student" / "model.safetensors").read_bytes()


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_training_does_not_notice(
    run: Run, questions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("without") == 0
    assert run("with", *questions) == 0
    shown, bar = capsys.readouterr()
    assert "dolly, 3 of 3 rows: rouge_l, exact_match of answers of up to 32 tokens" in shown
    assert "student after: ROUGE-L " in shown
    assert ", ROUGE-L " in bar
    plain, scored = lines(tmp_path / "without"), lines(tmp_path / "with")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert [{k: v for k, v in x.items() if k not in SCORES} for x in scored] == plain
    at = {x["step"]: x for x in scored if "eval_loss" in x}
    assert set(at) == {2, 4}
    assert all(0.0 <= x[name] <= 100.0 for x in at.values() for name in SCORES)
    assert any(x["eval_rouge_l"] > 0.0 for x in at.values())
    # After the last step nothing changes any more.
    after = results(tmp_path / "with")["student after"]
    assert [after[name.removeprefix("eval_")] for name in SCORES] == [at[4][x] for x in SCORES]
    assert "rouge_l" not in results(tmp_path / "without")["student after"]
    card = (tmp_path / "with" / "student" / "README.md").read_text()
    assert "ROUGE-L (%)" in card

    # The same command from the checkpoint at the middle: the very same log and student.
    checkpoint = str(tmp_path / "with" / "checkpoint-2")
    assert run("with", *questions, "--resume_from_checkpoint", checkpoint) == 0
    assert lines(tmp_path / "with") == scored
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_the_scores_are_those_of_torch_eval(run: Run, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "task.jsonl", ROWS[:4])
    task = ["--eval_task", "completion", "--eval_task_dataset", str(rows), *LENGTH]
    assert run("run", *task, "--eval_task_samples", "3", "--baseline") == 0
    found = results(tmp_path / "run")
    student = str(tmp_path / "run" / "student")
    done = torch_eval.main(
        [
            *("--model_name_or_path", student, "--output_dir", str(tmp_path / "eval")),
            *("--task", "completion", "--dataset_name", str(rows), "--max_new_tokens", "32"),
            *("--max_eval_samples", "3"),
        ]
    )
    assert done == 0
    scores = results(tmp_path / "eval")["results"]["student"]["scores"]
    assert scores["rouge_l"]["mean"] > 0.0
    for metric in ("rouge_l", "exact_match"):
        assert found["student after"][metric] == pytest.approx(scores[metric]["mean"])
    assert "rouge_l" in found["cross-entropy only"]
    assert "rouge_l" not in found["student before"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--eval_task_dataset": None}, "--eval_task dolly: give --eval_task_dataset too"),
        ({"--eval_task": None}, "give --eval_task too"),
        ({"--eval_task": "text"}, "invalid choice: 'text'"),
        ({"--eval_task_samples": "0"}, "--eval_task_samples must be at least 1, got 0"),
        ({"--eval_task_dataset": "no.jsonl"}, "--eval_task_dataset: no such file: no.jsonl"),
        ({"--eval_task": "gsm8k"}, "--eval_task_dataset: "),
        (
            {"--eval_task_max_new_tokens": "120"},
            "the prompt of row 0 has 11 tokens, which with 120 new ones exceed the student's "
            "context of 128: a prompt may have 8. Lower --eval_task_max_new_tokens",
        ),
    ],
    ids=lambda value: "_".join(value).replace("--", "") if isinstance(value, dict) else "",
)
def test_bad_input(
    run: Run,
    questions: list[str],
    changes: dict[str, str | None],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, str | None] = dict(zip(questions[::2], questions[1::2], strict=True))
    given |= changes
    words = [word for k, v in given.items() if v is not None for word in (k, v)]
    assert run("run", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_scores_stay_beside_the_bar() -> None:
    words = LiveWords()
    assert words.of({"loss": 1.0}) == "loss 1.0000"
    assert words.of({"eval_rouge_l": 12.34, "eval_chrf": 5.0}) is None
    assert words.of({"loss": 0.5}) == "loss 0.5000, ROUGE-L 12.3, chrF 5.0"


def test_scores_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        plots, "_draw_curves", lambda axes, name, found: drawn.update({name: found})
    )
    log = [
        {"model": "student", "step": 2, "loss": 1.0},
        {"model": "student", "step": 2, "eval_rouge_l": 10.0, "eval_exact_match": 0.0},
        {"model": "student", "step": 4, "eval_rouge_l": 20.0, "eval_exact_match": 5.0},
    ]
    plots.plot(tmp_path / "curves.png", log, {"student after": {"rouge_l": 20.0}}, "scores")
    assert drawn["answers' scores (%)"] == {
        "ROUGE-L": ([2, 4], [10.0, 20.0]),
        "exact match": ([2, 4], [0.0, 5.0]),
    }
