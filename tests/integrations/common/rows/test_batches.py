"""Numbered batches: every row once an epoch, TRL's tokens and positions, exact anywhere."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer, tiny_model
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.batches import Batches, counted, held_out, targets
from amidmath.integrations.common.rows.prepared import number_rows
from amidmath.integrations.torch_loop.loss.batch import next_token_mask, next_token_targets

PAD = 0


def made(*lengths: int) -> Dataset:
    """Rows of distinct tokens whose first half is a prompt."""
    rows = np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1])
    halves = [(row[: len(row) // 2], row[len(row) // 2 :].tolist()) for row in rows]
    labels = [[-100] * len(prompt) + answer for prompt, answer in halves]
    return Dataset.from_dict({"input_ids": rows, "labels": labels})


ROWS = made(5, 9, 2, 7, 7, 3, 12, 4, 6, 5, 8)


def real(batch: dict[str, Any]) -> list[int]:
    """The numbers of the rows that are not filling."""
    numbers = batch["row"].ravel()
    return numbers[numbers >= 0].tolist()


@given(
    count=st.integers(1, 11),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    order=st.sampled_from(["random", "sequential"]),
)
@settings(deadline=None, max_examples=40)
def test_every_row_once_an_epoch(
    count: int, batch_size: int, accumulation: int, order: str
) -> None:
    batches = Batches(
        ROWS.select(range(count)),
        batch_size=batch_size,
        accumulation=accumulation,
        pad=PAD,
        order=order,
    )
    for epoch in range(2):
        first = epoch * batches.steps_per_epoch
        steps = [batches.step(first + i) for i in range(batches.steps_per_epoch)]
        numbers = [row for step in steps for row in real(step)]
        assert sorted(numbers) == list(range(count))
        if order == "sequential":
            assert numbers == list(range(count))
        shape = (accumulation, batch_size, batches.length)
        assert all(step["input_ids"].shape == shape for step in steps)
        assert all(array.dtype == np.int32 for step in steps for array in step.values())
        assert all(len(real(step)) > 0 for step in steps)


@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (2, 2), (4, 2), (3, 5), (16, 1)])
def test_an_epoch_has_as_many_steps_as_transformers_makes(
    size: int, accumulation: int, tmp_path: Path
) -> None:
    config = SFTConfig(
        str(tmp_path),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(
        tiny_model(1, 1), config, train_dataset=ROWS, processing_class=byte_tokenizer()
    )
    loader = trainer.get_train_dataloader()
    _, expected, *_ = trainer.set_initial_training_values(config, loader)
    batches = Batches(ROWS, batch_size=size, accumulation=accumulation, pad=PAD)
    assert batches.steps_per_epoch == expected


def test_rows_are_padded_as_trl_pads_them() -> None:
    batches = Batches(ROWS, batch_size=4, accumulation=3, pad=PAD, order="sequential")
    assert batches.length == 16
    batch = batches.step(0)
    collator = DataCollatorForLanguageModeling(PAD, return_position_ids=True)
    for i in range(3):
        rows = [ROWS[row] for row in range(4 * i, min(4 * i + 4, len(ROWS)))]
        expected = {k: v.numpy() for k, v in collator(rows).items()}
        size, length = expected["input_ids"].shape
        for name in ("input_ids", "labels"):
            assert np.array_equal(batch[name][i, :size, :length], expected[name])
        mask = expected["attention_mask"]
        assert np.array_equal(batch["segments"][i, :size, :length], mask)
        found = batch["positions"][i, :size, :length]
        assert np.array_equal(found, expected["position_ids"] * mask)
        labels = torch.from_numpy(batch["labels"][i])
        assert np.array_equal(counted(batch)[i], next_token_mask(labels).numpy())
        assert np.array_equal(targets(batch)[i], next_token_targets(labels).numpy())
    assert (batch["input_ids"][..., 12:] == PAD).all()
    assert (batch["labels"][..., 12:] == -100).all()
    assert not batch["segments"][..., 12:].any()


def test_packed_documents_are_kept_apart_as_trl_keeps_them() -> None:
    rows = pack_dataset(ROWS, 16, "bfd")
    batches = Batches(rows, batch_size=len(rows), pad=PAD, order="sequential")
    batch = {name: array[0] for name, array in batches.step(0).items()}
    flat = DataCollatorForLanguageModeling(PAD, padding_free=True)(list(rows))
    kept = batch["segments"] > 0
    for name, theirs in (("input_ids", "input_ids"), ("positions", "position_ids")):
        assert np.array_equal(batch[name][kept], flat[theirs][0].numpy())
    assert np.array_equal(counted(batch)[kept], next_token_mask(flat["labels"])[0].numpy())
    assert np.array_equal(targets(batch)[kept], next_token_targets(flat["labels"])[0].numpy())
    assert not counted(batch)[~kept].any()
    for segments, lengths in zip(batch["segments"], rows["seq_lengths"][:], strict=True):
        assert [np.count_nonzero(segments == i + 1) for i in range(len(lengths))] == lengths
    assert len({len(lengths) for lengths in rows["seq_lengths"][:]}) > 1


def test_a_step_depends_on_its_number_alone() -> None:
    def fresh(seed: int = 3) -> Batches:
        return Batches(ROWS, batch_size=2, accumulation=2, pad=PAD, seed=seed)

    going, steps = fresh(), range(7)
    inorder = [going.step(i) for i in steps]
    for i in reversed(steps):
        again = fresh().step(i)
        assert again.keys() == inorder[i].keys()
        assert all(np.array_equal(array, inorder[i][name]) for name, array in again.items())
        assert all(np.array_equal(array, inorder[i][name]) for name, array in going.step(i).items())
    epochs = [[real(going.step(3 * epoch + i)) for i in range(3)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert real(fresh(4).step(0)) != real(fresh(3).step(0))


def test_filling_counts_nowhere() -> None:
    batches = Batches(ROWS.select(range(3)), batch_size=2, accumulation=3, pad=7)
    batch = batches.step(0)
    filling = batch["row"] == -1
    assert filling.tolist() == [[False, False], [False, True], [True, True]]
    assert (batch["input_ids"][filling] == 7).all()
    assert not batch["segments"][filling].any()
    assert not counted(batch)[filling].any()
    assert counted(batch)[~filling].any(axis=-1).all()


def test_held_out_rows_once_in_their_order() -> None:
    batches = list(held_out(ROWS, batch_size=4, pad=PAD))
    assert [batch["input_ids"].shape for batch in batches] == [(4, 16)] * 3
    assert [row for batch in batches for row in batch["row"]] == [*range(11), -1]


def test_rows_keep_their_numbers_and_writers() -> None:
    rows = number_rows(ROWS, 100).add_column("source", [i % 2 for i in range(len(ROWS))])
    (batch,) = held_out(rows.select([4, 9, 2]), batch_size=4, length=24, pad=PAD)
    assert batch["row"].tolist() == [104, 109, 102, -1]
    assert batch["source"].tolist() == [0, 1, 0, 0]
    assert batch["input_ids"].shape == (4, 24)
    assert batch["input_ids"][0, :7].tolist() == ROWS[4]["input_ids"]


def test_what_counts_of_jax_arrays() -> None:
    batch = Batches(pack_dataset(ROWS, 16, "bfd"), batch_size=4, pad=PAD).step(0)
    of_jax = {name: jax.numpy.asarray(array) for name, array in batch.items()}
    assert np.array_equal(jax.jit(counted)(of_jax), counted(batch))
    found = jax.jit(targets)(of_jax)
    assert found.dtype == targets(batch).dtype == np.int32
    assert np.array_equal(found, targets(batch))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="length 8: row 6 has 12 tokens"):
        Batches(ROWS, batch_size=2, length=8, pad=PAD)
    with pytest.raises(InputError, match="there are no rows"):
        Batches(ROWS.select([]), batch_size=2, pad=PAD)
    for name, value in (("batch_size", 0), ("accumulation", 0), ("order", "sorted")):
        arguments: dict[str, Any] = {"batch_size": 2, name: value}
        with pytest.raises(ValueError, match=f"{name} must be"):
            Batches(ROWS, pad=PAD, **arguments)
