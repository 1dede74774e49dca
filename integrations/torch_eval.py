"""Evaluate a student, beside its teacher if there is one, on held-out text and on a task.

    python integrations/torch_eval.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --task dolly --dataset_name dolly/valid.jsonl \
        --output_dir runs/mine-dolly

Prints a table and writes results.json and predictions.jsonl. ``--help`` lists all arguments.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.quiet import quiet
from amidmath.integrations.common.evaluation.arguments import parse_arguments
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.evaluation.report import STUDENT, TEACHER
from amidmath.integrations.common.evaluation.run import Named, bar, run
from amidmath.integrations.common.tasks.answers import Answers, Decoding
from amidmath.integrations.common.tasks.prompts import HeldOut
from amidmath.integrations.common.tasks.tasks import Task
from amidmath.integrations.common.text.tokenizers import padding
from amidmath.integrations.torch_loop.evaluation.quality import evaluate
from amidmath.integrations.torch_loop.evaluation.task_answers import answer, collated
from amidmath.integrations.torch_loop.models.model_files import (
    context_of,
    load_model,
    logits_of_model,
)

LIBRARIES = ("amidmath", "torch", "transformers", "rouge-score", "sacrebleu")


@dataclass(frozen=True)
class TorchModels:
    """See :class:`amidmath.integrations.common.evaluation.run.Models`."""

    models: Mapping[str, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls, named: Mapping[str, Named], tokenizer: PreTrainedTokenizerBase, dtype: str | None
    ) -> "TorchModels":
        """The models, on the GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kept = dtype or ("float32" if device.type == "cpu" else "auto")
        models = {
            role: load_model(of.flag, of.name, revision=of.revision, dtype=kept)
            for role, of in named.items()
        }
        for model in models.values():
            cast("torch.nn.Module", model).to(device)
        return cls(models, tokenizer)

    @property
    def contexts(self) -> dict[str, int | None]:
        """How many tokens each can read."""
        return {role: context_of(model) for role, model in self.models.items()}

    @property
    def vocabularies(self) -> dict[str, int]:
        """Over how many tokens each has logits."""
        return {role: logits_of_model(model) for role, model in self.models.items()}

    @property
    def device(self) -> str:
        """The backend that computes, and its type."""
        student = self.models[STUDENT]
        return f"{student.device.type}, {str(student.dtype).removeprefix('torch.')}"

    def judge(self, texts: HeldOut, batch_size: int, vocab: str) -> dict[str, Quality]:
        """KL, agreement and perplexity; of a student without teacher, the perplexity is all."""
        student = self.models[STUDENT]
        pad = padding(self.tokenizer, [0], min(self.vocabularies.values()))
        batches = bar(collated(texts, pad, batch_size), desc="held-out text")
        teacher = self.models.get(TEACHER)
        if teacher is None:
            return {STUDENT: evaluate({}, student, batches, student.device)["teacher"]}
        return evaluate({STUDENT: student}, teacher, batches, student.device, vocab)

    def answer(
        self,
        role: str,
        prompts: Sequence[Sequence[int]],
        task: Task,
        how: Decoding,
        on_batch: Callable[[int], object],
    ) -> Answers:
        """A model's answers."""
        return answer(self.models[role], self.tokenizer, prompts, task, how, on_batch)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the results are written, 2 when something given does not fit, 130 when interrupted.
    """

    def work() -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        arguments = parse_arguments(argv, prog="torch_eval.py", processes=processes)
        folder = run(arguments, Console(), TorchModels.load, LIBRARIES)
        log.into(folder)

    with quiet(argv) as log:
        return exit_status(work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
