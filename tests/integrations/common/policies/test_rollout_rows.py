"""Prompts of a batch, completions as a batch, and what a data policy needs of the rows."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.kinds import policy
from amidmath.integrations.common.policies.replay_buffer import Example, ReplayBuffer
from amidmath.integrations.common.policies.rollout_rows import (
    Memory,
    check_policy,
    check_prompts,
    completed,
    longest_prompt,
    prompts_of,
)
from amidmath.integrations.common.rows.batches import Batches, counted, held_out

PROMPTS = [[11, 12], [13], [14, 15, 16], [17, 18]]
ROWS = Dataset.from_list(
    [
        {"input_ids": [*prompt, *range(3, 3 + n)], "labels": [-100] * len(prompt) + [4] * n}
        for n, prompt in enumerate(PROMPTS, 2)
    ]
)


def example(prompt: list[int], completion: list[int]) -> Example:
    return Example(np.array(prompt), np.array(completion))


def prompts_in(batch: dict[str, Any]) -> list[list[int]]:
    found = prompts_of(batch["input_ids"], batch["labels"], batch["segments"] > 0)
    return [prompt.tolist() for prompt in found]


def test_prompts_of_rows_padded_on_either_side() -> None:
    ids = np.array([[1, 2, 3, 0, 0], [0, 0, 4, 5, 6]])
    labels = np.array([[-100, -100, 3, -100, -100], [-100, -100, -100, 5, 6]])
    found = prompts_of(ids, labels, np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool))
    assert [prompt.tolist() for prompt in found] == [[1, 2], [4]]


def test_the_longest_prompt() -> None:
    assert longest_prompt(ROWS) == 3
    assert longest_prompt(ROWS.select([1])) == 1


def test_prompts_of_a_step_leave_filling_out() -> None:
    batches = Batches(ROWS, batch_size=3, accumulation=2, pad=0, order="sequential")
    assert prompts_in(batches.step(0)) == PROMPTS


def test_completions_take_the_places_of_the_rows() -> None:
    batch = Batches(ROWS, batch_size=3, accumulation=2, pad=0, order="sequential").step(0)
    answers = [[21], [22, 23, 24], [25, 26], [27, 28, 29, 30]]
    examples = [example(*pair) for pair in zip(PROMPTS, answers, strict=True)]
    made = completed(examples, batch, pad=9, source=1)
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
        **{k: (v.shape, np.dtype("int32")) for k, v in batch.items()},
        "source": ((2, 3), np.dtype("int32")),
    }
    assert prompts_in(made) == PROMPTS
    assert (made["row"] == -1).all()
    assert (made["source"] == 1).all()
    rows = [(0, 0), (0, 1), (0, 2), (1, 0)]
    for at, prompt, answer in zip(rows, PROMPTS, answers, strict=True):
        whole = [*prompt, *answer]
        n, filling = len(whole), batch["input_ids"].shape[-1] - len(whole)
        assert made["input_ids"][at].tolist() == [*whole, *[9] * filling]
        assert made["segments"][at].tolist() == [1] * n + [0] * filling
        assert made["positions"][at].tolist() == [*range(n), *[0] * filling]
        assert made["labels"][at][made["labels"][at] != -100].tolist() == answer
        assert counted(made)[at].sum() == len(answer)
    for at in ((1, 1), (1, 2)):
        assert not made["segments"][at].any()
        assert not counted(made)[at].any()


def test_a_held_out_batch_can_be_completed_too() -> None:
    (batch,) = held_out(ROWS, batch_size=4, pad=0)
    examples = [example(prompt, [5]) for prompt in PROMPTS]
    made = completed(examples, batch, pad=0, source=None)
    assert made.keys() == batch.keys()
    assert prompts_in(made) == PROMPTS


def test_rows_without_prompts_are_named() -> None:
    labels = [[-100, 3]] * 1500
    check_prompts("--policy mixed", Dataset.from_dict({"labels": labels}))
    labels[1234] = [3, 4]
    with pytest.raises(InputError, match=r"--policy mixed .* row 1234 of the dataset has none"):
        check_prompts("--policy mixed", Dataset.from_dict({"labels": labels}))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("on_policy", {"joined_by": ["--packing"]}, "single prompts: leave out --packing$"),
        ("mixed", {"joined_by": ["--packing", "--x"]}, "leave out --packing and --x$"),
        ("on_policy", {"teacher_knows_new_rows": False}, "can judge new sequences"),
        ("adaptive", {"capacity": 7}, "--buffer_capacity 7 is less than the 8 rows"),
        ("on_policy", {"rows": Dataset.from_dict({"labels": [[3, 4]]})}, "row 0 .* has none"),
    ],
)
def test_a_policy_that_cannot_be_followed(name: str, changes: dict[str, Any], says: str) -> None:
    fitting: dict[str, Any] = {
        "rows": ROWS,
        "teacher_knows_new_rows": True,
        "capacity": 8,
        "step_rows": 8,
    }
    check_policy(policy(name), **fitting)
    with pytest.raises(InputError, match=says):
        check_policy(policy(name), **(fitting | changes))
    check_policy(policy("off_policy"), **(fitting | changes))


def test_memory_goes_on_where_it_was() -> None:
    memory = Memory(ReplayBuffer(8), [5, 0])
    for i in range(8):
        memory.buffer.push([i], [i, i])
    memory.draw(3)
    again = Memory(ReplayBuffer(8), [99])
    again.restore(memory.state())
    for _ in range(3):
        first, second = memory.draw(4), again.draw(4)
        assert [e.prompt.tolist() for e in first] == [e.prompt.tolist() for e in second]
    one, other = (Memory(ReplayBuffer(8), [5, process]).rng.random() for process in range(2))
    assert one != other


def test_memory_of_another_size_is_refused_and_nothing_changes() -> None:
    saved = Memory(ReplayBuffer(4), [1]).state()
    memory = Memory(ReplayBuffer(8), [2])
    before = memory.state()["generator"]
    with pytest.raises(InputError, match=r"--buffer_capacity 8: .* a capacity of 4; give that"):
        memory.restore(saved)
    assert memory.state()["generator"] == before
    assert memory.buffer.capacity == 8
