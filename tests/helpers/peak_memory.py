"""Prints the estimated and the measured peak memory of training a small Llama on the CPU.

    python peak_memory.py FOLDER ROWS LENGTH CHECKPOINTING

Linux only: the peak is VmHWM of /proc/self/status, over what the libraries take.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tiny import byte_tokenizer, tiny_model

from amidmath.integrations.torch_loop.run.memory import Plan, estimate
from amidmath.integrations.torch_loop.run.model_shape import Shape
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


def status(name: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def model(layers: int, seed: int, length: int) -> torch.nn.Module:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    context = {"num_key_value_heads": 2, "max_position_embeddings": length, "vocab_size": 8192}
    return tiny_model(layers, seed, **sizes, **context)


def trainer(folder: str, rows: int, length: int, checkpointing: bool, big: bool) -> AMiDTrainer:
    config = AMiDConfig(
        folder,
        use_cpu=True,
        max_length=length,
        max_steps=3,
        per_device_train_batch_size=rows,
        activation_checkpointing=checkpointing,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows_of_text = [{"text": "x" * (2 * length)}] * (rows * 3)
    student, teacher = (model(6, 2, length), model(8, 1, length)) if big else _tiny(length)
    return AMiDTrainer(
        student,
        teacher,
        config,
        train_dataset=Dataset.from_list(rows_of_text),
        processing_class=byte_tokenizer(),
    )


def _tiny(length: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    return (
        tiny_model(1, 2, max_position_embeddings=length, vocab_size=8192),
        tiny_model(1, 1, max_position_embeddings=length, vocab_size=8192),
    )


def main() -> None:
    folder, rows, length, checkpointing = sys.argv[1], *map(int, sys.argv[2:])
    # What is loaded on first use: 128 rows of logits are enough to have kernels compiled (LLVM
    # takes some 90 MB).
    trainer(folder, 4, 32, False, big=False).train()
    before = status("VmRSS")
    big = trainer(folder, rows, length, bool(checkpointing), big=True)
    plan = Plan(rows, length, 1, 3, optimizer=big.args.optim, checkpointing=bool(checkpointing))
    found = estimate(Shape.of(big.student), Shape.of(big.teacher.model), plan)  # type: ignore[attr-defined]
    big.train()
    measured = status("VmHWM") - before
    print(json.dumps({"estimated": found.total, "measured": measured, "parts": found.parts}))


if __name__ == "__main__":
    main()
