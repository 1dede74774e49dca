"""The evaluation script from its command line to its files, and what it says of unfit input."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, save, tiny_model, vocabulary_size, write_jsonl
from transformers import AutoModelForCausalLM

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.tasks.answers import Decoding
from amidmath.integrations.common.tasks.metrics import METRICS
from amidmath.integrations.common.tasks.prompts import encode_prompts, held_out
from amidmath.integrations.common.tasks.rows import Row
from amidmath.integrations.common.tasks.tasks import TASKS
from amidmath.integrations.torch_eval import main
from amidmath.integrations.torch_loop.evaluation.task_answers import collated, evaluate_task

# The tiny models read 128 bytes.
ROWS: list[dict[str, Any]] = [
    {"prompt": "the teacher", "output": "knows the answer."},
    {"prompt": "a mixture of", "output": ["two distributions lies between them.", "both"]},
    {"prompt": "every", "output": "token has a probability."},
]


@pytest.fixture
def good(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Arguments of an evaluation that works."""
    return {
        "--model_name_or_path": str(student_dir),
        "--teacher_model_name_or_path": str(teacher_dir),
        "--task": "dolly",
        "--dataset_name": str(write_jsonl(tmp_path / "rows.jsonl", ROWS)),
        "--output_dir": str(tmp_path / "out"),
        "--max_new_tokens": "12",
        "--seeds": "10,20",
    }


def words(arguments: dict[str, str | None]) -> list[str]:
    """A command line; None leaves an argument out."""
    given = [(flag, value) for flag, value in arguments.items() if value is not None]
    return [word for pair in given for word in pair if word]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_results(good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words({**good}), "--generate_with_teacher"]) == 0
    found, lines = results(tmp_path / "out"), predictions(tmp_path / "out")
    assert [(x["model"], x["seed"], x["row"]) for x in lines] == [
        (model, seed, row)
        for model in ("teacher", "student")
        for seed in (10, 20)
        for row in range(3)
    ]
    references = [[ROWS[0]["output"]], ROWS[1]["output"], [ROWS[2]["output"]]]
    assert [x["references"] for x in lines[:3]] == references
    for model in ("student", "teacher"):
        scores = found["results"][model]["scores"]
        for name in ("rouge_l", "exact_match"):
            by_seed = [
                METRICS[name](
                    [x["prediction"] for x in lines if (x["model"], x["seed"]) == (model, seed)],
                    references,
                )
                for seed in (10, 20)
            ]
            assert scores[name]["by_seed"] == pytest.approx(by_seed)
            assert scores[name]["mean"] == pytest.approx(sum(by_seed) / 2)
            assert scores[name]["std"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2)
            assert scores[name]["rows"] == 3
    by_teacher = [[x["prediction"]] for x in lines[:6]]
    by_student = [x["prediction"] for x in lines[6:]]
    expected = METRICS["rouge_l"](by_student, by_teacher)
    score = found["results"]["student"]["scores"]["rouge_l_to_teacher"]
    assert score["mean"] == pytest.approx(expected)
    assert "rouge_l_to_teacher" not in found["results"]["teacher"]["scores"]
    assert found["rows"]["evaluated"] == found["rows"]["in_the_file"] == 3
    assert found["decoding"]["temperature"] == 1.0
    shown = capsys.readouterr().out
    for words_shown in ("3 of 3 rows", "seeds 10, 20", "KL to teacher", "rouge_l_to_teacher (%)"):
        assert words_shown in shown


def test_figures_of_the_references(good: dict[str, str], tmp_path: Path) -> None:
    assert main(words({**good, "--seeds": None, "--temperature": "0", "--batch_size": "2"})) == 0
    found = results(tmp_path / "out")["results"]
    kl, agree, nll, count = 0.0, 0, 0.0, 0
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(good[flag]).eval()
        for flag in ("--model_name_or_path", "--teacher_model_name_or_path")
    )
    tokenizer = byte_tokenizer()
    for row in ROWS:
        first = row["output"] if isinstance(row["output"], str) else row["output"][0]
        prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        ids = torch.tensor([prompt + tokenizer(first).input_ids])  # ends with eos
        with torch.no_grad():
            q, p = (
                m(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for m in (student, teacher)
            )
        kl += float((p.exp() * (p - q)).sum())
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        nll -= float(q.gather(-1, ids[0, len(prompt) :, None]).sum())
        count += len(first) + 1
    assert found["student"]["tokens"] == count
    assert found["student"]["kl"] == pytest.approx(kl / count, rel=1e-5)
    assert found["student"]["agreement"] == pytest.approx(agree / count)
    assert found["student"]["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert (found["teacher"]["kl"], found["teacher"]["agreement"]) == (0.0, 1.0)
    assert found["student"]["scores"]["rouge_l"]["std"] is None
    assert "scores" not in found["teacher"]


def test_a_model_beside_itself(good: dict[str, str], tmp_path: Path) -> None:
    same = {**good, "--model_name_or_path": good["--teacher_model_name_or_path"]}
    assert main([*words({**same}), "--generate_with_teacher"]) == 0
    found = results(tmp_path / "out")["results"]
    assert found["student"]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert found["student"]["agreement"] == 1.0
    lines = predictions(tmp_path / "out")
    answers = [[x["prediction"] for x in lines if x["model"] == m] for m in ("teacher", "student")]
    assert answers[0] == answers[1]
    assert any(answers[0])
    expected = METRICS["rouge_l"](answers[0], [[text] for text in answers[0]])
    assert found["student"]["scores"]["rouge_l_to_teacher"]["mean"] == pytest.approx(expected)


def test_the_same_command_gives_the_same_files(good: dict[str, str], tmp_path: Path) -> None:
    names = ("results.json", "predictions.jsonl")
    assert main(words({**good})) == 0
    first = [(tmp_path / "out" / name).read_bytes() for name in names]
    torch.manual_seed(99)
    assert main([*words({**good}), "--overwrite_output_dir"]) == 0
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == first


def test_without_a_teacher(good: dict[str, str], tmp_path: Path) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert main(words({**good, "--output_dir": str(both)})) == 0
    without = {"--teacher_model_name_or_path": None, "--output_dir": str(alone)}
    assert main(words({**good, **without})) == 0
    expected, found = results(both)["results"]["student"], results(alone)["results"]
    assert list(found) == ["student"]
    assert (found["student"]["kl"], found["student"]["agreement"]) == (None, None)
    assert found["student"]["perplexity"] == pytest.approx(expected["perplexity"])
    assert found["student"]["scores"] == expected["scores"]


def test_plain_text(good: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the assistant stands between them.\n\n" + "every token " * 20)
    changes = {"--max_new_tokens": None, "--seeds": None}
    assert main(words({**good, **changes, "--task": "text", "--dataset_name": str(text)})) == 0
    found = results(tmp_path / "out")
    # The first byte is predicted by nothing; the second text fills the context of 128.
    assert found["results"]["student"]["tokens"] == 34 + 127
    assert found["rows"]["references_cut"] == 1
    assert found["decoding"] is None
    assert "scores" not in found["results"]["student"]
    assert predictions(tmp_path / "out") == []


def test_a_config_file(good: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    lines = [f"{flag.removeprefix('--')}: {value}" for flag, value in good.items()]
    path.write_text("\n".join(lines).replace("10,20", "[3, 4]"))
    assert main(["--config", str(path), "--max_new_tokens", "2"]) == 0
    assert results(tmp_path / "out")["decoding"] == {
        "max_new_tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "seeds": [3, 4],
        "batch_size": 8,
    }


def test_counts_of_what_is_cut_and_left_out(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "--max_prompt_length": "11",
        "--min_reference_words": "2",
        "--max_length": "30",
        "--max_eval_samples": "2",
    }
    rows = [{"prompt": "short", "output": "one"}, *ROWS]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main(words({**good, **changes})) == 0
    assert results(tmp_path / "out")["rows"] == {
        "evaluated": 2,
        "in_the_file": 4,
        "left_out_short": 1,
        "left_out_beyond": 1,
        "prompts_cut": 1,
        "references_cut": 1,
    }
    assert {x["row"] for x in predictions(tmp_path / "out")} == {1, 2}
    shown = capsys.readouterr().out
    for said in ("2 of 4 rows", "1 prompts cut to 11 tokens", "1 references cut"):
        assert said in shown


def test_a_student_with_a_padded_vocabulary(good: dict[str, str], tmp_path: Path) -> None:
    padded = save(tiny_model(1, 2, vocab_size=448), tmp_path / "padded")
    changes: dict[str, str | None] = {**good, "--model_name_or_path": str(padded)}
    assert main(words(changes)) == 2
    assert main(words({**changes, "--vocab": "common"})) == 0
    assert 0.0 < results(tmp_path / "out")["results"]["student"]["kl"] < 50.0


# The library's side.


def test_chat_prompts_go_through_the_template() -> None:
    tokenizer = byte_tokenizer()
    rows = [Row([{"role": "user", "content": "Why?"}], ("So.",)), Row("Why?", ("So.",))]
    texts = {
        style: [tokenizer.decode(ids) for ids in encode_prompts(tokenizer, rows, style=style).ids]
        for style in ("published", "plain", "chat")
    }
    chat = "user: Why?\nassistant: "
    assert texts == {
        "published": [chat, "Why?"],
        "plain": ["Why?", "Why?"],
        "chat": [chat, chat],
    }


def test_chat_prompts_without_a_usable_template() -> None:
    tokenizer = byte_tokenizer()
    row = Row([{"role": "user", "content": "Why?"}], ("So.",), number=7)
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(InputError, match="row 7 is refused by the chat template: no users"):
        encode_prompts(tokenizer, [row])
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template: give --prompt_style plain"):
        encode_prompts(tokenizer, [row])


def test_an_answer_stops_where_the_task_says(teacher_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher_dir)
    rows, how = [Row("the teacher", ("a",))], Decoding(max_new_tokens=30)
    free = evaluate_task(model, byte_tokenizer(), rows, TASKS["completion"], decoding=how)
    text = free.answers[0][0]
    assert text[8:12].strip()
    stop = replace(TASKS["translation"], stop=(text[8:12],))
    cut = evaluate_task(model, byte_tokenizer(), rows, stop, decoding=how)
    assert cut.answers == [[text[: text.index(text[8:12])].strip()]]
    assert list(cut.scores) == ["bleu", "chrf"]
    assert cut.scores["bleu"].interval is None


def test_held_out_batches_count_references_only() -> None:
    tokenizer = byte_tokenizer()
    rows = [Row("ab", ("cd", "not this")), Row("", ("efgh",))]
    prompts = encode_prompts(tokenizer, rows)
    (batch,) = collated(held_out(tokenizer, rows, prompts), pad=0, batch_size=4)
    counted = [labels[labels != -100] for labels in batch["labels"]]
    assert [tokenizer.decode(ids) for ids in counted] == ["cd</s>", "efgh</s>"]
    assert batch["attention_mask"].sum(-1).tolist() == [5, 5]
    cut = held_out(tokenizer, rows, prompts, max_length=3)
    assert cut.cut == 2
    batches = collated(cut, pad=0, batch_size=1)
    assert [batch["input_ids"].shape for batch in batches] == [(1, 3), (1, 3)]
    with pytest.raises(InputError, match=r"row 0: its prompt has 2 tokens, --max_length 2"):
        held_out(tokenizer, rows, prompts, max_length=2)


# What does not fit.

Refuse = Callable[[dict[str, str | None]], str]


@pytest.fixture
def refuse(good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run with changed arguments; gives the one-line error."""

    def run(changes: dict[str, str | None]) -> str:
        assert main(words({**good, **changes})) == 2
        assert not (tmp_path / "out").exists()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--task": None, "--output_dir": None}, ["--task, --output_dir must be given"]),
        ({"--task": "dolli"}, ["--task", "'dolli'", "dolly"]),
        ({"--dataset_name": "no.jsonl"}, ["--dataset_name", "no such file: no.jsonl"]),
        ({"--model_name_or_path": "no/model"}, ["--model_name_or_path", "'no/model'"]),
        ({"--teacher_model_name_or_path": "no/model"}, ["--teacher_model_name_or_path"]),
        ({"--seeds": "a,b"}, ["--seeds must be numbers", "a,b"]),
        ({"--seeds": "1,1"}, ["--seeds must differ", "1,1"]),
        ({"--temperature": "0"}, ["--seeds", "greedy"]),
        ({"--temperature": "-1"}, ["--temperature", "-1"]),
        ({"--top_p": "0"}, ["--top_p", "(0, 1]", "0.0"]),
        ({"--max_new_tokens": "0"}, ["--max_new_tokens must be at least 1, got 0"]),
        ({"--max_new_tokens": "120"}, ["row 0", "11 tokens", "context of 128"]),
        ({"--batch_size": "0"}, ["--batch_size must be at least 1"]),
        ({"--max_length": "129"}, ["--max_length 129", "context of 128", "--max_length 128"]),
        ({"--max_length": "5"}, ["row 0", "11 tokens", "--max_length 5"]),
        ({"--min_reference_words": "11"}, ["none of the 3 rows", "11 words"]),
        ({"--source_language": "de"}, ["--source_language", "translates nothing"]),
        ({"--target_column": "de"}, ["--target_column", "translates nothing"]),
        ({"--task": "text"}, ["--max_new_tokens", "task text", "leave it out"]),
        (
            {"--teacher_model_name_or_path": None, "--generate_with_teacher": "true"},
            ["--generate_with_teacher", "no teacher"],
        ),
        (
            {"--task": "gsm8k", "--seeds": None},
            ["row 0 has no 'question'", "'question' and 'answer'"],
        ),
        ({"--seed": "3"}, ["unknown argument --seed", "did you mean --seeds?"]),
        ({"--config": "no.yaml"}, ["--config", "no.yaml"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input(refuse: Refuse, changes: dict[str, str | None], says: list[str]) -> None:
    error = refuse(changes)
    for said in says:
        assert said in error


def test_another_tokenizer(refuse: Refuse, tmp_path: Path) -> None:
    other = save(tiny_model(1, 3, vocab_size=512), tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    assert "'<more>'" in refuse({"--model_name_or_path": str(other)})


def test_a_token_without_an_embedding(refuse: Refuse, tmp_path: Path) -> None:
    other = save(tiny_model(1, 3), tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    rows = [{"prompt": "why", "output": "so"}, {"prompt": "why", "output": "<more>"}]
    error = refuse(
        {
            "--model_name_or_path": str(other),
            "--dataset_name": str(write_jsonl(tmp_path / "more.jsonl", rows)),
        }
    )
    assert f"row 1: token {vocabulary_size()} ('<more>') is beyond those that the" in error


def test_several_processes(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes" in refuse({})


def test_earlier_results_and_training_runs_are_kept(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    assert main(words({**good})) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    (folder / "run.json").write_text("{}")
    assert main([*words({**good}), "--overwrite_output_dir"]) == 2
    assert "training run" in capsys.readouterr().err
    assert (folder / "results.json").read_text() == "{}"
    assert main(words({**good, "--output_dir": str(folder / "results.json")})) == 2
    assert "no writable folder" in capsys.readouterr().err
