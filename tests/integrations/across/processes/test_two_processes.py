"""Two processes with gloo, DDP and FSDP2, train as one process with all the rows does."""

import json
import pickle
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import trainer_rank
from safetensors.torch import load_file

from amidmath.integrations.torch_loop.devices.shares import own_batches

RANKS = 2
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
TIED = {"tie_word_embeddings": True}
GENERATE = {"generation_temperature": 0.0, "max_new_tokens": 12}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3}
HELD_OUT = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}

# Each is trained on one process too, with which it must agree.
JOBS: dict[str, dict[str, Any]] = {
    "plain": {"save": "plain"},
    "accumulated": {"accumulation": 2},
    "clipped": {"settings": {"max_grad_norm": 0.005}},
    "tied": {"student": TIED, "teacher": TIED},
    "lora": {"lora": LORA, "save": "lora"},
    "base": {"lora": LORA, "teacher": "base"},
    # Its layers are of another class than the student's.
    "gpt2 as teacher": {"teacher": "gpt2"},
    # 5 rows, of which the last batch repeats some on two processes.
    "held out": {"settings": HELD_OUT},
    "label weight": {"settings": {"label_weight": 0.5}},
    "taid": {"settings": {"method": "taid", "schedule": ["t=taid:0.4:1"]}},
    "overlap": {"settings": {"schedule": ["alpha=overlap:-5:1"]}},
    # With these ends, the answers on the first process come to theirs after 4 tokens, on the second
    # after 12.
    "on policy": {
        "ends": [132, 342],
        "settings": {"policy": "on_policy", **GENERATE},
    },
    "on policy, lora": {"lora": LORA, "settings": {"policy": "on_policy", **GENERATE}},
    "sequence level": {"settings": {"policy": "sequence_level", **GENERATE}},
    "resumed": {
        "output": "resumed",
        "settings": {
            "save_strategy": "steps",
            "save_steps": 1,
            "optim": "adamw_torch",
            "learning_rate": 1e-3,
        },
    },
    "bfloat16": {"settings": {"bf16": True}},
}
ENGINES = ("ddp", "fsdp2")
LOGGED = ("loss", "eval_loss", "grad_norm", "kl", "overlap", "t", "alpha", "num_tokens")

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Results:
    """What each of two processes says of every job under every engine."""
    jobs = {}
    for name, job in JOBS.items():
        for engine in ENGINES:
            jobs[f"{name}, {engine}"] = {**job, "engine": engine}
            for place in job.keys() & {"save", "output"}:
                jobs[f"{name}, {engine}"][place] = f"{name}-{engine}"
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    processes = [
        forked.start(trainer_rank.main, rank, RANKS, folder, said=folder / f"{rank}.txt")
        for rank in range(RANKS)
    ]
    try:
        for rank, process in enumerate(processes):
            process.join(timeout=300)
            assert process.exitcode == 0, (folder / f"{rank}.txt").read_text()
    finally:
        for process in processes:
            process.kill()
    results = []
    for rank in range(RANKS):
        with (folder / f"{rank}.pkl").open("rb") as file:
            results.append(pickle.load(file))
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process makes of every job."""
    return {
        name: trainer_rank.train(job, tmp_path_factory.mktemp("alone"))
        for name, job in JOBS.items()
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one(
    ranks: Results, alone: dict[str, dict[str, Any]], name: str, engine: str
) -> None:
    wanted = alone[name]
    # FSDP2 rounds weights and states to bfloat16, autocast the inputs of some operations.
    rtol = 3e-3 if name == "bfloat16" else 3e-6
    for result in ranks:
        got = result[f"{name}, {engine}"]
        assert "error" not in got, got["error"]
        assert got["change"].keys() == wanted["change"].keys()
        for weight, change in wanted["change"].items():
            assert change.abs().max() > 0.0, f"{weight} was not trained"
            # The change is a difference of weights of about 1 at most, in float32.
            atol = 2e-2 * float(change.abs().max()) if name == "bfloat16" else 5e-7
            torch.testing.assert_close(got["change"][weight], change, rtol=1e-5, atol=atol)
        assert len(got["log"]) == len(wanted["log"])
        for mine, theirs in zip(got["log"], wanted["log"], strict=True):
            assert mine.keys() == theirs.keys()
            for key in theirs.keys() & set(LOGGED):
                assert mine[key] == pytest.approx(theirs[key], rel=rtol), key


def test_all_that_should_be_is_logged(alone: dict[str, dict[str, Any]]) -> None:
    seen = {key for result in alone.values() for line in result["log"] for key in line}
    assert set(LOGGED) <= seen


@pytest.mark.parametrize("name", [n for n, job in JOBS.items() if job.get("teacher") != "base"])
def test_fsdp2_keeps_a_part_of_teacher_and_student(ranks: Results, name: str) -> None:
    for result in ranks:
        for role in ("teacher", "student"):
            assert set(result[f"{name}, fsdp2"][role].values()) == {"(Shard(dim=0),)"}, role
            assert set(result[f"{name}, ddp"][role].values()) == {"whole"}, role


def test_fsdp2_does_not_round_the_loss(ranks: Results) -> None:
    losses = [line["loss"] for line in ranks[0]["bfloat16, fsdp2"]["log"] if "loss" in line]
    assert len(losses) == trainer_rank.STEPS
    for loss in losses:
        assert float(torch.tensor(loss).bfloat16()) != loss


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if "save" in job])
def test_the_whole_student_is_saved(
    ranks: Results, alone: dict[str, dict[str, Any]], folder: Path, name: str, engine: str
) -> None:
    saved = folder / f"{name}-{engine}"
    files = [path.name for path in saved.iterdir() if path.suffix in (".safetensors", ".bin")]
    assert files == ["adapter_model.safetensors" if "lora" in JOBS[name] else "model.safetensors"]
    weights = load_file(saved / files[0])
    ends = ranks[0][f"{name}, {engine}"]["end"]
    assert len(weights) == len(ends)
    for weight, value in ends.items():
        assert torch.equal(weights[weight.replace(".default", "")], value), weight


def test_every_row_is_on_one_process_once(ranks: Results) -> None:
    for rows in (1, 4, 5, 9):
        said = [result["shares"][rows] for result in ranks]
        counted = [n for share in said for n in share["counted"]]
        assert sorted(counted) == list(range(1, rows + 1))
        assert len({share["batches"] for share in said}) == 1
        for share in said:
            assert share["total"] == [sum(range(1, rows + 1)), RANKS]
            assert share["in order"] == [f"answer {n}" for n in range(1, rows + 1)]
        assert [share["quiet"] for share in said] == [False, True]


def test_one_process_has_all_rows() -> None:
    said = trainer_rank.shares(list(range(1, 6)), 2)
    assert said["counted"] == [1, 2, 3, 4, 5]
    assert said["batches"] == 3
    assert said["total"] == [15.0, 1.0]
    assert said["in order"] == [f"answer {n}" for n in range(1, 6)]
    assert said["quiet"] is False
    assert list(own_batches([], lambda rows: {"rows": rows}, 2)) == []
