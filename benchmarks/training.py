"""A whole training step, distilled against cross-entropy, with the models of `make distill`.

A step is the student's loss and gradient and what the teacher says of the batch, from random
weights; no step has the optimiser, which is the same for all.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import phases
from benchmarks.cases import Case
from benchmarks.subjects import Subject, missing

Step = Callable[[], tuple[Any, tuple[Any, ...]]]
SEED = 0
HEAD_SIZE = 64  # of an attention head, of which three share keys and values
OURS = "AMiDTrainer"
LABELS = "CE, and the teacher's logits"
LOGGED = ", a step that is logged"
KL_RATIO, AB_RATIO = Case("KL", alpha=1.0), Case("AB(.2,.7)")
LOSSES: dict[str, dict[str, Any]] = {
    KL_RATIO.title: {"divergence": "kl", "order": "pr", "alpha": 1.0, "lam": 0.1},
    AB_RATIO.title: {
        "divergence": "alpha_beta",
        "divergence_kwargs": {"alpha": 0.2, "beta": 0.7},
        "alpha": AB_RATIO.alpha,
    },
    "gkd": {"method": "gkd"},
}


@dataclass(frozen=True)
class Shape:
    """A batch and the two models; their other sizes follow as SmolLM2-135M has them.

    Args:
        rows: sequences of a batch.
        length: tokens of each.
        hidden: the width of both models, a multiple of 192.
        vocabulary: tokens that both know.
        student_layers: the student's decoder layers.
        teacher_layers: the teacher's.
    """

    rows: int
    length: int
    hidden: int
    vocabulary: int
    student_layers: int
    teacher_layers: int

    @property
    def group(self) -> str:
        """The table's name."""
        return f"training {self.rows} × {self.length} tokens"

    def words(self) -> str:
        """The models, for people."""
        return (
            f"A student of {self.student_layers} and a teacher of {self.teacher_layers} layers of "
            f"width {self.hidden:,}, vocabulary {self.vocabulary:,}"
        )


SHAPES = {"full": Shape(4, 128, 576, 49_152, 12, 30), "smoke": Shape(2, 8, 192, 96, 1, 2)}


def configuration(shape: Shape, layers: int) -> Any:
    """Of a Llama with SmolLM2's proportions and tied embeddings."""
    from transformers import LlamaConfig

    heads = shape.hidden // HEAD_SIZE
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=8 * shape.hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        tie_word_embeddings=True,
    )


def model(shape: Shape, layers: int) -> Any:
    """The Llama with random weights, float32."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(configuration(shape, layers))


def student(shape: Shape) -> Any:
    """The student, whose embeddings, and the head that is tied to them, do not train."""
    from amidmath.integrations.torch_loop.models.model_files import freeze_embeddings

    made = model(shape, shape.student_layers)
    freeze_embeddings(made)
    return made.train()


@functools.lru_cache(maxsize=1)
def teacher(shape: Shape) -> Any:
    """The teacher that all subjects share; it is the same after each."""
    return model(shape, shape.teacher_layers).eval().requires_grad_(False)


def weight_bytes(shape: Shape) -> int:
    """Bytes of both models."""
    import torch

    with torch.device("meta"):
        models = (model(shape, layers) for layers in (shape.student_layers, shape.teacher_layers))
        return sum(p.nbytes for made in models for p in made.parameters())


def _trainer_arguments(shape: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of both trainers: settings, and the rest."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(SEED)
    ids = torch.randint(shape.vocabulary, (shape.rows, shape.length))
    settings = {
        "output_dir": tempfile.gettempdir(),  # nothing is saved
        "max_length": shape.length,
        "per_device_train_batch_size": shape.rows,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    return settings, {"train_dataset": rows, "processing_class": tokenizer}


def _step(trained: Any, loss: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> Step:
    """A loss of a batch, and its gradients."""
    parameters = [p for p in trained.parameters() if p.requires_grad]

    def step() -> tuple[Any, tuple[Any, ...]]:
        value = loss(dict(batch))
        value.backward()
        grads = tuple(p.grad for p in parameters)
        trained.zero_grad()
        return value.detach(), grads

    return step


def _with_teacher(
    shape: Shape, loss: Callable[[dict[str, Any]], Any]
) -> Callable[[dict[str, Any]], Any]:
    """A loss, after the teacher's logits, of which it makes no use."""
    import torch

    teaching = teacher(shape)

    def of(batch: dict[str, Any]) -> Any:
        with torch.no_grad():
            teaching(batch["input_ids"], batch["attention_mask"], use_cache=False)
        return loss(batch)

    return of


def _trainer_loss(trainer: Any) -> tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]:
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    return lambda given: trainer.compute_loss(trainer.model, given, num_items_in_batch=count), batch


def _trl(shape: Shape) -> Step:
    """SFTTrainer's loss, which does not hold all logits."""
    from trl import SFTConfig, SFTTrainer

    settings, rest = _trainer_arguments(shape)
    trainer = SFTTrainer(student(shape), args=SFTConfig(**settings), **rest)
    loss, batch = _trainer_loss(trainer)
    return _step(trainer.model, _with_teacher(shape, loss), batch)


def _transformers(shape: Shape) -> Step:
    """The model's own loss."""
    import torch

    torch.manual_seed(SEED)
    ids = torch.randint(shape.vocabulary, (shape.rows, shape.length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    trained = student(shape)

    def loss(given: dict[str, Any]) -> Any:
        return trained(**given, use_cache=False).loss

    return _step(trained, _with_teacher(shape, loss), batch)


def _amid(shape: Shape, loss_settings: dict[str, Any], logged: bool) -> Step:
    from amidmath.integrations.torch_loop.settings.config import AMiDConfig
    from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

    settings, rest = _trainer_arguments(shape)
    config = AMiDConfig(**settings, **loss_settings)
    trainer = AMiDTrainer(student(shape), teacher(shape), config, **rest)
    trainer.state.logging_steps = 1 if logged else 0
    loss, batch = _trainer_loss(trainer)
    return _step(trainer.model, loss, batch)


def _subject(name: str, computes: str, make: Callable[[Shape], Step]) -> Subject:
    made = functools.lru_cache(maxsize=1)(make)  # all sweeps with the same models

    def build(shape: tuple[int, ...]) -> phases.Phases:
        return {"both": phases.Timed(made(Shape(*shape)))}

    absent = missing("torch", "transformers", "trl", "datasets", "tokenizers")
    return Subject(name, "torch CPU", computes, build, None, True, absent, ("both",))


@functools.cache
def subjects() -> tuple[Subject, ...]:
    """Cross-entropy in two ways, and losses of the distillation trainer."""
    plain = [(computes, settings, False) for computes, settings in LOSSES.items()]
    logged = (KL_RATIO.title + LOGGED, LOSSES[KL_RATIO.title], True)
    return (
        _subject("transformers", LABELS, _transformers),
        _subject("TRL SFTTrainer", LABELS, _trl),
        *(
            _subject(OURS, computes, functools.partial(_amid, loss_settings=s, logged=looks))
            for computes, s, looks in (*plain, logged)
        ),
    )
