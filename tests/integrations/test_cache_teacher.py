"""The command that makes a cache: what it says, what it leaves, and that it can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import SENTENCES, save, tiny_model, write_jsonl
from transformers import AutoTokenizer

from amidmath.integrations import jax_cache_teacher
from amidmath.integrations.cache_teacher import main
from amidmath.integrations.common.teacher_cache import estimate as cache_estimate
from amidmath.integrations.common.teacher_cache.store import TopKStore
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

Script = Callable[[list[str]], int]
SCRIPTS: dict[str, Script] = {"torch": main, "jax": jax_cache_teacher.main}
"""What refuses the same arguments in the same words."""


@pytest.fixture
def good(teacher_dir: Path, student_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Arguments that work."""
    rows = [{"prompt": f"{i}: ", "completion": SENTENCES[i % 4][: 9 + i % 23]} for i in range(60)]
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    return {
        "--teacher_model_name_or_path": str(teacher_dir),
        "--model_name_or_path": str(student_dir),
        "--dataset_name": data,
        "--eval_dataset_name": data,
        "--output_dir": str(tmp_path / "cache"),
        "--max_length": "64",
        "--k": "8",
        "--shard_megabytes": "0.001",
        "--per_device_eval_batch_size": "2",
        "--disable_tqdm": "true",
    }


def words(arguments: dict[str, str]) -> list[str]:
    return [word for pair in arguments.items() for word in pair]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_and_gone_on_with_it_is_the_same_cache(good: dict[str, str], tmp_path: Path) -> None:
    assert main(words(good)) == 0
    killed = tmp_path / "killed"
    command = words(good | {"--output_dir": str(killed)})
    process = subprocess.Popen(
        [sys.executable, "-m", "amidmath.integrations.cache_teacher", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed / "shard-00003.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    index = json.loads((killed / "index.json").read_text())
    done = [shard for shard in index["shards"] if shard["size"] is not None]
    assert 3 <= len(done) < len(index["shards"])
    first = (killed / done[0]["file"]).stat().st_mtime_ns
    assert main(command) == 0
    assert contents(killed) == contents(tmp_path / "cache")
    assert (killed / done[0]["file"]).stat().st_mtime_ns == first


def test_what_it_says(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(good), "--dry_run", "true"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "cache").exists()
    assert "processes" not in said
    for part in ("60 rows", "MB in", "a second: about", "mass covered", "384 tokens, the same"):
        assert part in said
    assert main(words(good)) == 0
    said = " ".join(capsys.readouterr().out.split())
    store = TopKStore(tmp_path / "cache")
    mass = 1.0 - np.exp(np.concatenate(list(store.tails())))
    assert f"{store.positions:,} of them count" in said
    assert f"cover {mass.mean():.4f} of the teacher's mass" in said
    assert f"{np.quantile(mass, 0.05):.4f} in the 5th percentile" in said
    assert main(words(good)) == 0
    assert "All shards are there" in capsys.readouterr().out


def test_a_corrupt_shard_is_the_only_one_written_again(
    good: dict[str, str], tmp_path: Path
) -> None:
    assert main(words(good)) == 0
    before = contents(tmp_path / "cache")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    path = tmp_path / "cache" / "shard-00004.safetensors"
    path.write_bytes(before[path.name][:-1] + b"x")
    assert main([*words(good), "--verify", "true"]) == 0
    assert contents(tmp_path / "cache") == before
    for name in before:
        if name not in (path.name, "index.json"):
            assert (tmp_path / "cache" / name).stat().st_mtime_ns == times[name]


def test_held_out_rows(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write_jsonl(tmp_path / "test.jsonl", [{"prompt": "a ", "completion": "bc"}] * 3)
    changed = good | {"--eval_dataset_name": str(held_out), "--held_out": "true"}
    assert main(words(changed)) == 0  # before the training rows
    assert TopKStore(tmp_path / "cache" / "held_out").rows == 3
    assert main(words(good | {"--eval_dataset_name": str(held_out)})) == 0
    assert main(words(changed)) == 0  # and after them
    assert [TopKStore(tmp_path / "cache" / part).rows for part in ("", "held_out")] == [60, 3]
    capsys.readouterr()
    assert main([*words(changed | {"--k": "9"}), "--overwrite_output_dir", "true"]) == 2
    assert "held-out rows need the same (k 9 instead of 8)" in capsys.readouterr().err
    assert TopKStore(tmp_path / "cache" / "held_out").header.k == 8


def test_packed_rows_have_no_lists_where_one_document_follows_another(
    good: dict[str, str], tmp_path: Path
) -> None:
    texts = [{"text": SENTENCES[i % 4][: 9 + i % 23]} for i in range(60)]  # learned from the start
    good |= {"--dataset_name": str(write_jsonl(tmp_path / "texts.jsonl", texts))}
    packed = {"--packing": "true", "--packing_strategy": "bfd"}
    assert main(words(good | packed)) == 0
    assert main(words(good | {"--output_dir": str(tmp_path / "plain")})) == 0
    counted = [
        sum(len(store.read(row).positions) for row in range(store.rows))
        for store in (TopKStore(tmp_path / "cache"), TopKStore(tmp_path / "plain"))
    ]
    assert counted[0] == counted[1]
    assert TopKStore(tmp_path / "cache").rows < TopKStore(tmp_path / "plain").rows


def test_without_a_student_the_teachers_tokenizer_prepares(
    good: dict[str, str], tmp_path: Path
) -> None:
    del good["--model_name_or_path"]
    assert main(words(good)) == 0
    assert TopKStore(tmp_path / "cache").rows == 60


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> Script:
    """Either script."""
    return SCRIPTS[request.param]


@pytest.fixture
def refuse(
    script: Script, good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[dict[str, str]], str]:
    def run(changes: dict[str, str]) -> str:
        assert script(words({k: v for k, v in (good | changes).items() if v})) == 2
        assert not (tmp_path / "cache").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--teacher_model_name_or_path": ""}, "--teacher_model_name_or_path must be given"),
        ({"--dataset_name": "no.jsonl"}, "no such file: no.jsonl"),
        ({"--k": "0"}, "--k must be at least 1, got 0"),
        ({"--k": "385"}, "--k 385: the teacher has 384 tokens only"),
        ({"--shard_megabytes": "0"}, "--shard_megabytes must be positive"),
        ({"--teacher_cache": "there"}, "--teacher_cache there"),
        ({"--max_length": "4096"}, "context of 128"),
        ({"--kk": "3"}, "unknown argument --kk"),
    ],
    ids=str,
)
def test_what_does_not_fit(
    refuse: Callable[[dict[str, str]], str], changes: dict[str, str], says: str
) -> None:
    assert says in refuse(changes)


def test_a_student_of_another_vocabulary(
    refuse: Callable[[dict[str, str]], str],
    script: Script,
    good: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = save(tiny_model(1, 0, vocab_size=512), tmp_path / "padded")
    assert "--vocab common" in refuse({"--model_name_or_path": str(folder)})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["mine"])
    tokenizer.save_pretrained(folder)
    assert "'mine'" in refuse({"--model_name_or_path": str(folder)})
    changed = good | {"--model_name_or_path": str(folder), "--vocab": "common"}
    assert script(words(changed)) == 0
    assert TopKStore(tmp_path / "cache").header.common == 384


@pytest.mark.parametrize("script", ["torch"], indirect=True)
def test_a_teacher_in_parts(
    refuse: Callable[[dict[str, str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AMiDTrainer, "is_sharded", True)
    assert "needs all of it: launch with the DDP configuration" in refuse({})


def test_a_disk_without_room(
    refuse: Callable[[dict[str, str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_estimate, "free_bytes", lambda folder: 1000)
    said = refuse({})
    assert "needs" in said
    assert "smaller --k" in said


def test_another_k_in_the_same_folder(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(good)) == 0
    before = contents(tmp_path / "cache")
    assert main(words(good | {"--k": "9"})) == 2
    assert "its k is 8, not 9" in capsys.readouterr().err
    assert contents(tmp_path / "cache") == before
    assert main([*words(good | {"--k": "9"}), "--overwrite_output_dir", "true"]) == 0
    assert TopKStore(tmp_path / "cache").header.k == 9
