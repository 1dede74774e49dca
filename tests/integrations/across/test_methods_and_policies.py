"""Every method trains; every data policy trains on the sequences that it says."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from transformers import AutoTokenizer

import amidmath as am
from amidmath.integrations.common.errors import InputError, TrainingError
from amidmath.integrations.common.policies.base import Source
from amidmath.integrations.torch_loop.loss import objective
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

ROWS = Dataset.from_list(
    [{"prompt": f"{name}: ", "completion": "an answer of words"} for name in "abcdefgh"]
)
Make = Callable[..., AMiDTrainer]


@pytest.fixture
def make(student_dir: Path, tmp_path: Path) -> Make:
    def build(rows: Dataset = ROWS, teacher: Any = None, **changes: Any) -> AMiDTrainer:
        settings = {
            "output_dir": str(tmp_path),
            "max_length": 48,
            "max_new_tokens": 8,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "use_cpu": True,
        }
        return AMiDTrainer(
            tiny_model(1, 2),
            teacher or tiny_model(2, 1),
            AMiDConfig(**(settings | changes)),
            train_dataset=rows,
            eval_dataset=rows.select(range(2)),
            processing_class=AutoTokenizer.from_pretrained(student_dir),
        )

    return build


def _learned_logits(batch: dict[str, torch.Tensor], *models: torch.nn.Module) -> list[torch.Tensor]:
    """Each model's logits of the positions whose next token has a label, in float64."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "source")}
    at = torch.zeros_like(batch["labels"], dtype=torch.bool)
    at[:, :-1] = batch["labels"][:, 1:] != -100
    return [model(**inputs).logits[at].detach().double() for model in models]


def _logged(trainer: AMiDTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("method", sorted(am.methods.METHODS))
def test_every_method_comes_closer_to_its_teacher(make: Make, method: str) -> None:
    policy = "mixed" if method == "distillm2" else "off_policy"
    trainer = make(method=method, max_steps=8, policy=policy)
    trainer.train()
    kl = _logged(trainer, "kl")
    assert len(kl) == 8
    assert min(kl[-3:]) < kl[0]


def test_the_logged_kl_and_overlap_are_those_of_the_rows(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "SAMPLE", 10_000)  # all of them
    trainer = make(learning_rate=0.0, max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    kl, overlap, count = 0.0, 0.0, 0
    for row in trainer.train_rows:
        ids = torch.tensor([row["input_ids"]])
        at = [t - 1 for t, label in enumerate(row["labels"]) if label != -100 and t > 0]
        p, q = (
            model(input_ids=ids).logits[0, at].detach().double().softmax(-1)
            for model in (trainer.teacher.model, trainer.student)
        )
        kl += float((p * (p / q).log()).sum())
        overlap += float(torch.minimum(p, q).sum())
        count += len(at)
    assert _logged(trainer, "kl")[0] == pytest.approx(kl / count, rel=1e-4)
    assert _logged(trainer, "overlap")[0] == pytest.approx(overlap / count, rel=1e-4)


def test_schedules_reach_the_loss_and_the_log(make: Make) -> None:
    schedule = ["lam=linear:0.1:0.7", "alpha=overlap:-5:1", "temperature=cosine:2:1"]
    trainer = make(schedule=schedule)
    trainer.train()
    assert _logged(trainer, "lam") == pytest.approx([0.1, 0.3, 0.5, 0.7])
    alphas, overlaps = _logged(trainer, "alpha"), _logged(trainer, "overlap")
    assert alphas[0] == -5.0
    assert alphas[1:] == pytest.approx([6.0 * o - 5.0 for o in overlaps[:-1]])
    loss = trainer.recipe.losses(3, 4)["any"]
    assert loss.lam == pytest.approx(0.7)
    assert loss.temperature == 1.0


def test_taid_follows_the_losses(make: Make) -> None:
    trainer = make(method="taid", schedule=["t=taid:0.4:1"], max_steps=6)
    trainer.train()
    t = _logged(trainer, "t")
    assert t[0] == t[1] == 0.4
    assert t == sorted(t)
    assert t[-1] >= 0.4 + 0.6 * 4 / 6


def test_alpha_by_token_is_the_formula_of_the_overlap(make: Make) -> None:
    trainer = make(schedule=["alpha=overlap_token:-3:1"], learning_rate=0.0, max_steps=1)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    student, teacher = _learned_logits(batch, trainer.student, trainer.teacher.model)
    overlap = torch.minimum(student.softmax(-1), teacher.softmax(-1)).sum(-1)
    loss = am.AMiD(alpha=-3.0 + 4.0 * overlap, lam=0.1)(student, teacher)
    found = trainer.compute_loss(trainer.model, batch).detach()
    assert float(found) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "sources"),
    [
        ("on_policy", {Source.STUDENT}),
        ("mixed", {Source.STUDENT, Source.DATASET}),
        ("sequence_level", {Source.TEACHER}),
        ("adaptive", {Source.STUDENT, Source.DATASET, Source.BUFFER}),
    ],
)
def test_policies_train_on_what_they_say(
    make: Make, monkeypatch: pytest.MonkeyPatch, policy: str, sources: set[Source]
) -> None:
    settings: dict[str, Any] = {"init_threshold": 0.9, "buffer_capacity": 6}
    trainer = make(
        policy=policy,
        max_steps=12,
        generation_temperature=0.0,
        **(settings if policy == "adaptive" else {}),
    )
    seen = []
    original = trainer.rollouts.batches

    def batches(source: Source, given: Any) -> Any:
        made = original(source, given)
        writer = trainer.teacher.model if source is Source.TEACHER else trainer.student
        for before, after in zip(given, made, strict=True):
            seen.append(source)
            for old, new in zip(_rows(before), _rows(after), strict=True):
                if source is Source.DATASET:
                    assert old == new
                elif source is not Source.BUFFER:
                    assert old[0] == new[0]
                    assert new[1] == _greedy(writer, new[0], 8)
        return made

    monkeypatch.setattr(trainer.rollouts, "batches", batches)
    trainer.train()
    assert set(seen) == sources
    assert len(seen) == 12


def _rows(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of every row, by its labels."""
    found = []
    kept = batch["attention_mask"].bool()
    for ids, labels, keep in zip(batch["input_ids"], batch["labels"], kept, strict=True):
        learned = labels[keep] != -100
        found.append((ids[keep][~learned].tolist(), ids[keep][learned].tolist()))
    return found


@torch.no_grad()
def _greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


def test_contrastive_losses_see_their_own_rows(make: Make) -> None:
    trainer = make(method="distillm2", policy="mixed", generation_temperature=0.0)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    for source, key in ((Source.DATASET, "teacher"), (Source.STUDENT, "student")):
        (made,) = trainer.rollouts.batches(source, [dict(batch)])
        student, teacher = _learned_logits(made, trainer.student, trainer.teacher.model)
        expected = am.methods.METHODS["distillm2"].losses()[key](student, teacher)
        found = trainer.compute_loss(trainer.model, made).detach()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_pairs_of_answers_train_with_the_loss_of_their_writer(make: Make) -> None:
    pairs = [
        {"prompt": f"{name}: ", "chosen": "by the teacher", "rejected": "by the student, long"}
        for name in "abcd"
    ]
    trainer = make(
        rows=Dataset.from_list(pairs), method="distillm2", train_sampling_strategy="sequential"
    )
    batch = dict(next(iter(trainer.get_train_dataloader())))
    assert batch["source"].tolist() == [0, 1]
    count = int((batch["labels"][:, 1:] != -100).sum())
    expected = 0.0
    losses = am.methods.METHODS["distillm2"].losses()
    for row, source in enumerate(("teacher", "student")):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        student, teacher = _learned_logits(alone, trainer.student, trainer.teacher.model)
        expected += float(losses[source](student, teacher, reduction="sum"))
    found = trainer.compute_loss(trainer.model, batch).detach()
    assert float(found) == pytest.approx(expected / count, rel=1e-5)
    with pytest.raises(InputError, match="which --method distillm2"):
        make(rows=Dataset.from_list(pairs), method="kl")


def test_cross_entropy_is_added_with_its_weight(make: Make) -> None:
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        trainer = make(label_weight=weight)
        batch = dict(next(iter(trainer.get_train_dataloader())))
        labels = batch["labels"]
        if weight == 1.0:
            logits = trainer.student(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            entropy = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        losses[weight] = float(trainer.compute_loss(trainer.model, batch).detach())
    assert losses[1.0] - losses[0.0] == pytest.approx(float(entropy.detach()), rel=1e-4)
    assert losses[0.25] - losses[0.0] == pytest.approx(0.25 * float(entropy.detach()), rel=1e-3)


def test_the_base_model_teaches_its_adapter(student_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    config = AMiDConfig(
        str(tmp_path),
        max_length=48,
        max_steps=1,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = AMiDTrainer(
        tiny_model(1, 2),
        "base",
        config,
        train_dataset=ROWS,
        processing_class=AutoTokenizer.from_pretrained(student_dir),
        peft_config=LoraConfig(target_modules=["q_proj", "up_proj"]),
    )
    batch = dict(next(iter(trainer.get_train_dataloader())))
    assert float(trainer.compute_loss(trainer.model, dict(batch)).detach()) < 1e-6
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    found = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    (student,) = _learned_logits(batch, trainer.model)
    with trainer.model.disable_adapter():
        (teacher,) = _learned_logits(batch, trainer.model)
    assert found == pytest.approx(float(am.AMiD()(student, teacher)), rel=1e-4)
    assert found > 1e-3


def test_base_teachers_need_an_adapter(make: Make) -> None:
    with pytest.raises(InputError, match="--teacher_is_base: the student has no adapter"):
        make(teacher="base")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": "on_policy", "packing": True}, "leave out --packing"),
        ({"policy": "adaptive", "buffer_capacity": 1}, "--buffer_capacity 1 is less than the 2"),
        ({"policy": "mixed", "loss_eps": 0.1}, "--loss_eps has no effect with --policy mixed"),
        ({"policy": "off_policy", "student_fraction": 0.1}, "--student_fraction has no effect"),
        ({"generation_top_p": 0.0}, "--generation_top_p must lie in"),
        ({"max_new_tokens": 0}, "--max_new_tokens must be at least 1"),
        ({"method": "gkd", "lam": 0.5}, "--lam 0.5: it is a parameter of method amid; gkd takes"),
        ({"method_kwargs": {"beta": 0.5}}, "method amid takes --divergence, --order"),
        ({"method": "gkd", "method_kwargs": {"beta": 2}}, "gkd's beta is a weight and"),
        ({"method": "gkd", "method_kwargs": {"lam": 2}}, "gkd has no parameter 'lam'"),
        ({"schedule": ["lam=linear:0:2"]}, "--schedule lam: over training, lam is a weight"),
        ({"method": "kl", "schedule": ["lam=linear:0:1"]}, "the loss has no parameter 'lam'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(make: Make, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert says in str(caught.value)


def test_generating_needs_prompts(make: Make) -> None:
    rows = Dataset.from_list([{"text": "words without a prompt"}] * 4)
    with pytest.raises(InputError, match="row 0 of the dataset has none"):
        make(rows=rows, policy="on_policy")


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(make: Make) -> None:
    trainer = make(max_steps=3)
    weights = {}

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * math.nan

    original = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if trainer.state.global_step == 1:
            weights.update({n: w.clone() for n, w in trainer.model.state_dict().items()})
            return Spoil.apply(loss)
        return loss

    trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="step 2: the gradient's norm is nan"):
        trainer.train()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_log_history_is_json(make: Make) -> None:
    trainer = make(max_steps=1, schedule=["lam=linear:0.1:0.2"])
    trainer.train()
    assert json.loads(json.dumps(trainer.state.log_history)) == trainer.state.log_history
