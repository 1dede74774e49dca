"""The replay buffer: order, fairness, and exact saving."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.replay_buffer import ReplayBuffer

IDS = st.lists(st.integers(0, 2**63 - 1), max_size=5)
PAIRS = st.lists(st.tuples(IDS, IDS), max_size=12)


def contents(buffer: ReplayBuffer) -> list[tuple[list[int], list[int]]]:
    """What it holds, oldest first, read off its state."""
    state = buffer.state()
    pieces = [
        state["tokens"][begin:end].tolist()
        for begin, end in zip(state["offsets"][:-1], state["offsets"][1:], strict=True)
    ]
    return list(zip(pieces[::2], pieces[1::2], strict=True))


@given(pairs=PAIRS, capacity=st.integers(1, 6))
def test_it_holds_the_last_examples_and_no_more(
    pairs: list[tuple[list[int], list[int]]], capacity: int
) -> None:
    buffer = ReplayBuffer(capacity)
    for count, (prompt, completion) in enumerate(pairs, 1):
        buffer.push(prompt, completion)
        assert len(buffer) == min(count, capacity)
        assert buffer.full == (count >= capacity)
    assert contents(buffer) == pairs[-capacity:]


@given(pairs=PAIRS, capacity=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_a_restored_buffer_goes_on_like_the_original(
    pairs: list[tuple[list[int], list[int]]], capacity: int, seed: int, data: st.DataObject
) -> None:
    buffer = ReplayBuffer(capacity)
    stop = data.draw(st.integers(0, len(pairs)))
    for pair in pairs[:stop]:
        buffer.push(*pair)
    restored = ReplayBuffer.from_state(buffer.state())
    for pair in pairs[stop:]:
        buffer.push(*pair)
        restored.push(*pair)
    assert restored.capacity == capacity
    assert contents(restored) == contents(buffer)
    count = data.draw(st.integers(0, len(buffer)))
    samples = [b.sample(count, np.random.default_rng(seed)) for b in (buffer, restored)]
    for ours, theirs in zip(*samples, strict=True):
        assert ours.prompt.tolist() == theirs.prompt.tolist()
        assert ours.completion.tolist() == theirs.completion.tolist()


@pytest.mark.parametrize("count", [0, 3])
def test_safetensors_keeps_it(tmp_path: Path, count: int) -> None:
    buffer = ReplayBuffer(4)
    for n in range(count):
        buffer.push([n], np.arange(n, dtype=np.int32))
    save_file(buffer.state(), tmp_path / "buffer.safetensors")
    restored = ReplayBuffer.from_state(load_file(tmp_path / "buffer.safetensors"))
    assert contents(restored) == contents(buffer) == [([n], list(range(n))) for n in range(count)]
    assert restored.capacity == 4


def test_a_sample_has_different_examples_each_equally_likely() -> None:
    buffer, rng = ReplayBuffer(10), np.random.default_rng(0)
    for n in range(5):
        buffer.push([n], [n + 100])
    drawn: Counter[int] = Counter()
    for _ in range(2000):
        sample = buffer.sample(2, rng)
        assert all(example.completion[0] == example.prompt[0] + 100 for example in sample)
        assert sample[0].prompt[0] != sample[1].prompt[0]
        drawn.update(int(example.prompt[0]) for example in sample)
    # 800 expected each; the standard deviation is sqrt(2000 * 0.4 * 0.6) = 22.
    assert all(abs(drawn[n] - 800) < 110 for n in range(5))


def test_what_was_pushed_does_not_change_later() -> None:
    buffer, prompt = ReplayBuffer(), np.array([1, 2])
    buffer.push(prompt, prompt)
    prompt[0] = 9
    (example,) = buffer.sample(1, np.random.default_rng(0))
    assert example.prompt.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        example.prompt[0] = 9


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, "10"])
def test_a_capacity_that_is_none_is_refused(capacity: object) -> None:
    with pytest.raises(InputError, match="capacity must be a positive integer, got"):
        ReplayBuffer(capacity)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([[1, 2]], r"prompt must be token ids, integers in one dimension, got int64 \(1, 2\)"),
        (3, r"got int64 \(\)"),
        ([0.5], "got float64"),
        ([True], "got bool"),
        ([4, -100], "prompt must be token ids, but -100 is among them"),
        (np.array([2**64 - 1], np.uint64), "but 18446744073709551615 is among them"),
    ],
)
def test_what_are_no_token_ids_is_refused(ids: object, says: str) -> None:
    buffer = ReplayBuffer()
    with pytest.raises(InputError, match=says):
        buffer.push(ids, [1])  # type: ignore[arg-type]
    assert len(buffer) == 0


@pytest.mark.parametrize("count", [-1, 3])
def test_more_than_there_are_cannot_be_sampled(count: int) -> None:
    buffer = ReplayBuffer(7)
    for n in range(2):
        buffer.push([n], [n])
    with pytest.raises(InputError, match=f"between 0 and 2, .* capacity 7, got {count}"):
        buffer.sample(count, np.random.default_rng(0))


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": None}, "it has"),
        ({"more": i64(1)}, "it has"),
        ({"tokens": np.zeros(3, np.float32)}, "tokens must be int64 in one dimension, got float32"),
        ({"tokens": np.zeros((1, 3), np.int64)}, r"got int64 \(1, 3\)"),
        ({"tokens": i64(1, 2)}, "the offsets do not divide 2 tokens"),
        ({"tokens": i64(1, 2, -3)}, "-3 is among them"),
        ({"offsets": i64()}, "0 offsets are not those of 0 to 2 pairs"),
        ({"offsets": i64(0, 3)}, "2 offsets are not those of"),
        ({"offsets": i64(0, 1, 2, 2, 3, 3, 3)}, "7 offsets are not those of 0 to 2 pairs"),
        ({"offsets": i64(0, 2, 1, 2, 3)}, "the offsets do not divide 3 tokens"),
        ({"offsets": i64(0, 1, -(2**63), -1, 3)}, "the offsets do not divide 3 tokens"),
        ({"offsets": i64(1, 2, 3)}, "the offsets do not divide 3 tokens"),
        ({"capacity": i64(0)}, "capacity must be one positive number"),
        ({"capacity": i64(2, 2)}, "capacity must be one positive number"),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, np.ndarray | None], says: str) -> None:
    buffer = ReplayBuffer(2)
    buffer.push([1, 2], [3])
    state = {n: a for n, a in {**buffer.state(), **change}.items() if a is not None}
    with pytest.raises(InputError, match=f"the saved replay buffer is damaged: .*{says}"):
        ReplayBuffer.from_state(state)
