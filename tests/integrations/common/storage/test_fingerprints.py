"""Fingerprints change with what they are of, and with nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.storage.fingerprints import of_model, of_rows, of_tokenizer
from amidmath.integrations.common.storage.whole_files import write_json


class Tokenizer:
    chat_template: str | None = None
    special_tokens_map = {"eos_token": "</s>"}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {"b": 1, "a": 0}


def model(folder: Path, weight: float = 1.0, **config: object) -> str:
    folder.mkdir()
    write_json(folder / "config.json", {"hidden_size": 2, **config})
    save_file({"weight": np.full(2, weight, np.float32)}, folder / "model.safetensors")
    return of_model(folder)


def test_a_model_is_its_configuration_and_its_weights(tmp_path: Path) -> None:
    first = model(tmp_path / "first")
    assert model(tmp_path / "copy", _name_or_path="elsewhere", transformers_version="9") == first
    assert model(tmp_path / "other_weights", 1.5) != first
    assert model(tmp_path / "other_config", hidden_act="relu") != first


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_them_is_refused(missing: str, tmp_path: Path) -> None:
    model(tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(InputError, match="holds no model"):
        of_model(tmp_path / "model")


def test_a_tokenizer_is_its_tokens_and_its_template() -> None:
    with_template, other_end = Tokenizer(), Tokenizer()
    with_template.chat_template = "{{ messages }}"
    other_end.special_tokens_map = {"eos_token": "a"}
    found = [of_tokenizer(each) for each in (Tokenizer(), with_template, other_end)]
    assert len(set(found)) == 3
    assert of_tokenizer(Tokenizer()) == found[0]


def test_rows_are_their_numbers_and_their_bounds() -> None:
    def rows(*lists: list[int], **others: object) -> str:
        ids = list(lists)
        return of_rows(Dataset.from_dict({"input_ids": ids, "labels": ids, **others}))

    whole = rows([1, 2], [3])
    assert rows([1, 2], [3], text=["a", "b"]) == whole  # other columns do not count
    others = [rows([1], [2, 3]), rows([3], [1, 2]), rows([1, 2], [4]), rows([1, 2])]
    others.append(rows([1, 2], [3], seq_lengths=[[1, 1], [1]]))
    assert len({whole, *others}) == 6
    assert json.dumps(whole)
