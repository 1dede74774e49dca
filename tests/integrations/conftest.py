"""A teacher and a student on disk, as a hub would hold them."""

from pathlib import Path

import pytest
import torch
from tiny import SENTENCES, byte_tokenizer, save, tiny_model


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
