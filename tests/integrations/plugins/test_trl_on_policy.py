"""The loss within TRL's DistillationTrainer, against dense logits of the same generated answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import byte_tokenizer, tiny_model
from torch.nn import functional as F  # noqa: N812
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.plugins.trl_on_policy import (
    AMiDOnPolicyConfig,
    AMiDOnPolicyTrainer,
)

PROMPTS = ("a short one: ", "b: ", "a rather longer prompt here: ", "c: ")

Maker = Callable[..., AMiDOnPolicyTrainer]


def capped_model() -> Gemma2ForCausalLM:
    """A student whose logits are capped hard enough to matter."""
    torch.manual_seed(4)
    config = Gemma2Config(
        vocab_size=len(byte_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        final_logit_softcapping=0.3,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def trainer(
        student: PreTrainedModel | None = None, lora: bool = False, **changes: Any
    ) -> AMiDOnPolicyTrainer:
        settings = {
            "output_dir": str(tmp_path),
            "max_completion_length": 8,
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }
        tokenizer = byte_tokenizer()
        tokenizer.padding_side = "left"
        return AMiDOnPolicyTrainer(
            tiny_model(1, 2) if student is None else student,
            tiny_model(2, 1, initializer_range=0.3),
            AMiDOnPolicyConfig(**(settings | changes)),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if lora else None,
        )

    return trainer


def generated(trainer: AMiDOnPolicyTrainer) -> dict[str, Any]:
    """The first micro-batch, two of its tokens masked as a tool's would be."""
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    tool_mask = inputs["completion_mask"].clone()
    tool_mask[:, 2:4] = 0
    return {**inputs, "tool_mask": tool_mask}


def dense(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """The model's own logits, in float64, where the next token counts."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    size = inputs["completion_ids"].shape[1]
    counts = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    return logits[:, -size - 1 : -1][counts].double()


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) of logits, summed."""
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)


ORACLES: dict[str, tuple[dict[str, Any], Callable[[Any, Any], Any]]] = {
    "kl": ({"method": "kl"}, lambda q, p: kl(p, q)),
    "reverse kl": ({"method": "reverse_kl"}, lambda q, p: kl(q, p)),
    "jeffreys at 2": (
        {"method": "jeffreys", "temperature": 2.0},
        lambda q, p: am.methods.jeffreys(temperature=2.0)(q, p, reduction="sum"),
    ),
    "amid": (
        {"alpha": 0.5, "lam": 0.3, "order": "qr"},
        lambda q, p: am.AMiD(order="qr", alpha=0.5, lam=0.3)(q, p, reduction="sum"),
    ),
    "scheduled": (
        {"schedule": ["lam=linear:0.25:0.75"], "alpha": 1.0},
        lambda q, p: am.AMiD(alpha=1.0, lam=0.25)(q, p, reduction="sum"),
    ),
    "by token": (
        {"schedule": ["alpha=overlap_token:-5:1"]},
        lambda q, p: am.AMiD(alpha=-5.0 + 6.0 * overlap(q, p), lam=0.1)(q, p, reduction="sum"),
    ),
}


def overlap(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Σ min(p, q) of every row."""
    return torch.minimum(q.softmax(-1), p.softmax(-1)).sum(-1)


@pytest.mark.parametrize("student", [None, capped_model], ids=["llama", "soft cap"])
@pytest.mark.parametrize("name", ORACLES)
def test_loss_is_that_of_dense_logits(
    make: Maker, name: str, student: Callable[[], PreTrainedModel] | None
) -> None:
    settings, oracle = ORACLES[name]
    trainer = make(student() if student else None, **settings)
    inputs = generated(trainer)
    q, p = dense(trainer.model, inputs), dense(trainer.teacher_model, inputs)
    expected = float(oracle(q, p)) / float(inputs["num_items_in_batch"])
    loss = trainer.compute_loss(trainer.model, inputs)
    assert float(loss.detach()) == pytest.approx(expected, rel=2e-5)
    loss.backward()
    assert all(p.grad is None for p in trainer.teacher_model.parameters())
    assert any(p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


def test_metrics_are_those_of_dense_logits(make: Maker) -> None:
    trainer = make(method="reverse_kl")
    inputs = generated(trainer)
    q, p = dense(trainer.model, inputs), dense(trainer.teacher_model, inputs)
    trainer.compute_loss(trainer.model, inputs)
    entropy = torch.distributions.Categorical(logits=q).entropy().mean()
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert found["entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert found["kl"] == pytest.approx(float(kl(p, q)) / len(q), rel=1e-5)
    assert found["overlap"] == pytest.approx(float(overlap(q, p).mean()), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_trains_the_student_alone(make: Maker, lora: bool) -> None:
    trainer = make(lora=lora, schedule=["alpha=constant:0.5"])
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    teacher = {n: p.clone() for n, p in trainer.teacher_model.state_dict().items()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(("lora" in name) is lora for name in changed)
    after = trainer.teacher_model.state_dict()
    assert all(torch.equal(after[n], value) for n, value in teacher.items())
    log = trainer.state.log_history[0]
    assert log["alpha"] == 0.5
    assert log["kl"] > 0.0
    assert 0.0 < log["overlap"] < 1.0
    assert 0.0 < log["entropy"] < 6.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.5}, r"--beta 0\.5: it has no effect here"),
        ({"beta": 0.0}, r"--beta 0\.0: it has no effect here"),
        ({"method": "distillm2"}, "--method distillm2 compares the teacher's answers"),
        ({"method": "taid", "schedule": ["t=taid:0.4:1"]}, "may depend on the step"),
        ({"schedule": ["alpha=overlap:-5:1"]}, "may depend on the step"),
        ({"method": "none"}, "--method must be one of"),
        ({"lam": 1.5}, "lam"),
        ({"trust_remote_code": True}, "--trust_remote_code True"),
        ({"use_liger_kernel": True}, "--use_liger_kernel True"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AMiDOnPolicyConfig(str(tmp_path), report_to="none", **settings)


def test_models_must_be_loaded(tmp_path: Path) -> None:
    config = AMiDOnPolicyConfig(str(tmp_path), report_to="none")
    with pytest.raises(InputError, match="teacher_model must be a loaded model, got 'hub/name'"):
        AMiDOnPolicyTrainer(tiny_model(1, 2), "hub/name", config)  # type: ignore[arg-type]
