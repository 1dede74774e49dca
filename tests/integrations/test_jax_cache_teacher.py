"""A teacher's cache made in JAX against the one made in torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import SENTENCES, write_jsonl

from amidmath.integrations import cache_teacher, jax_cache_teacher
from amidmath.integrations.common.teacher_cache.store import TopKStore

PACKED = {"--packing": "true", "--packing_strategy": "bfd"}


@pytest.fixture
def good(teacher_dir: Path, student_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Arguments that work."""
    rows = [{"text": SENTENCES[i % 4][: 9 + i % 23]} for i in range(30)]
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    return {
        "--teacher_model_name_or_path": str(teacher_dir),
        "--model_name_or_path": str(student_dir),
        "--dataset_name": data,
        "--eval_dataset_name": data,
        "--output_dir": str(tmp_path / "cache"),
        "--max_length": "64",
        "--k": "8",
        "--log_probs_dtype": "float32",
        "--temperature": "1.5",
        "--shard_megabytes": "0.005",
        "--per_device_eval_batch_size": "4",
        "--disable_tqdm": "true",
    }


def words(arguments: dict[str, str]) -> list[str]:
    return [word for pair in arguments.items() for word in pair]


@pytest.mark.parametrize("packed", [False, True])
def test_the_cache_is_the_one_that_torch_makes(
    packed: bool, good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = words(good | (PACKED if packed else {}) | {"--output_dir": str(tmp_path / "torch")})
    ours = words(good | (PACKED if packed else {}))
    assert cache_teacher.main(theirs) == 0
    assert jax_cache_teacher.main(ours) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "384 tokens, the same" in said
    assert "of the teacher's mass" in said
    expected, found = TopKStore(tmp_path / "torch"), TopKStore(tmp_path / "cache")
    # Each names the arguments that it has.
    assert replace(found.header, arguments={}) == replace(expected.header, arguments={})
    assert len(found.shards) == len(expected.shards) > 1
    assert found.rows == expected.rows
    for row in range(found.rows):
        here, there = found.read(row), expected.read(row)
        np.testing.assert_array_equal(here.positions, there.positions)
        np.testing.assert_array_equal(here.indices, there.indices)
        np.testing.assert_allclose(here.log_probs, there.log_probs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(here.tails, there.tails, rtol=0, atol=1e-5)
    # Either goes on with what the other has begun.
    for folder, main in (("cache", cache_teacher.main), ("torch", jax_cache_teacher.main)):
        (tmp_path / folder / "shard-00001.safetensors").unlink()
        here = good | (PACKED if packed else {}) | {"--output_dir": str(tmp_path / folder)}
        assert main(words(here)) == 0
        assert "1 shards to write" in capsys.readouterr().out
        again = TopKStore(tmp_path / folder)
        for row in range(again.rows):
            np.testing.assert_array_equal(again.read(row).indices, expected.read(row).indices)


def test_a_cache_has_one_precision(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jax_cache_teacher.main(words(good)) == 0
    (tmp_path / "cache" / "shard-00001.safetensors").unlink()
    capsys.readouterr()
    assert jax_cache_teacher.main(words(good | {"--bf16": "true"})) == 2
    assert "its teacher's dtype is float32, not bfloat16" in capsys.readouterr().err


def test_one_process_makes_a_cache(
    good: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    for count in (None, "2"):
        if count is not None:
            monkeypatch.setenv("JAX_NUM_PROCESSES", count)
        assert jax_cache_teacher.main(words(good)) == 2
        assert "several processes; caching in JAX runs in one" in capsys.readouterr().err
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    assert jax_cache_teacher.main(words(good)) == 2
    assert "JAX_NUM_PROCESSES must be a whole number, got 'two'" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_mesh_that_does_not_fit(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jax_cache_teacher.main(words(good | {"--mesh": "data=3"})) == 2
    assert "--mesh data=3 does not divide" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
