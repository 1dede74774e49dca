"""Ways through a loop for one family, each held against float64 from the models' logits."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families.build import tiny_family
from peft import AutoPeftModelForCausalLM
from tiny import words, write_jsonl
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import amidmath as am

Script = Callable[[list[str]], int]
Rows = list[tuple[list[int], int]]  # token ids, and where the answer starts

# Without spaces, which some families' tokenizers treat in their own way.
PROMPTS = ("a-longer-question:", "b:", "what-is-it?")
ANSWERS = ("yes", "much-longer-than-others", "no,not")
NEW_TOKENS = 5
LOSS = am.AMiD(alpha=0.5, lam=0.3)
TOLERANCE = 3e-5  # relative; two float32 forward passes of other shapes differ by less

WAYS: dict[str, list[str]] = {
    "padded": [],
    "packed": ["--packing", "true"],
    "padding-free": ["--padding_free", "true"],
    "LoRA": [
        *("--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "all-linear"),
        *("--lora_dropout", "0"),
    ],
    "generated": [
        *("--policy", "on_policy", "--generation_temperature", "0"),
        *("--max_new_tokens", str(NEW_TOKENS)),
    ],
}
RELOADED = "reloaded"  # the student of the padded run, and of the one with LoRA


@dataclass(frozen=True)
class Outcome:
    """What came of a way.

    Attributes:
        verdict: "right", "wrong", "refused" in one line, or "failed" with a traceback.
        detail: the difference, or what was said.
    """

    verdict: str
    detail: str = ""


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of characters."""
    characters = [chr(code) for code in range(32, 127)]
    tokens = ["<pad>", "</s>", "<unk>", *characters]
    made = Tokenizer(WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def outcomes(model_type: str, script: Script, ways: list[str]) -> dict[str, Outcome]:
    """What comes of every way, for a student and a teacher of that family.

    Raises:
        Exception: what the family's own code says, where such a model cannot be built or run.
    """
    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        models = [tiny_family(model_type, seed) for seed in (1, 2)]
        for model, role in zip(models, ("student", "teacher"), strict=True):
            model.save_pretrained(folder / role)
            tokenizer().save_pretrained(folder / role)
        rows = [{"prompt": p, "completion": a} for p, a in zip(PROMPTS, ANSWERS, strict=True)]
        write_jsonl(folder / "rows.jsonl", rows)
        student, teacher = (_load(folder / role) for role in ("student", "teacher"))
        wanted = loss_of(student, teacher, answered(PROMPTS, ANSWERS))
        found = {}
        for way in ways:
            expected = wanted
            if way == "generated":
                expected = loss_of(student, teacher, continued(student, PROMPTS))
            run = folder / way
            said = _run(script, folder, run, WAYS[way])
            found[way] = said or _compare(_first_loss(run), expected)
            if said is None and way in ("padded", "LoRA"):
                again = _reloaded(run, teacher)
                if way == "padded":
                    found[RELOADED] = again
                elif again.verdict != "right":
                    found[way] = Outcome(again.verdict, f"reloaded: {again.detail}")
        return found


def loss_of(student: Any, teacher: Any, rows: Rows) -> float:
    """The mean loss over the answers' tokens, in float64 from the logits of each row alone."""
    total, count = 0.0, 0
    for ids, start in rows:
        both = (_logits(model, ids)[start - 1 : -1] for model in (student, teacher))
        total += float(LOSS(*both, reduction="sum"))
        count += len(ids) - start
    return total / count


def answered(prompts: tuple[str, ...], answers: tuple[str, ...]) -> Rows:
    """Rows of prompts with answers."""
    encode = tokenizer()
    return [
        (encode(p + a + "</s>")["input_ids"], len(encode(p)["input_ids"]))
        for p, a in zip(prompts, answers, strict=True)
    ]


def continued(model: Any, prompts: tuple[str, ...]) -> Rows:
    """Rows of prompts with what the model finds likeliest, token by token, each row alone."""
    encode = tokenizer()
    rows = []
    for prompt in prompts:
        ids = list(encode(prompt)["input_ids"])
        start = len(ids)
        while len(ids) < start + NEW_TOKENS and (len(ids) == start or ids[-1] != 1):
            ids.append(int(np.argmax(_logits(model, ids)[-1])))
        rows.append((ids, start))
    return rows


def _logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    return logits


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _run(script: Script, folder: Path, run: Path, more: list[str]) -> Outcome | None:
    """Distil for one step; gives what was said instead."""
    arguments = {
        "model_name_or_path": folder / "student",
        "teacher_model_name_or_path": folder / "teacher",
        "dataset_name": folder / "rows.jsonl",
        "eval_dataset_name": folder / "rows.jsonl",
        "output_dir": run,
        "max_length": 64,
        "max_steps": 1,
        "per_device_train_batch_size": len(PROMPTS),
        "learning_rate": 1e-2,
        "alpha": LOSS.alpha,
        "lam": LOSS.lam,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": "false",
        "disable_tqdm": "true",
    }
    command = words(arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = script([*command, *more])
    except (Exception, SystemExit):
        return Outcome("failed", traceback.format_exc().strip().splitlines()[-1])
    if status == 0:
        return None
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if status == 2 and errors and not run.exists():
        return Outcome("refused", errors[-1].removeprefix("error: "))
    return Outcome("failed", errors[-1] if errors else said.getvalue().strip()[-300:])


def _first_loss(run: Path) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return float(next(line["loss"] for line in lines if "loss" in line))


def _reloaded(run: Path, teacher: Any) -> Outcome:
    """The student as it was saved against the KL that the loop found before."""
    results = json.loads((run / "results.json").read_text())
    saved = run / "student"
    adapter = (saved / "adapter_config.json").exists()
    student = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(saved)
    rows = answered(PROMPTS, ANSWERS)
    total, count = 0.0, 0
    for ids, start in rows:
        student_logits, teacher_logits = (_logits(m.eval(), ids) for m in (student, teacher))
        at = slice(start - 1, -1)
        kl = am.AMiD(order="pr", lam=0.0)  # the assistant is the student
        total += float(kl(student_logits[at], teacher_logits[at], reduction="sum"))
        count += len(ids) - start
    return _compare(results["student after"]["kl"], total / count)


def _compare(found: float, wanted: float) -> Outcome:
    off = abs(found - wanted) / abs(wanted)
    return Outcome("right" if off <= TOLERANCE else "wrong", f"{found:.6g} for {wanted:.6g}")


@contextlib.contextmanager
def _quiet() -> Any:
    with contextlib.redirect_stderr(io.StringIO()):
        yield
