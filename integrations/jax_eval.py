"""Evaluate a student, beside its teacher if there is one, on held-out text and on a task, in JAX.

    python integrations/jax_eval.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --task dolly --dataset_name dolly/valid.jsonl \
        --output_dir runs/mine-dolly

The flags and the files are those of torch_eval.py. ``--help`` lists all arguments.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import jax
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.quiet import quiet
from amidmath.integrations.common.evaluation.arguments import parse_arguments
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.evaluation.report import STUDENT, TEACHER
from amidmath.integrations.common.evaluation.run import Named, bar, run
from amidmath.integrations.common.rows.batches import held_out
from amidmath.integrations.common.tasks.answers import Answers, Decoding
from amidmath.integrations.common.tasks.prompts import HeldOut
from amidmath.integrations.common.tasks.tasks import Task
from amidmath.integrations.common.text.tokenizers import own_or_base, padding, place
from amidmath.integrations.jax_loop.devices.mesh import make_mesh
from amidmath.integrations.jax_loop.devices.processes import processes
from amidmath.integrations.jax_loop.evaluation.quality import Judge
from amidmath.integrations.jax_loop.evaluation.task_answers import answer
from amidmath.integrations.jax_loop.models.generation import end_tokens
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model
from amidmath.integrations.jax_loop.teachers.teachers import ModelTeacher

LIBRARIES = ("amidmath", "jax", "flax", "transformers", "rouge-score", "sacrebleu")


@dataclass(frozen=True)
class JaxModels:
    """See :class:`amidmath.integrations.common.evaluation.run.Models`."""

    models: Mapping[str, LoadedModel]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls, named: Mapping[str, Named], tokenizer: PreTrainedTokenizerBase, dtype: str | None
    ) -> "JaxModels":
        """The models, on the first device."""
        kept = dtype or ("float32" if jax.default_backend() == "cpu" else "auto")
        models = {}
        for role, of in named.items():
            type_ = _saved_dtype(of) if kept == "auto" else kept
            models[role] = load_model(
                of.flag, of.name, revision=of.revision, dtype=type_, param_dtype=type_
            )
        return cls(models, tokenizer)

    @property
    def contexts(self) -> dict[str, int | None]:
        """How many tokens each can read."""
        return {role: model.decoder.config.context for role, model in self.models.items()}

    @property
    def vocabularies(self) -> dict[str, int]:
        """Over how many tokens each has logits."""
        return {role: model.decoder.config.vocabulary for role, model in self.models.items()}

    @property
    def device(self) -> str:
        """The backend that computes, and its type."""
        return f"{jax.default_backend()}, {self.models[STUDENT].decoder.head().weight.dtype}"

    def judge(self, texts: HeldOut, batch_size: int, vocab: str) -> dict[str, Quality]:
        """KL, agreement and perplexity; of a student without teacher, the perplexity is all."""
        rows = Dataset.from_dict({"input_ids": texts.input_ids, "labels": texts.labels})
        batches = held_out(
            rows,
            batch_size=batch_size,
            pad=padding(self.tokenizer, [0], min(self.vocabularies.values())),
        )
        shown = bar(list(batches), desc="held-out text")
        mesh = make_mesh("data=1", jax.devices()[:1])
        student = self.models[STUDENT].decoder
        if TEACHER not in self.models:
            return {STUDENT: Judge(ModelTeacher(student, STUDENT), mesh)({}, shown)["teacher"]}
        teacher = ModelTeacher(self.models[TEACHER].decoder, TEACHER)
        return Judge(teacher, mesh, vocab)({STUDENT: student}, shown)

    def answer(
        self,
        role: str,
        prompts: Sequence[Sequence[int]],
        task: Task,
        how: Decoding,
        on_batch: Callable[[int], object],
    ) -> Answers:
        """A model's answers."""
        model = self.models[role]
        ends = end_tokens(model, self.tokenizer)
        return answer(model.decoder, self.tokenizer, ends, prompts, task, how, on_batch)


def _saved_dtype(of: Named) -> str:
    """The type that a model was saved in, or an adapter's base, by its config.json."""
    name, revision = own_or_base(of.name, of.revision)
    content, _ = PreTrainedConfig.get_config_dict(place(name), revision=revision)
    return str(content.get("dtype") or content.get("torch_dtype") or "float32")


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the results are written, 2 when something given does not fit, 130 when interrupted.
    """

    def work() -> None:
        arguments = parse_arguments(argv, prog="jax_eval.py", processes=processes())
        folder = run(arguments, Console(), JaxModels.load, LIBRARIES)
        log.into(folder)

    with quiet(argv) as log:
        return exit_status(work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
