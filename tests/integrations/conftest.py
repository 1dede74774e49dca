"""A teacher, a student and text small enough to distil in seconds."""

import os
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

SENTENCES = [
    "the teacher knows the answer and the student learns it. ",
    "a mixture of two distributions lies between them. ",
    "the assistant stands between the teacher and the student. ",
    "every token has a probability, and they sum to one. ",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> ByT5Tokenizer:
    """A byte-level tokenizer, which needs no file."""
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(layers: int, seed: int, **changes: Any) -> LlamaForCausalLM:
    """A Llama with random weights over bytes."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes)))


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    """Write model and tokenizer as a hub would hold them."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    """``make_model(layers, seed, **config changes)``."""
    return tiny_model


@pytest.fixture(scope="session")
def save_model() -> Callable[[LlamaForCausalLM, Path], Path]:
    """``save_model(model, folder)`` with the byte-level tokenizer beside it."""
    return save


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer teacher that has learned the sentences."""
    model = tiny_model(layers=2, seed=1)
    ids = byte_tokenizer()(SENTENCES, padding=True, return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = ids.masked_fill(ids == 0, -100)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return save(model, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer student that has learned nothing."""
    return save(tiny_model(layers=1, seed=2), tmp_path_factory.mktemp("student"))
