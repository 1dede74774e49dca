"""Checkpoints are whole or not there, and training goes on from one as if it had not stopped."""

import errno
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as distributed
from datasets import Dataset
from safetensors.torch import load_file
from tiny import SENTENCES, byte_tokenizer, tiny_model
from trl import SFTConfig, SFTTrainer

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.run.checkpoints import (
    newest_whole,
    problem_with,
    read_state,
    remove_leftovers,
    require_whole,
    write_state,
)
from amidmath.integrations.common.run.progress import TIME_FIELDS
from amidmath.integrations.common.storage.full_disk import DiskFullError
from amidmath.integrations.torch_loop.logs.callbacks import MetricsLog, Speed
from amidmath.integrations.torch_loop.training.checkpoints import WholeCheckpoints
from amidmath.integrations.torch_loop.training.unpickling import refuse_code

ROWS = Dataset.from_list([{"text": sentence * (1 + i % 2)} for i, sentence in enumerate(SENTENCES)])


class Counter:
    """A state of numbers and arrays."""

    def __init__(self) -> None:
        self.count, self.drawn = 0, np.zeros(0, np.int64)
        self.rng = np.random.default_rng(5)

    def draw(self) -> None:
        self.count += 1
        self.drawn = np.append(self.drawn, self.rng.integers(1000))

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "rng": self.rng.bit_generator.state, "drawn": self.drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count, self.drawn = state["count"], state["drawn"]
        self.rng.bit_generator.state = state["rng"]


class Trainer(WholeCheckpoints, SFTTrainer):
    """Draws from torch's generator before every step, as generating does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counter = Counter()
        self.noise: list[float] = []

    def extra_states(self) -> dict[str, Any]:
        return super().extra_states() | {"counter": self.counter}

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches = super().get_batch_samples(*args, **kwargs)
        self.counter.draw()
        self.noise.append(float(torch.rand(())))
        return batches


class Killed(BaseException):
    """The process is gone."""


Make = Callable[..., Trainer]


def trainer_in(folder: Path, **changes: Any) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_length": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "activation_checkpointing": False,
        "num_train_epochs": 3,
        "max_steps": 5,
        "logging_steps": 2,
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "epoch",
        "learning_rate": 1e-2,
    }
    trainer = Trainer(
        tiny_model(1, 3, attention_dropout=0.1),
        SFTConfig(**(settings | changes)),
        train_dataset=ROWS,
        eval_dataset=ROWS.select(range(2)),
        processing_class=byte_tokenizer(),
    )
    trainer.add_callback(Speed())
    trainer.add_callback(MetricsLog(folder / "metrics.jsonl", "student"))
    return trainer


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(folder: str = "run", **changes: Any) -> Trainer:
        return trainer_in(tmp_path / folder, **changes)

    return make


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k not in TIME_FIELDS} for t in text]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of five steps that nothing has stopped."""
    trainer = trainer_in(tmp_path_factory.mktemp("trained") / "whole")
    trainer.train()
    return trainer


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_going_on_from_any_step_ends_the_same(
    whole: Trainer, make: Make, tmp_path: Path, step: int
) -> None:
    """Two steps an epoch, a log line every second step, an evaluation an epoch."""
    shutil.copytree(whole.args.output_dir, tmp_path / "whole")
    again = make("whole")
    (tmp_path / "whole" / "metrics.jsonl").rename(tmp_path / "expected.jsonl")
    expected = (tmp_path / "expected.jsonl").read_text().splitlines()
    (tmp_path / "whole" / "metrics.jsonl").write_text('{"of": "a later step"}\n')
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    found = lines(tmp_path / "whole")
    kept = [{k: v for k, v in json.loads(t).items() if k not in TIME_FIELDS} for t in expected]
    assert found == kept
    assert [line["step"] for line in kept if "loss" in line] == [2, 4]
    assert [line["step"] for line in kept if "eval_loss" in line] == [2, 4, 5]
    assert "train_loss" in kept[-1]
    assert again.noise == whole.noise[step:]
    assert np.array_equal(again.counter.drawn, whole.counter.drawn)
    assert again.counter.state()["rng"] == whole.counter.state()["rng"]


def test_how_often_to_save_and_log_may_change(make: Make, tmp_path: Path) -> None:
    make(save_steps=2, logging_steps=5).train()
    make(save_steps=1, logging_steps=1).train(str(tmp_path / "run" / "checkpoint-2"))
    assert (tmp_path / "run" / "checkpoint-3").exists()
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [3, 4, 5]


def test_the_best_and_the_newest_are_kept(make: Make, tmp_path: Path) -> None:
    """The learning rate is so high that the first evaluation stays the best."""
    trainer = make(
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=30.0,
        lr_scheduler_type="constant",
    )
    trainer.train()
    assert {p.name for p in (tmp_path / "run").glob("*checkpoint*")} == {
        "checkpoint-1",
        "checkpoint-5",
    }
    best = str(tmp_path / "run" / "checkpoint-1")
    for step in (1, 5):
        state = json.loads((tmp_path / f"run/checkpoint-{step}/trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == best
    saved = load_file(tmp_path / "run/checkpoint-1/model.safetensors")
    assert torch.equal(trainer.model.state_dict()["model.norm.weight"], saved["model.norm.weight"])


def test_a_checkpoint_names_its_files_and_holds_no_pickle_of_arguments(
    make: Make, tmp_path: Path
) -> None:
    make(max_steps=1).train()
    folder = tmp_path / "run" / "checkpoint-1"
    manifest = json.loads((folder / "complete.json").read_text())["files"]
    files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    del files["complete.json"]
    assert {name: entry["size"] for name, entry in manifest.items()} == files
    assert "training_args.bin" not in files
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"} <= files.keys()
    assert {"distillation_state.json", "distillation_state.safetensors"} <= files.keys()
    assert problem_with(folder) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "three"
    trainer_in(folder, max_steps=3).train()
    return folder


@pytest.fixture
def three(trained: Path, tmp_path: Path) -> Path:
    """A run folder with three checkpoints, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: min(1000, len(content) // 2)])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "file", "says"),
    [
        (truncate, "optimizer.pt", "optimizer.pt has 1,000 bytes, expected "),
        (flip, "model.safetensors", "model.safetensors has the right size but CRC-32 "),
        (Path.unlink, "rng_state.pth", "rng_state.pth is missing"),
        (Path.unlink, "complete.json", "it has no complete.json"),
        (truncate, "complete.json", "complete.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_not_used(
    three: Path, make: Make, damage: Callable[[Path], None], file: str, says: str
) -> None:
    damaged = three / "checkpoint-3"
    damage(damaged / file)
    told: list[str] = []
    assert newest_whole(three, told.append) == three / "checkpoint-2"
    assert len(told) == 1
    assert f"{damaged} is damaged: {says}" in told[0]
    assert told[0].endswith("passed over for checkpoint-2")
    with pytest.raises(InputError, match=rf"^--resume_from_checkpoint: {damaged} .*{says}"):
        make().train(resume_from_checkpoint=str(damaged))


def test_damaged_checkpoints_alone_are_refused(three: Path) -> None:
    for step in (1, 2, 3):
        truncate(three / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(InputError, match=r"checkpoint-3 is damaged.*no older one is whole"):
        newest_whole(three, print)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_whole(tmp_path, print) is None
    assert newest_whole(tmp_path / "none", print) is None
    with pytest.raises(InputError, match="no such folder"):
        require_whole(tmp_path / "checkpoint-7")


@pytest.mark.parametrize("last", ["_save_rng_state", "_save_scaler"])
def test_a_killed_save_leaves_nothing_that_counts(
    make: Make, tmp_path: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    run = tmp_path / "run"

    def die(folder: str) -> None:
        if trainer.state.global_step == 2:
            assert {p.name for p in run.glob("*checkpoint*")} == {
                "checkpoint-1",
                ".partial-checkpoint-2",
            }
            os.rename(run / ".partial-checkpoint-2", run / "kept")  # noqa: PTH104
            raise Killed

    monkeypatch.setattr(trainer, last, die)
    with pytest.raises(Killed):
        trainer.train()
    (run / "kept").rename(run / ".partial-checkpoint-2")  # a killed process removes nothing
    assert newest_whole(run, print) == run / "checkpoint-1"
    make().train(resume_from_checkpoint=True)
    assert not (run / ".partial-checkpoint-2").exists()
    assert problem_with(run / "checkpoint-5") is None


def test_leftovers_are_named(tmp_path: Path) -> None:
    (tmp_path / ".partial-checkpoint-4").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    assert remove_leftovers(tmp_path) == [".partial-checkpoint-4"]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_stops_the_run_and_costs_no_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    run = tmp_path / "run"

    def fill(folder: str) -> None:
        if trainer.state.global_step == 2:
            Path("/dev/full").write_bytes(b"x")

    monkeypatch.setattr(trainer, "_save_scaler", fill)
    with pytest.raises(DiskFullError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message
    assert f"checkpoint-2 could not be written to {run}/, where " in message
    assert " bytes are free" in message
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert [p.name for p in run.glob("*checkpoint*")] == ["checkpoint-1"]
    assert problem_with(run / "checkpoint-1") is None


def test_another_failure_of_a_save_is_not_called_a_full_disk(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    monkeypatch.setattr(trainer, "_save_scaler", lambda folder: [][1])
    with pytest.raises(IndexError):
        trainer.train()
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_a_state_that_another_run_has_is_refused(three: Path, make: Make) -> None:
    trainer = make()
    trainer.add_callback(type("Other", (Speed,), {}))
    with pytest.raises(InputError, match=r"holds the states of .*; this run has .*Other"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_replaces_a_damaged_one_of_its_step(three: Path, make: Make) -> None:
    truncate(three / "checkpoint-3" / "optimizer.pt")
    make(max_steps=3).train(resume_from_checkpoint=True)
    assert problem_with(three / "checkpoint-3") is None
    assert not list(three.glob(".partial*"))


def test_states_come_back_exactly(tmp_path: Path) -> None:
    state = {
        "float": 0.1 + 0.2,
        "big": 2**130,
        "text": "a\tb\u2028é",
        "list": [1.5, None, True],
        "i": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2],
        "none": np.zeros((0, 2), np.float32),
    }
    write_state(tmp_path, "s", {"a": state, "b": {}})
    found = read_state(tmp_path, "s")
    assert found.keys() == {"a", "b"}
    for name, value in state.items():
        assert type(found["a"][name]) is type(value)
        assert np.array_equal(found["a"][name], value)
        if isinstance(value, np.ndarray):
            assert found["a"][name].dtype == value.dtype


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {1: 2}}], ids=["tuple", "key"])
def test_states_that_json_would_change_are_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unchanged"):
        write_state(tmp_path, "s", {"owner": state})


@pytest.mark.parametrize(("ending", "keep"), [("json", 10), ("safetensors", 10)])
def test_damaged_states_are_refused(tmp_path: Path, ending: str, keep: int) -> None:
    write_state(tmp_path, "s", {"a": {"x": np.arange(9)}})
    path = tmp_path / f"s.{ending}"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"s\.json cannot be read"):
        read_state(tmp_path, "s")
    path.unlink()
    with pytest.raises(InputError, match=rf"has no s\.json|No such file.*s\.{ending}"):
        read_state(tmp_path, "s")


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_are_read_unless_they_would_run_code(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1" / "optimizer_0"
    content = {"weight": torch.ones(3), "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    distributed.save(content, checkpoint_id=folder, no_dist=True)
    refuse_code(tmp_path / "checkpoint-1")

    done = tmp_path / "was_run"
    distributed.save({"evil": Evil(done)}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(InputError, match=r"optimizer_0/__0_0.distcp is not read.*mkdir"):
        refuse_code(tmp_path / "checkpoint-1")

    (folder / ".metadata").write_bytes(pickle.dumps(Evil(done)))
    with pytest.raises(InputError, match=r"\.metadata is not read.*mkdir"):
        refuse_code(tmp_path / "checkpoint-1")
    assert not done.exists()


def test_deepspeed_checkpoints_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1" / "global_step1"
    folder.mkdir(parents=True)
    torch.save({"module": {"w": torch.ones(2)}, "lr": 0.1}, folder / "mp_rank_00_model_states.pt")
    refuse_code(tmp_path / "checkpoint-1")
    torch.save({"x": Evil(tmp_path / "was_run")}, folder / "zero_pp_rank_0_optim_states.pt")
    with pytest.raises(InputError, match=r"zero_pp_rank_0_optim_states.pt is not read.*mkdir"):
        refuse_code(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_transformers_does_not_run_code_of_a_checkpoint(
    three: Path, make: Make, tmp_path: Path, name: str
) -> None:
    """The manifest of the damaged checkpoint is made to fit, as a forger would."""
    folder = three / "checkpoint-2"
    torch.save(Evil(tmp_path / "was_run"), folder / name)
    manifest = json.loads((folder / "complete.json").read_text())
    content = (folder / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    (folder / "complete.json").write_text(json.dumps(manifest))
    assert problem_with(folder) is None
    with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
        make().train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "was_run").exists()
