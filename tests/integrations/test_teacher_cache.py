"""A cached teacher gives, for any batch of its rows, what the teacher itself would have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import SENTENCES, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import amidmath as am
from amidmath.integrations.cache_teacher import main
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.top_k_store import Lists
from amidmath.integrations.torch_loop.collators import Carrying
from amidmath.integrations.torch_loop.config import AMiDConfig
from amidmath.integrations.torch_loop.objective import next_token_mask
from amidmath.integrations.torch_loop.prepared import PreparedRows, model_fingerprint
from amidmath.integrations.torch_loop.sparse_states import sparse_from_states
from amidmath.integrations.torch_loop.states import States
from amidmath.integrations.torch_loop.teacher_cache import (
    ROW,
    CachedTeacher,
    counting_positions,
    normalised,
    number_rows,
)
from amidmath.integrations.torch_loop.trainer import AMiDTrainer

K = 12
ROWS = Dataset.from_list(
    [
        {
            "prompt": SENTENCES[i % 4][: 3 + i],
            "completion": SENTENCES[(i + 1) % 4][: 2 + 3 * i % 17],
        }
        for i in range(13)
    ]
)
PACKINGS = {
    "padded": {},
    "bfd": {"packing": True, "packing_strategy": "bfd"},
    "bfd_split": {"packing": True, "packing_strategy": "bfd_split"},
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},
}


@pytest.fixture(scope="module")
def prepare(
    student_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PreparedRows]:
    """The rows as training prepares them."""

    def run(**changes: Any) -> PreparedRows:
        config = AMiDConfig(
            str(tmp_path_factory.mktemp("run")), max_length=40, report_to="none", **changes
        )
        trainer = AMiDTrainer(
            tiny_model(1, 2),
            tiny_model(2, 1),
            config,
            train_dataset=ROWS,
            processing_class=AutoTokenizer.from_pretrained(student_dir),
        )
        return PreparedRows(trainer.train_rows, trainer.data_collator, trainer.tokenizer)

    return run


@pytest.fixture(scope="module")
def caches(
    teacher_dir: Path, student_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Caches by the command, one for each packing."""
    made: dict[str, Path] = {}
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    ROWS.to_json(data)

    def run(packing: str) -> Path:
        if packing not in made:
            folder = tmp_path_factory.mktemp("caches") / packing
            words = [f"--{name}={value}" for name, value in PACKINGS[packing].items()]
            arguments = {
                "--teacher_model_name_or_path": str(teacher_dir),
                "--model_name_or_path": str(student_dir),
                "--dataset_name": str(data),
                "--eval_dataset_name": str(data),
                "--output_dir": str(folder),
                "--max_length": "40",
                "--k": str(K),
                "--log_probs_dtype": "float32",
                "--shard_megabytes": "0.002",
                "--per_device_eval_batch_size": "3",
                "--disable_tqdm": "true",
            }
            assert main([*words, *(word for pair in arguments.items() for word in pair)]) == 0
            made[packing] = folder
        return made[packing]

    return run


@pytest.mark.parametrize("packing", PACKINGS)
def test_any_batch_has_the_teachers_own_lists(
    packing: str,
    prepare: Callable[..., PreparedRows],
    caches: Callable[[str], Path],
    teacher_dir: Path,
) -> None:
    prepared = prepare(**PACKINGS[packing])
    expect = {"model": model_fingerprint(str(teacher_dir)), **prepared.fingerprints}
    teacher = CachedTeacher.open(caches(packing), expect, rows=len(prepared.rows))
    assert len(teacher.store.shards) > 2
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    rows, collate = prepared.numbered, Carrying(prepared.collator, (ROW,))
    generator = np.random.default_rng(0)
    for _ in range(2):  # epochs, each in an order of its own
        order = generator.permutation(len(rows)).tolist()
        for chosen in (order[:3], order[3:4], order[4:]):
            batch = collate([rows[i] for i in chosen])
            assert batch["row"].tolist() == chosen
            mask = next_token_mask(batch.pop("labels"))
            found = teacher.give(batch, lambda top: top)
            del batch["row"]
            with torch.no_grad():
                expected = am.top_k(model(**batch, use_cache=False).logits, K)
            assert found.indices.shape == expected.indices.shape
            torch.testing.assert_close(
                found.log_probs[mask], expected.log_probs[mask], rtol=1e-5, atol=1e-5
            )
            assert (found.indices[mask] == expected.indices[mask]).float().mean() > 0.99
            assert found.log_probs[~mask].isnan().all()


def test_the_loss_is_the_one_against_the_teacher_in_memory(
    prepare: Callable[..., PreparedRows], caches: Callable[[str], Path], teacher_dir: Path
) -> None:
    prepared = prepare()
    teacher = CachedTeacher.open(caches("padded"), prepared.fingerprints)
    batch = Carrying(prepared.collator, (ROW,))([prepared.numbered[i] for i in (5, 0, 11)])
    mask = next_token_mask(batch.pop("labels"))
    hidden = torch.randn(*mask.shape, 8, requires_grad=True)
    head = am.Head(torch.randn(384, 8))
    loss = am.AMiD(alpha=0.5, lam=0.2)
    found = teacher.give(
        batch, lambda top: sparse_from_states(loss, States(hidden, head, head), top, mask)
    )
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    del batch["row"]
    with torch.no_grad():
        top = am.top_k(model(**batch).logits, K)
    expected = loss.sparse(hidden @ head.weight.T, top, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    ours, theirs = (torch.autograd.grad(value, [hidden])[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_a_position_that_is_not_cached_is_no_silent_zero(
    prepare: Callable[..., PreparedRows], caches: Callable[[str], Path]
) -> None:
    prepared = prepare()
    teacher = CachedTeacher.open(caches("padded"), prepared.fingerprints)
    batch = Carrying(prepared.collator, (ROW,))([prepared.numbered[0]])
    top = teacher.give(batch, lambda top: top)
    with pytest.raises(ValueError, match=r"teacher\.log_probs must be numbers"):
        am.AMiD().sparse(torch.zeros(*top.indices.shape[:-1], 384), top)


def test_tokens_outside_of_the_common_ones_go_to_the_tail(
    caches: Callable[[str], Path], prepare: Callable[..., PreparedRows]
) -> None:
    prepared = prepare()
    batch = Carrying(prepared.collator, (ROW,))([prepared.numbered[3]])
    whole, part = (
        CachedTeacher.open(caches("padded"), {}, common=common).give(batch, lambda top: top)
        for common in (None, 100)
    )
    outside = whole.indices >= 100
    assert outside.any()
    assert not outside.all()
    assert torch.equal(part.indices, torch.where(outside, -1, whole.indices))


def test_what_a_cache_does_not_fit(
    prepare: Callable[..., PreparedRows],
    caches: Callable[[str], Path],
    teacher_dir: Path,
    student_dir: Path,
) -> None:
    folder, prepared = caches("padded"), prepare()
    others = {
        "model": model_fingerprint(str(student_dir)),
        "tokenizer": "0" * 64,
        "data": prepare(packing=True).fingerprints["data"],
    }
    right = {"model": model_fingerprint(str(teacher_dir)), **prepared.fingerprints}
    for name, value in others.items():
        with pytest.raises(InputError, match=f"differ in {name} \\(cached {right[name][:12]}, now"):
            CachedTeacher.open(folder, right | {name: value})
    with pytest.raises(InputError, match="has 13 rows, the training data 12"):
        CachedTeacher.open(folder, right, rows=12)
    with pytest.raises(InputError, match=r"--temperature 2: the cache .* was taken at 1"):
        CachedTeacher.open(folder, right, temperature=2.0)
    teacher = CachedTeacher.open(folder, right)
    assert not teacher.knows_new_rows
    assert "12 of 384 tokens and the tail" in teacher.describe()
    batch = Carrying(prepared.collator, (ROW,))([prepared.numbered[i] for i in (0, 12)])
    with pytest.raises(InputError, match="has no row numbers"):
        teacher.give({k: v for k, v in batch.items() if k != "row"}, lambda top: top)
    with pytest.raises(InputError, match="cannot hold the 2 rows"):
        teacher.give({**batch, "input_ids": batch["input_ids"][:, :4]}, lambda top: top)
    with pytest.raises(InputError, match="cannot hold the 1 rows"):
        teacher.give({**batch, "row": batch["row"][:1]}, lambda top: top)


def test_fingerprints_change_with_what_they_are_of(
    prepare: Callable[..., PreparedRows], tmp_path: Path
) -> None:
    first, again = prepare().fingerprints, prepare().fingerprints
    assert first == again
    rows = prepare().rows
    changed = PreparedRows(rows.select(range(1, len(rows))), print, prepare().tokenizer)
    assert changed.fingerprints["data"] != first["data"]
    moved = PreparedRows(rows.select([1, 0, *range(2, len(rows))]), print, prepare().tokenizer)
    assert moved.fingerprints["data"] != first["data"]
    tokenizer = prepare().tokenizer
    tokenizer.chat_template = "another"
    assert PreparedRows(rows, print, tokenizer).fingerprints["tokenizer"] != first["tokenizer"]

    model = tiny_model(1, 0)
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    one, other = (model_fingerprint(str(tmp_path / name)) for name in "ab")
    assert one == other
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1.0
    model.save_pretrained(tmp_path / "b")
    assert model_fingerprint(str(tmp_path / "b")) != one
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        model_fingerprint(str(tmp_path / "b"))


def test_rows_keep_their_numbers_when_they_move() -> None:
    rows = number_rows(Dataset.from_dict({"input_ids": [[i] for i in range(6)]}))
    moved = rows.shuffle(seed=1).select(range(4))
    assert [row["row"] for row in moved] == [row["input_ids"][0] for row in moved]
    assert number_rows(moved) is moved
    plain = Carrying(lambda examples: {"seen": [sorted(e) for e in examples]}, (ROW,))
    assert "row" not in plain([{"input_ids": [1]}])
    assert plain([rows[2]])["row"].tolist() == [2]
    assert plain([rows[2]])["seen"] == [["input_ids"]]


def test_counting_positions() -> None:
    labels = [5, -100, 6, 7, 8, -100]
    assert counting_positions(labels, None).tolist() == [1, 2, 3]
    assert counting_positions(labels, [3, 3]).tolist() == [1, 3]
    assert counting_positions([-100, -100], None).tolist() == []


def test_float16_lists_keep_a_small_tail() -> None:
    logs = np.log(np.array([[0.6, 0.3, 0.0999]]))
    tail = np.log1p(-np.exp(logs).sum(-1))
    lists = Lists(logs.astype(np.float16), np.arange(3)[None], tail, np.array([0]))
    left = 1.0 - np.exp(normalised(lists).astype(np.float64)).sum()
    plain = 1.0 - np.exp(logs.astype(np.float16).astype(np.float64)).sum()
    assert abs(left / 1e-4 - 1.0) < 2e-3
    assert abs(plain / 1e-4 - 1.0) > 0.1
