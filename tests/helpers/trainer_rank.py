"""One of the processes of test_two_processes.py: trains, and says what came out.

Usage: trainer_rank.py rank ranks folder. The folder has jobs.json, and gets rank.pkl.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from gloo import joined
from peft import LoraConfig
from tiny import byte_tokenizer, tiny_model
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

from amidmath.integrations.torch_loop.devices.engines import whole_weights
from amidmath.integrations.torch_loop.devices.processes import main_console
from amidmath.integrations.torch_loop.devices.shares import in_order, own_batches, summed
from amidmath.integrations.torch_loop.loss import objective
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

STEPS, ROWS_A_STEP = 2, 4
# Rows of unequal lengths, so that no two processes have as many tokens.
ROWS = [
    {"prompt": "a short one: ", "completion": "yes"},
    {"prompt": "b: ", "completion": "a much longer completion than the others have"},
    {"prompt": "a rather longer prompt here: ", "completion": "no"},
    {"prompt": "c: ", "completion": "middling length"},
    {"prompt": "one more: ", "completion": "and its answer"},
    {"prompt": "d: ", "completion": "x"},
    {"prompt": "the last but one: ", "completion": "is a long one too, of many bytes"},
    {"prompt": "e: ", "completion": "end"},
]


def train(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Two optimiser steps of four rows; the same rows whatever the number of processes."""
    # All positions are looked at, so that figures do not depend on how rows are shared out.
    with mock.patch.object(objective, "SAMPLE", 10_000):
        return _trained(job, folder)


def _trained(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    trainer = _trainer(job, folder)
    start = _whole(trainer.student)
    trainer.train()
    if "output" in job:  # once more, from the checkpoint of the first step
        trainer.accelerator.free_memory()
        trainer = _trainer(job, folder)
        trainer.train(resume_from_checkpoint=str(folder / job["output"] / "checkpoint-1"))
    teacher = getattr(trainer.teacher, "model", None)
    placements = {} if teacher is None else _placements(teacher)
    result = {
        "log": trainer.state.log_history,
        "change": {k: v - start[k] for k, v in _whole(trainer.student).items()},
        "teacher": placements,
        "student": _placements(trainer.student),
        "end": _whole(trainer.student),
    }
    if "save" in job:
        weights = whole_weights(trainer)
        if trainer.accelerator.is_main_process:
            trainer.student.save_pretrained(folder / job["save"], state_dict=weights)
        trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return result


def _trainer(job: dict[str, Any], folder: Path) -> AMiDTrainer:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    accumulation = job.get("accumulation", 1)
    settings: dict[str, Any] = {
        "output_dir": str(folder / job.get("output", "out")),
        "max_length": 64,
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS_A_STEP // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
    }
    config = AMiDConfig(**(settings | job.get("settings", {})))
    if job.get("engine") == "fsdp2":
        # accelerate has FSDP on accelerators only, by the type of its state, which is made with
        # the configuration; said to be of GPUs, it does the same on CPUs with gloo.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    model = tiny_model(1, 2, **job.get("student", {}))
    teacher: Any = "base"
    if job.get("teacher") == "gpt2":
        teacher = _gpt2()
    elif job.get("teacher") != "base":
        teacher = tiny_model(2, 1, **job.get("teacher", {}))
    trainer = AMiDTrainer(
        model,
        teacher,
        config,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[: job.get("held_out", 5)]),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(**job["lora"]) if "lora" in job else None,
    )
    if "ends" in job:
        trainer.student.generation_config.eos_token_id = job["ends"]
    if "lora" in job:  # B starts at zero, and A's gradient with it
        generator = torch.Generator().manual_seed(5)
        for name, parameter in trainer.student.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainer


def shares(rows: list[int], batch_size: int) -> dict[str, Any]:
    """What this process gets of some rows, and what all make of it together."""

    def collate(some: list[int]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor(some), "labels": torch.tensor(some)}

    batches = list(own_batches(rows, collate, batch_size))
    counted = [int(n) for batch in batches for n in batch["labels"] if n != -100]
    total = summed(torch.tensor([float(sum(counted)), 1.0]))
    return {
        "batches": len(batches),
        "counted": counted,
        "total": total.tolist(),
        "in order": in_order([f"answer {n}" for n in counted]),
        "quiet": main_console().quiet,
    }


def _gpt2() -> GPT2LMHeadModel:
    """A teacher whose layers are of another class than the student's."""
    torch.manual_seed(3)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(byte_tokenizer()), **sizes))


def _whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that train, whole, by names that no engine changes."""
    return {
        name.removeprefix("module."): _plain(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _plain(parameter: torch.Tensor) -> torch.Tensor:
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().clone()


def _placements(model: torch.nn.Module) -> dict[str, str]:
    """How each weight is kept: its placements, or "whole"."""
    return {
        name: str(p.placements) if isinstance(p, DTensor) else "whole"
        for name, p in model.named_parameters()
    }


@contextmanager
def engine(name: str) -> Iterator[None]:
    """What accelerate launch says in the environment, for DDP or FSDP2."""
    fsdp2 = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    if name == "fsdp2":
        os.environ.update(fsdp2)
    try:
        yield
    finally:
        for key in fsdp2:
            os.environ.pop(key, None)
        AcceleratorState._reset_state(reset_partial_state=True)


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(rank, ranks, folder):
        jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
        done = {}
        for name, job in jobs.items():
            with engine(job["engine"]):
                try:
                    done[name] = train(job, folder)
                except Exception:
                    done[name] = {"error": traceback.format_exc()}
        with engine("ddp"):
            PartialState(cpu=True)
            done["shares"] = {n: shares(list(range(1, n + 1)), 2) for n in (1, 4, 5, 9)}
        with (folder / f"{rank}.pkl").open("wb") as file:
            pickle.dump(done, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
