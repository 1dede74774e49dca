"""Models and text small enough to distil in seconds."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


@functools.cache
def vocabulary_size() -> int:
    """How many tokens the byte-level tokenizer has."""
    return len(byte_tokenizer())


def tiny_model(layers: int, seed: int, **changes: Any) -> LlamaForCausalLM:
    """A Llama with random weights over bytes."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary_size(),
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


def words(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments by their names as the words of a command line."""
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
