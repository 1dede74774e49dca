"""The cost of going on from a checkpoint beyond loading models and data.

    python -m benchmarks.resuming FOLDER [--hidden 576 --layers 12 --vocabulary 49152]

Trains one step of a Llama with SmolLM2's proportions and random weights, saves, and resumes in a
trainer of its own. Printed: the seconds of loading (models, data, trainer), of checking the
checkpoint, of everything else between ``train`` and the next step, and the checkpoint's size. The
processor's seconds beyond loading are those of this process: on a busy machine they say more.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import training

if TYPE_CHECKING:
    from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


def trainer(folder: Path, shape: training.Shape) -> AMiDTrainer:
    """A trainer of two steps that saves after each."""
    from amidmath.integrations.torch_loop.settings.config import AMiDConfig
    from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

    settings, rest = training._trainer_arguments(shape)
    changes: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    config = AMiDConfig(**(settings | changes))
    student = training.model(shape, shape.student_layers)
    return AMiDTrainer(student, training.model(shape, shape.teacher_layers), config, **rest)


def measure(folder: Path, shape: training.Shape) -> dict[str, float]:
    """The seconds of each part, and the checkpoint's megabytes."""
    from transformers import TrainerCallback

    from amidmath.integrations.common.run.checkpoints import newest_whole

    trainer(folder, shape).train()
    start = time.perf_counter()
    resumed = trainer(folder, shape)
    loaded, busy = time.perf_counter(), time.process_time()
    newest_whole(folder, print)  # what the script does to find it
    checked = time.perf_counter()
    begun: list[tuple[float, float]] = []

    class Begins(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Note when the first step after the break begins."""
            begun.append((time.perf_counter(), time.process_time()))

    resumed.add_callback(Begins())
    checkpoint = folder / "checkpoint-1"
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    resumed.train(resume_from_checkpoint=str(checkpoint))
    return {
        "parameters": sum(p.numel() for p in resumed.student.parameters()),
        "checkpoint_mb": size / 1e6,
        "loading_s": loaded - start,
        "checking_s": checked - loaded,
        "resuming_s": begun[0][0] - checked,
        "beyond_loading_s": begun[0][0] - loaded,
        "beyond_loading_cpu_s": begun[0][1] - busy,
    }


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    given = parser.parse_args()
    shape = training.Shape(1, 32, given.hidden, given.vocabulary, given.layers, 1)
    print(json.dumps(measure(given.folder, shape)))


if __name__ == "__main__":
    main()
