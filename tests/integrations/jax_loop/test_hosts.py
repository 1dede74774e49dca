"""Two processes with two devices each train as one process with four does, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import save, tiny_model, write_jsonl

from amidmath.integrations.shared.progress import TIME_FIELDS

SCRIPT = Path(__file__).with_name("on_hosts.py")
LIMIT_SECONDS = 240
DEVICES = 4
# The last batches of an epoch are filled with rows of padding.
ROWS = [
    {"prompt": f"{name * (1 + n % 5)}: ", "completion": f"an answer of {n} words"}
    for n, name in enumerate("abcdefghijklm")
]
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "max_length": 40,
    "alpha": 0.0,
    "gradient_checkpointing": "false",
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "disable_tqdm": "true",
}
RUNS: dict[str, dict[str, Any]] = {
    # On fresh completions, and on remembered ones.
    "adaptive": {
        "mesh": "data=2,fsdp=2",
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "policy": "adaptive",
        "init_threshold": 1.0,
        "replay_ratio": "constant",
        "buffer_capacity": 8,
        "max_new_tokens": 8,
    },
    # The devices of both processes lie along one axis, so that each has all rows of a batch.
    "off_policy": {"mesh": "tensor=4", "per_device_train_batch_size": 4, "max_steps": 2},
}
Words = Sequence[str]
Stop = tuple[int, str] | None


@dataclass(frozen=True)
class Job:
    """What the script is told on each process, and where it stops before its end."""

    words: tuple[Words, Words]
    stops: tuple[Stop, Stop] = (None, None)

    def plain(self) -> list[dict[str, Any]]:
        """For JSON."""
        both = zip(self.words, self.stops, strict=True)
        return [{"words": list(words), "stop": stop} for words, stop in both]


@dataclass(frozen=True)
class Ended:
    """How a process ended, and all that it printed."""

    status: int
    said: str

    def lines(self, start: str) -> list[str]:
        """What follows these words, wherever a line begins with them."""
        return [x.removeprefix(start) for x in self.said.splitlines() if x.startswith(start)]


@contextmanager
def started(folder: Path, jobs: Sequence[Job], processes: int) -> Iterator[list[Ended]]:
    """Processes that do jobs while the block runs; at its end the list has how they ended."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps([job.plain() for job in jobs]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for process in range(processes):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(process),
            }
        with (folder / f"{process}.txt").open("w") as said:
            running.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(folder / "jobs.json")],
                    env=environment,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            )
    ended: list[Ended] = []
    try:
        yield ended
        for process, of in enumerate(running):
            status = of.wait(LIMIT_SECONDS)
            ended.append(Ended(status, (folder / f"{process}.txt").read_text(errors="replace")))
    finally:
        for of in running:
            of.kill()
            of.wait()


@dataclass(frozen=True)
class Outcome:
    """How the processes ended: alone, both killed, and both going on."""

    folder: Path
    alone: list[Ended]
    killed: list[Ended]
    second: list[Ended]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What came of all jobs: five processes, each with several."""
    folder = tmp_path_factory.mktemp("hosts")
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    models = {
        "model_name_or_path": save(tiny_model(1, 2, **sizes), folder / "student"),
        "teacher_model_name_or_path": save(tiny_model(2, 1, **sizes), folder / "teacher"),
    }
    data = write_jsonl(folder / "rows.jsonl", ROWS)
    data_sets = {"dataset_name": data, "eval_dataset_name": data}

    def told(kind: str, name: str, **changes: Any) -> list[str]:
        place = {"output_dir": folder / name}
        settings = {**models, **data_sets, **place, **SETTINGS, **RUNS[kind], **changes}
        return [word for key, value in settings.items() for word in (f"--{key}", str(value))]

    def job(kind: str, name: str, *stops: Stop) -> Job:
        words = told(kind, name)
        return Job((words, words), (stops[0], stops[1]) if stops else (None, None))

    bad = Job((told("off_policy", "bad"), told("off_policy", "bad", dataset_name="no.jsonl")))
    stop = (3, "killed")
    first = [job("adaptive", "two adaptive"), job("adaptive", "broken", stop, stop)]
    then = [
        job("adaptive", "broken"),
        job("off_policy", "two off_policy"),
        bad,
        job("off_policy", "failed", None, (1, "failed")),
    ]
    with started(folder / "killed", first, 2) as killed:
        pass
    with (
        started(folder / "second", then, 2) as second,
        started(folder / "alone", [job(kind, f"one {kind}") for kind in RUNS], 1) as alone,
    ):
        pass
    return Outcome(folder, alone, killed, second)


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without what depends on the machine."""
    texts = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k not in TIME_FIELDS} for t in texts]


def results(run: Path) -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Mapping[str, float]] = json.loads((run / "results.json").read_text())
    return found


def student(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(run / "student" / "model.safetensors")


@pytest.mark.parametrize("kind", RUNS)
def test_two_processes_train_as_one(outcome: Outcome, kind: str) -> None:
    one, two = outcome.folder / f"one {kind}", outcome.folder / f"two {kind}"
    steps = {line["step"] for line in lines(one) if "loss" in line}
    assert steps == set(range(1, 1 + RUNS[kind].get("max_steps", SETTINGS["max_steps"])))
    for ours, theirs in zip(lines(two), lines(one), strict=True):
        assert ours.pop("model") == theirs.pop("model")
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-8)
    assert list(results(two)) == ["teacher", "student before", "student after"]
    for model, figures in results(one).items():
        assert results(two)[model] == pytest.approx(figures, rel=1e-5, abs=1e-8)
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    found, wanted = student(two), student(one)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_sequences_come_from_where_they_do_on_one_process(outcome: Outcome) -> None:
    whole = outcome.alone[0].lines("source ")[: SETTINGS["max_steps"]]
    assert set(whole) == {"STUDENT", "BUFFER"}
    for process in outcome.killed:
        assert process.lines("source ") == [*whole, *whole[:3]]


def test_killed_processes_go_on_as_if_there_had_been_no_break(outcome: Outcome) -> None:
    assert [process.status for process in outcome.killed] == [-signal.SIGKILL] * 2
    whole, broken = outcome.folder / "two adaptive", outcome.folder / "broken"
    assert "Going on from step 2" in outcome.second[0].said
    assert lines(whole) == lines(broken)
    assert results(whole) == results(broken)
    found, wanted = student(broken), student(whole)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_what_does_not_fit_on_one_process_is_refused_on_all(outcome: Outcome) -> None:
    message = "--dataset_name: no such file: no.jsonl"
    first, second = outcome.second
    assert first.lines("error: ") == [f"process 1: {message}"]
    assert second.lines("error: ") == [message]
    for process in outcome.second:
        assert process.lines("exit status ") == ["0", "0", "2"]
    assert not (outcome.folder / "bad").exists()


def test_a_process_that_fails_ends_the_other(outcome: Outcome) -> None:
    first, second = outcome.second
    assert first.status != 0
    assert second.status != 0
    assert "OSError: the wire is cut" in second.said
    assert "another task died" in first.said
    assert not (outcome.folder / "failed" / "student").exists()


def test_one_process_speaks(outcome: Outcome) -> None:
    for processes in (outcome.killed, outcome.second):
        assert "Student, metrics and curves are in" in processes[0].said
        assert "Student, metrics and curves are in" not in processes[1].said
