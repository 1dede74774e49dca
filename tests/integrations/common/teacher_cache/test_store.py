"""The cache's files: what is written is read, whole or not at all, and damage is found."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.storage.full_disk import DiskFullError
from amidmath.integrations.common.teacher_cache.format import (
    Header,
    Lists,
    other_than,
    payload_bytes,
    plan_shards,
)
from amidmath.integrations.common.teacher_cache.store import (
    TopKStore,
    check_fingerprints,
    data_arguments,
)
from amidmath.integrations.common.teacher_cache.writer import TopKWriter

COUNTS = [3, 0, 5, 2, 7, 1, 4]
LENGTHS = [5, 2, 6, 9, 8, 3, 5]
PRINTS = {"model": "m" * 64, "tokenizer": "t" * 64, "data": "d" * 64}


def header(**changes: Any) -> Header:
    settings = {
        "k": 4,
        "vocabulary": 300,
        "log_probs": "float16",
        "temperature": 1.0,
        "batch_rows": 2,
        "fingerprints": PRINTS,
        "teacher": {"name": "somebody"},
    }
    return Header(**(settings | changes))


def lists(of: Header, row: int) -> Lists:
    rng = np.random.default_rng(row)
    shape = (COUNTS[row], of.k)
    indices = np.argsort(rng.random((COUNTS[row], of.vocabulary)), axis=-1)[:, : of.k]
    positions = np.sort(rng.permutation(LENGTHS[row] - 1)[: COUNTS[row]])
    return Lists(
        rng.normal(-3.0, 1.0, shape).astype(of.log_probs),
        indices.astype(of.indices),
        rng.normal(-2.0, 1.0, shape[:1]).astype(np.float32),
        positions,
    )


def writer(folder: Path, of: Header, **kwargs: Any) -> TopKWriter:
    return TopKWriter(folder, of, COUNTS, LENGTHS, 5 * of.position_bytes, **kwargs)


def write(to: TopKWriter, numbers: list[int], *, begin: bool = True) -> None:
    if begin:
        to.begin()
    for number in numbers:
        shard = to.shards[number]
        rows = range(shard.first_row, shard.first_row + shard.rows)
        parts = zip(*(lists(to.header, row) for row in rows), strict=True)
        to.write(number, Lists(*(np.concatenate(part) for part in parts)))


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    to = writer(folder, header())
    write(to, to.missing())
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("vocabulary", [300, 65_536, 65_537])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, vocabulary: int) -> None:
    of = header(log_probs=dtype, vocabulary=vocabulary)
    to = writer(tmp_path / "cache", of)
    write(to, to.missing())
    store = TopKStore(tmp_path / "cache")
    assert (store.rows, store.positions, store.header) == (len(COUNTS), sum(COUNTS), of)
    for row in (4, 0, 6, 1, 2, 3, 5, 4):
        for found, expected in zip(store.read(row), lists(of, row), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert store.length(row) == LENGTHS[row]
    assert store.read(0).indices.dtype == ("uint16" if vocabulary <= 65_536 else "int32")


def test_shards_have_all_rows_in_order() -> None:
    of = header()
    shards = plan_shards(of, COUNTS, 5 * of.position_bytes)
    assert len(shards) > 2
    rows = [row for s in shards for row in range(s.first_row, s.first_row + s.rows)]
    assert rows == list(range(len(COUNTS)))
    for shard in shards:
        assert shard.positions == sum(COUNTS[shard.first_row : shard.first_row + shard.rows])


def test_the_estimate_is_the_size_but_for_the_files_headers(complete: Path) -> None:
    store = TopKStore(complete)
    files = list(complete.glob("shard-*"))
    size, estimate = sum(f.stat().st_size for f in files), payload_bytes(header(), store.shards)
    assert estimate < size < estimate + 600 * len(files)


def test_going_on_writes_what_is_missing_and_the_same_bytes(complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write(writer(folder, header()), [0, 2])
    with pytest.raises(InputError, match=r"shard-00001\.safetensors has not been written yet"):
        TopKStore(folder)
    again = writer(folder, header())
    assert again.missing() == [1, *range(3, len(again.shards))]
    write(again, again.missing())
    names = sorted(path.name for path in complete.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (complete / name).read_bytes(), name


def test_a_shard_that_is_not_in_the_index_yet_is_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    to = writer(folder, header())
    write(to, [0])
    (folder / "shard-00001.safetensors").write_bytes(b"killed between file and index")
    (folder / "shard-00002.safetensors.partial").write_bytes(b"killed while writing")
    again = writer(folder, header())
    assert again.missing()[0] == 1
    write(again, again.missing())
    assert not list(folder.glob("*.partial"))
    TopKStore(folder).read(2)


def test_several_processes_write_the_bytes_of_one(complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    main = writer(folder, header())
    main.begin()
    second, third = (writer(folder, header(), keeps_index=False) for _ in range(2))
    numbers = main.missing()
    for to, share in ((second, numbers[1::3]), (main, numbers[::3]), (third, numbers[2::3])):
        write(to, share, begin=False)
    assert list(folder.glob("shard-*.json"))
    main.collect()
    names = sorted(path.name for path in complete.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (complete / name).read_bytes(), name


def test_what_another_process_wrote_is_kept_when_all_are_killed(
    complete: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    writer(folder, header()).begin()
    write(writer(folder, header(), keeps_index=False), [1, 2], begin=False)
    (folder / "shard-00002.json").write_text('{"size": 1')  # the machine went off
    (folder / "shard-00000.json").write_text("3")
    with pytest.raises(InputError, match=r"shard-00000\.safetensors has not been written yet"):
        TopKStore(folder)
    again = writer(folder, header())
    assert again.missing() == [0, *range(2, len(again.shards))]
    write(again, again.missing())
    assert {path.name for path in folder.iterdir()} == {path.name for path in complete.iterdir()}
    TopKStore(folder).read(2)


def test_notes_of_a_cache_without_index_are_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    to = writer(folder, header())
    to.begin()
    write(writer(folder, header(), keeps_index=False), [1], begin=False)
    (folder / "index.json").unlink()
    again = writer(folder, header(k=3))
    again.begin()
    assert [path.name for path in folder.iterdir()] == ["index.json"]
    assert again.missing() == list(range(len(again.shards)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 5}, "its k is 4, not 5"),
        ({"temperature": 2.0}, "its temperature is 1.0, not 2.0"),
        ({"batch_rows": 8}, "its batch_rows is 2, not 8"),
        ({"teacher": {"precision": "bf16"}}, "its teacher's precision is None, not bf16"),
        (
            {"fingerprints": PRINTS | {"data": "x" * 64}},
            "its data is dddddddddddd, not xxxxxxxxxxxx",
        ),
    ],
)
def test_a_cache_of_other_things_is_not_touched(
    complete: Path, changes: dict[str, Any], says: str
) -> None:
    before = (complete / "index.json").read_bytes()
    with pytest.raises(InputError, match=says) as caught:
        writer(complete, header(**changes))
    assert "--overwrite_output_dir" in str(caught.value)
    assert (complete / "index.json").read_bytes() == before
    replaced = writer(complete, header(**changes), overwrite=True)
    assert len(replaced.missing()) == len(replaced.shards)
    assert (complete / "index.json").read_bytes() == before
    replaced.begin()
    assert [path.name for path in complete.iterdir()] == ["index.json"]


def test_another_size_of_shards_is_another_cache(complete: Path) -> None:
    with pytest.raises(InputError, match="shards are of another size"):
        TopKWriter(complete, header(), COUNTS, LENGTHS, 10**9)


def test_a_truncated_shard_is_found_at_opening(complete: Path) -> None:
    path = complete / "shard-00001.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError) as caught:
        TopKStore(complete)
    assert f"shard-00001.safetensors has {size - 3:,} bytes instead of {size:,}" in str(
        caught.value
    )
    assert "it writes that shard only" in str(caught.value)
    assert writer(complete, header()).missing() == [1]


def test_a_lost_shard_is_found_at_opening(complete: Path) -> None:
    (complete / "shard-00000.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard-00000\.safetensors is missing"):
        TopKStore(complete)


@pytest.mark.parametrize("at", [3, -1])
def test_a_corrupt_shard_is_found_at_first_use(complete: Path, at: int) -> None:
    path = complete / "shard-00001.safetensors"
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[at] ^= 1
    path.write_bytes(damaged)
    store = TopKStore(complete)
    store.read(0)
    with pytest.raises(InputError, match=r"shard-00001\.safetensors is corrupt.*--verify"):
        store.read(store.shards[1].first_row)
    to = writer(complete, header())
    assert to.missing() == []
    assert to.missing(verify=True) == [1]
    write(to, [1])
    assert path.read_bytes() == good


def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    to = writer(folder, header())
    write(to, [0])
    real = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        real(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError) as caught:
            write(to, [1])
    for words in ("is full", "shard-00001", f"1 of {len(to.shards)} shards", "goes on from there"):
        assert words in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "shard-00000.safetensors",
    ]
    again = writer(folder, header())
    assert again.missing() == list(range(1, len(again.shards)))


def test_another_error_of_the_disk_is_not_called_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Path, data: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    to = writer(tmp_path / "cache", header())
    to.begin()
    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write(to, [0])


def test_folders_that_are_no_cache(tmp_path: Path, complete: Path) -> None:
    with pytest.raises(InputError, match=r"there is no index\.json"):
        TopKStore(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that are no cache, cache for one"):
        writer(tmp_path, header())
    with pytest.raises(InputError, match="is a file"):
        writer(tmp_path / "notes.txt", header())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "its version is 2, not 1"),
        ({"format": "other"}, "its format is 'other'"),
        ({"fingerprints": {}}, "fingerprints"),
        ({"shards": [{"file": "a"}]}, "first_row"),
        (None, "is no index.*--overwrite_output_dir"),
    ],
)
def test_an_index_that_is_not_known(
    complete: Path, change: dict[str, Any] | None, says: str
) -> None:
    path = complete / "index.json"
    content = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(content | change))
    with pytest.raises(InputError, match=says):
        TopKStore(complete)


def test_what_is_there_in_place_of_a_cache(tmp_path: Path, complete: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        TopKStore(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    complete.rename(tmp_path / "mine" / "held_out")
    with pytest.raises(InputError, match="only held-out rows in held_out/"):
        TopKStore(tmp_path / "mine")
    path = tmp_path / "mine" / "held_out" / "index.json"
    content = json.loads(path.read_text())
    del content["k"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="it has no entry 'k'"):
        TopKStore(path.parent)


def test_rows_that_are_not_there(complete: Path) -> None:
    store = TopKStore(complete)
    for row in (-1, len(COUNTS)):
        with pytest.raises(InputError, match=f"no row {row}"):
            store.read(row)


def test_lists_of_another_shape_are_refused(tmp_path: Path) -> None:
    to = writer(tmp_path / "cache", header())
    to.begin()
    with pytest.raises(ValueError, match="shape"):
        to.write(0, lists(header(), 0))


def test_fingerprints_say_which_of_them_differs() -> None:
    check_fingerprints(Path("c"), header(), {**PRINTS, "model": None})
    for name in PRINTS:
        with pytest.raises(InputError) as caught:
            check_fingerprints(Path("c"), header(), PRINTS | {name: "z" * 64})
        text = str(caught.value)
        assert f"{name} (cached {PRINTS[name][:12]}, now zzzzzzzzzzzz: " in text
        assert "z" * 13 not in text
        assert not any(f"{other} (cached" in text for other in set(PRINTS) - {name})
    with pytest.raises(InputError, match="it is of somebody, another model"):
        check_fingerprints(Path("c"), header(), {"model": "z" * 64})


@pytest.mark.parametrize(
    ("cached", "now", "says"),
    [
        (None, {"seed": 1}, "another dataset, split, seed"),
        ({"seed": 1}, None, "another dataset, split, seed"),
        (
            {"seed": 1, "max_length": 8, "old": 3},
            {"seed": 2, "max_length": 8, "new": 4},
            "the prepared rows differ: --seed 2 (cached with 1))",
        ),
        ({"seed": 1}, {"seed": 1}, "although the arguments are the same"),
    ],
)
def test_other_rows_are_explained_by_the_arguments(
    cached: dict[str, int] | None, now: dict[str, int] | None, says: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_fingerprints(Path("c"), header(arguments=cached), {"data": "z" * 64}, now)
    assert says in str(caught.value)


def test_data_arguments() -> None:
    class Script:
        dataset_name, k = "rows.jsonl", 8

    class Config:
        max_length, learning_rate = 40, 0.1

    assert data_arguments(Script(), Config()) == {"dataset_name": "rows.jsonl", "max_length": 40}


def test_held_out_rows_are_cached_as_the_training_rows_are() -> None:
    assert other_than(header(), header(log_probs="float32", batch_rows=7)) == ""
    prints = PRINTS | {"model": "z" * 64}
    said = other_than(header(), header(k=3, temperature=2.0, fingerprints=prints))
    assert said == (
        "k 3 instead of 4, temperature 2.0 instead of 1.0, another teacher, zzzzzzzzzzzz instead "
        "of mmmmmmmmmmmm"
    )
