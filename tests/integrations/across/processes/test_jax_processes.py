"""Two processes with two devices each train as one process with four does, and end together."""

import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import jax_process
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import save, tiny_model, words, write_jsonl

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.run.progress import TIME_FIELDS
from amidmath.integrations.jax_loop.devices import processes as hosts

LIMIT_SECONDS = 240
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
        "policy": "adaptive",
        "init_threshold": 1.0,
        "replay_ratio": "constant",
        "buffer_capacity": 4,
        "max_new_tokens": 8,
    },
    # The devices of both processes lie along one axis, so that each has all rows of a batch.
    "off_policy": {
        "mesh": "tensor=4",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "eval_strategy": "no",
    },
}
Words = Sequence[str]
Stop = tuple[int, str] | None


@dataclass(frozen=True)
class Job:
    """What the script is told on each process, and where it stops before its end."""

    words: tuple[Words, Words]
    stops: tuple[Stop, Stop] = (None, None)

    def of(self, process: int) -> tuple[Words, Stop]:
        """What one of the processes does."""
        return self.words[process], self.stops[process]


@dataclass(frozen=True)
class Ended:
    """How a process ended, and all that it printed."""

    status: int | None
    said: str

    def lines(self, start: str) -> list[str]:
        """What follows these words, wherever a line begins with them."""
        return [x.removeprefix(start) for x in self.said.splitlines() if x.startswith(start)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ADDRESS": "here"}, "JAX_COORDINATOR_ADDRESS must be host:port, .* got 'here'"),
        ({"ADDRESS": ":80"}, "JAX_COORDINATOR_ADDRESS must be host:port, .* got ':80'"),
        ({"ADDRESS": "here:99999"}, "JAX_COORDINATOR_ADDRESS must be host:port, .* got 'here:99"),
        ({"COUNT": "two"}, "JAX_NUM_PROCESSES must be a whole number, got 'two'"),
        ({"COUNT": "0"}, "JAX_NUM_PROCESSES must be at least 1, got 0"),
        ({"INDEX": "2"}, "JAX_PROCESS_ID must be less than JAX_NUM_PROCESSES, which is 2, got 2"),
        ({"INDEX": "-1"}, "JAX_PROCESS_ID must be at least 0, got -1"),
    ],
)
def test_what_the_environment_says_must_fit(
    changes: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"ADDRESS": "127.0.0.1:80", "COUNT": "2", "INDEX": "0"}
    for name, value in (good | changes).items():
        monkeypatch.setenv(getattr(hosts, name), value)
    with pytest.raises(InputError, match=says):
        hosts.join()


def test_numbers_that_no_cluster_says(tmp_path: Path) -> None:
    said, variables = tmp_path / "said.txt", {hosts.ADDRESS: "127.0.0.1:80", hosts.COUNT: "2"}
    process = forked.start(jax_process.main, [([], None)], variables, said=said)
    process.join(LIMIT_SECONDS)
    assert process.exitcode == 2
    assert "JAX_PROCESS_ID must be given too where no cluster says it" in said.read_text()


@contextmanager
def started(folder: Path, jobs: Sequence[Job], processes: int) -> Iterator[list[Ended]]:
    """Processes that do jobs while the block runs; at its end the list has how they ended."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for process in range(processes):
        devices = f" --xla_force_host_platform_device_count={4 // processes}"
        variables = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + devices}
        if processes > 1:
            variables |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(process),
            }
        own = [job.of(process) for job in jobs]
        said = folder / f"{process}.txt"
        running.append((forked.start(jax_process.main, own, variables, said=said), said))
    ended: list[Ended] = []
    try:
        yield ended
        for of, said in running:
            of.join(LIMIT_SECONDS)
            ended.append(Ended(of.exitcode, said.read_text(errors="replace")))
    finally:
        for of, _ in running:
            of.kill()
            of.join()


@dataclass(frozen=True)
class Outcome:
    """How processes ended: one alone, two that were killed, two that went on, two that failed."""

    folder: Path
    alone: list[Ended]
    killed: list[Ended]
    second: list[Ended]
    failed: list[Ended]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What came of all jobs: three pairs of processes and one, each with two."""
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
        return words(settings)

    def job(kind: str, name: str, *stops: Stop) -> Job:
        command = told(kind, name)
        return Job((command, command), (stops[0], stops[1]) if stops else (None, None))

    stop = (3, "killed")
    whole = [job("adaptive", "two adaptive"), job("adaptive", "broken", stop, stop)]
    rest = [job("adaptive", "broken"), job("off_policy", "two off_policy")]
    one = [job(kind, f"one {kind}") for kind in RUNS]
    failing = [
        Job((told("off_policy", "bad"), told("off_policy", "bad", dataset_name="no.jsonl"))),
        job("off_policy", "failed", None, (0, "failed")),
    ]
    with started(folder / "0", whole, 2) as killed, started(folder / "1", failing, 2) as failed:
        pass
    with started(folder / "2", rest, 2) as second, started(folder / "3", one, 1) as alone:
        pass
    return Outcome(folder, alone, killed, second, failed)


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
    first, second = outcome.failed
    assert first.lines("error: ") == [f"process 1: {message}"]
    assert second.lines("error: ") == [message]
    for process in outcome.failed:
        assert process.lines("exit status ") == ["2"]
    assert not (outcome.folder / "bad").exists()


def test_a_process_that_fails_ends_the_other(outcome: Outcome) -> None:
    first, second = outcome.failed
    assert first.status != 0
    assert second.status != 0
    assert "OSError: the wire is cut" in second.said
    assert "another task died" in first.said
    assert not (outcome.folder / "failed" / "student").exists()


def test_one_process_speaks(outcome: Outcome) -> None:
    for processes in (outcome.killed, outcome.second):
        assert "Student, metrics and curves are in" in processes[0].said
        assert "Student, metrics and curves are in" not in processes[1].said
