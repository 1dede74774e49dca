"""A cached teacher gives, for any batch of its rows, what the teacher itself would have."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import SENTENCES, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import amidmath as am
from amidmath.integrations.cache_teacher import main
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.marks import NO_ROW
from amidmath.integrations.common.rows.prepared import (
    ROW,
    PreparedRows,
    counting_positions,
    model_fingerprint,
    number_rows,
)
from amidmath.integrations.common.teacher_cache.cached_rows import CachedRows, normalised
from amidmath.integrations.common.teacher_cache.format import Lists
from amidmath.integrations.torch_loop.evaluation.quality import evaluate
from amidmath.integrations.torch_loop.loss.batch import Batch, next_token_mask
from amidmath.integrations.torch_loop.loss.objective import compare
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.training.collators import Carrying
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

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


class Prepared(NamedTuple):
    """Rows as training prepares them, and how it makes batches of them."""

    of: PreparedRows
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def batch(self, chosen: list[int], first: int = 0) -> dict[str, Any]:
        rows = self.of.numbered(first)
        return Carrying(self.collator, (ROW,))([rows[i] for i in chosen])


@pytest.fixture(scope="module")
def prepare(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Prepared]:
    """The rows as training prepares them."""

    def run(**changes: Any) -> Prepared:
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
        collator: Any = trainer.plain_collator
        rows = PreparedRows(trainer.train_rows, trainer.tokenizer, collator.padding_free)
        return Prepared(rows, collator)

    return run


@pytest.fixture(scope="module")
def caches(
    teacher_dir: Path, student_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Caches by the command, one for each packing and temperature."""
    made: dict[tuple[str, float], Path] = {}
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    ROWS.to_json(data)

    def run(packing: str, temperature: float = 1.0) -> Path:
        if (packing, temperature) not in made:
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
                "--temperature": str(temperature),
                "--log_probs_dtype": "float32",
                "--shard_megabytes": "0.002",
                "--per_device_eval_batch_size": "3",
                "--disable_tqdm": "true",
            }
            assert main([*words, *(word for pair in arguments.items() for word in pair)]) == 0
            made[packing, temperature] = folder
        return made[packing, temperature]

    return run


@pytest.mark.parametrize("packing", PACKINGS)
def test_any_batch_has_the_teachers_own_lists(
    packing: str,
    prepare: Callable[..., Prepared],
    caches: Callable[[str], Path],
    teacher_dir: Path,
) -> None:
    prepared = prepare(**PACKINGS[packing])
    expect = {"model": model_fingerprint(str(teacher_dir)), **prepared.of.fingerprints}
    cached = CachedRows.open(caches(packing), expect, rows=len(prepared.of.rows))
    assert len(cached.store.shards) > 2
    teacher = CachedTeacher(cached)
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    generator = np.random.default_rng(0)
    for _ in range(2):  # epochs, each in an order of its own
        order = generator.permutation(len(prepared.of.rows)).tolist()
        for chosen in (order[:3], order[3:4], order[4:]):
            batch = prepared.batch(chosen)
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
    prepare: Callable[..., Prepared], caches: Callable[[str], Path], teacher_dir: Path
) -> None:
    prepared = prepare()
    teacher = CachedTeacher(CachedRows.open(caches("padded"), prepared.of.fingerprints))
    batch = prepared.batch([5, 0, 11])
    labels = batch.pop("labels")
    mask = next_token_mask(labels)
    hidden = torch.randn(*mask.shape, 8, requires_grad=True)
    head = am.Head(torch.randn(384, 8))
    loss = am.AMiD(alpha=0.5, lam=0.2)
    found = teacher.give(
        batch,
        lambda top: compare(
            loss, States(am.Hidden(hidden, head), head), top, mask, Batch(labels, None)
        ),
    )
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    del batch["row"]
    with torch.no_grad():
        top = am.top_k(model(**batch).logits, K)
    expected = loss(hidden @ head.weight.T, top, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    ours, theirs = (torch.autograd.grad(value, [hidden])[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("common", [384, 110])
def test_held_out_figures_are_those_of_the_listed_tokens_and_the_rest(
    prepare: Callable[..., Prepared],
    caches: Callable[..., Path],
    teacher_dir: Path,
    temperature: float,
    common: int,
) -> None:
    rows = CachedRows.open(caches("padded", temperature), {}, temperature=temperature)
    rows = rows.for_student(common, "common")
    batches = [prepare().batch([7, 3]), prepare().batch([12])]
    teacher, student = AutoModelForCausalLM.from_pretrained(teacher_dir), tiny_model(1, 2)
    kl, agreements, count = 0.0, 0, 0
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask = next_token_mask(batch["labels"])
        with torch.no_grad():
            p, q = (
                (model.eval()(**inputs).logits[mask].double() / temperature).softmax(-1)
                for model in (teacher, student)
            )
        for theirs, ours in zip(p, q, strict=True):
            order = theirs.argsort(descending=True)[:K]
            listed = order[order < common]
            a, b = (torch.cat([x[listed], 1.0 - x[listed].sum(0, True)]) for x in (theirs, ours))
            kl += float(torch.sum(a * (a / b).log()))
            agreements += int(ours.argmax() == order[0] and order[0] < common)
            count += 1
    found = evaluate({"student": student}, CachedTeacher(rows), batches, torch.device("cpu"))
    assert set(found) == {"student"}
    assert found["student"].tokens == count
    assert found["student"].kl == pytest.approx(kl / count, rel=1e-5)
    assert found["student"].agreement == agreements / count
    assert "12 cached tokens and the rest as one" in rows.compared()
    assert ("at temperature 2" in rows.compared()) == (temperature == 2.0)


def test_a_position_that_is_not_cached_is_no_silent_zero(
    prepare: Callable[..., Prepared], caches: Callable[[str], Path]
) -> None:
    prepared = prepare()
    teacher = CachedTeacher(CachedRows.open(caches("padded"), prepared.of.fingerprints))
    batch = prepared.batch([0])
    top = teacher.give(batch, lambda top: top)
    with pytest.raises(ValueError, match=r"teacher\.log_probs must be numbers"):
        am.AMiD()(torch.zeros(*top.indices.shape[:-1], 384), top)


def test_tokens_outside_of_the_common_ones_go_to_the_tail(
    caches: Callable[[str], Path], prepare: Callable[..., Prepared]
) -> None:
    batch = prepare().batch([3])
    cached = CachedRows.open(caches("padded"), {})
    whole, part = (
        CachedTeacher(rows).give(batch, lambda top: top)
        for rows in (cached, cached.for_student(100, "common"))
    )
    outside = whole.indices >= 100
    assert outside.any()
    assert not outside.all()
    assert torch.equal(part.indices, torch.where(outside, -1, whole.indices))


def test_what_a_cache_does_not_fit(
    prepare: Callable[..., Prepared],
    caches: Callable[[str], Path],
    teacher_dir: Path,
    student_dir: Path,
) -> None:
    folder, prepared = caches("padded"), prepare()
    others = {
        "model": model_fingerprint(str(student_dir)),
        "tokenizer": "0" * 64,
        "data": prepare(packing=True).of.fingerprints["data"],
    }
    right = {"model": model_fingerprint(str(teacher_dir)), **prepared.of.fingerprints}
    for name, value in others.items():
        with pytest.raises(InputError, match=f"differ in {name} \\(cached {right[name][:12]}, now"):
            CachedRows.open(folder, right | {name: value})
    with pytest.raises(InputError, match="has 13 rows, the training data 12"):
        CachedRows.open(folder, right, rows=12)
    with pytest.raises(InputError, match=r"--temperature 2: the cache .* was taken at 1"):
        CachedRows.open(folder, right, temperature=2.0)
    cached = CachedRows.open(folder, right)
    teacher = CachedTeacher(cached)
    assert not teacher.knows_new_rows
    assert "12 of 384 tokens and the tail" in teacher.describe()
    batch = prepared.batch([0, 12])
    with pytest.raises(InputError, match="has no row numbers"):
        teacher.give({k: v for k, v in batch.items() if k != "row"}, lambda top: top)
    with pytest.raises(InputError, match="cannot hold the 2 rows"):
        teacher.give({**batch, "input_ids": batch["input_ids"][:, :4]}, lambda top: top)
    with pytest.raises(InputError, match="cannot hold the 1 rows"):
        teacher.give({**batch, "row": batch["row"][:1]}, lambda top: top)


def test_fingerprints_change_with_what_they_are_of(
    prepare: Callable[..., Prepared], tmp_path: Path
) -> None:
    first, again = prepare().of.fingerprints, prepare().of.fingerprints
    assert first == again
    rows, tokenizer = prepare().of.rows, prepare().of.tokenizer
    changed = PreparedRows(rows.select(range(1, len(rows))), tokenizer)
    assert changed.fingerprints["data"] != first["data"]
    moved = PreparedRows(rows.select([1, 0, *range(2, len(rows))]), tokenizer)
    assert moved.fingerprints["data"] != first["data"]
    tokenizer.chat_template = "another"
    assert PreparedRows(rows, tokenizer).fingerprints["tokenizer"] != first["tokenizer"]

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


def test_held_out_rows_are_numbered_after_the_training_rows(
    prepare: Callable[..., Prepared], caches: Callable[[str], Path], tmp_path: Path
) -> None:
    prepared = prepare()
    shutil.copytree(caches("padded"), tmp_path / "both")
    training = CachedRows.open(tmp_path / "both", prepared.of.fingerprints)
    assert training.with_held_out(prepared.of) is training
    assert ROW not in training.number(prepared.of, prepared.of)[1].column_names
    shutil.copytree(caches("padded"), tmp_path / "both" / "held_out")
    both = training.with_held_out(prepared.of)
    train, held_out = both.number(prepared.of, prepared.of)
    assert train[ROW] == list(range(13))
    assert held_out[ROW] == list(range(13, 26))
    shape = (2, 40)
    for found, expected in zip(
        both.lists(shape, [13 + 5, 5]), training.lists(shape, [5, 5]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match=r"held_out has 13 rows, there is no row 13"):
        both.lists((1, 40), [26])
    fewer = PreparedRows(prepared.of.rows.select(range(12)), prepared.of.tokenizer)
    with pytest.raises(InputError, match=r"held_out was not made for this run.* differ in data"):
        training.with_held_out(fewer)
    index = tmp_path / "both" / "held_out" / "index.json"
    index.write_text(index.read_text().replace('"temperature": 1.0', '"temperature": 2.0'))
    with pytest.raises(InputError, match=r"temperature 2\.0 instead of 1\.0"):
        training.with_held_out(prepared.of)


def test_a_row_that_fills_a_batch_has_no_lists(caches: Callable[[str], Path]) -> None:
    cached = CachedRows.open(caches("padded"), {})
    alone = cached.lists((1, 40), [3])
    filled = cached.lists((3, 40), [NO_ROW, 3, NO_ROW])
    for found, expected in zip(filled, alone, strict=True):
        np.testing.assert_array_equal(found[1], expected[0])
    assert np.isnan(filled.log_probs[[0, 2]]).all()


def test_a_student_of_other_logits(caches: Callable[[str], Path]) -> None:
    cached = CachedRows.open(caches("padded"), {})
    assert cached.for_student(384, "strict") is cached
    assert cached.for_student(512, "common").common == 384
    with pytest.raises(InputError, match="gives 512 logits and the cached teacher 384"):
        cached.for_student(512, "strict")
    fewer = replace(cached.store.header, common=300)
    cached.store.header = fewer
    assert cached.for_student(384, "common").common == 300
    with pytest.raises(InputError, match="up to 300 of 384"):
        cached.for_student(384, "strict")


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
