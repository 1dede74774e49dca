"""Schedules: their values, TAID's formula, exact resume, and what is refused."""

import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mpmath import mp, mpf

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.schedule_base import StepSchedule
from amidmath.integrations.common.recipe.schedule_kinds import Linear, OverlapToken, Taid
from amidmath.integrations.common.recipe.schedules import KINDS, Schedules, parse_schedule, usage

UNIT = st.floats(0.0, 1.0)
LOSSES = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30)


def step_schedule(text: str) -> StepSchedule:
    schedule = parse_schedule(f"lam={text}")[1]
    assert isinstance(schedule, StepSchedule)
    return schedule


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state, allow_nan=False))


def test_constant_is_the_same_at_every_step() -> None:
    assert parse_schedule("alpha=constant:-1")[0] == "alpha"
    assert [step_schedule("constant:0.3").value(n, 4) for n in range(4)] == [0.3] * 4
    assert step_schedule("constant:-inf").value(0, 1) == -math.inf


@given(start=st.floats(-5, 5), end=st.floats(-5, 5), total=st.integers(2, 50))
def test_linear_is_the_straight_line_from_the_first_step_to_the_last(
    start: float, end: float, total: int
) -> None:
    for step in range(total):
        exact = Fraction(start) + (Fraction(end) - Fraction(start)) * Fraction(step, total - 1)
        assert Linear(start, end).value(step, total) == pytest.approx(float(exact), abs=1e-14)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@given(start=UNIT, end=UNIT, total=st.integers(2, 1000), data=st.data())
def test_the_ends_are_exact_and_a_weight_stays_a_weight(
    kind: str, start: float, end: float, total: int, data: st.DataObject
) -> None:
    schedule = step_schedule(f"{kind}:{start!r}:{end!r}")
    assert schedule.value(0, total) == start
    assert schedule.value(total - 1, total) == schedule.value(total, total) == end
    assert 0.0 <= schedule.value(data.draw(st.integers(0, total - 1)), total) <= 1.0


def test_cosine_is_slow_fast_slow() -> None:
    values = [step_schedule("cosine:0:1").value(step, 7) for step in range(7)]
    known = [0, (2 - math.sqrt(3)) / 4, 1 / 4, 1 / 2, 3 / 4, (2 + math.sqrt(3)) / 4, 1]
    assert values == pytest.approx(known, abs=1e-15)


def test_a_run_of_one_step_uses_the_start() -> None:
    assert step_schedule("linear:0.2:0.8").value(0, 1) == 0.2
    assert step_schedule("cosine:0.2:0.8").value(0, 1) == 0.2


def taid_as_published(losses: list[float], total: int, start: float, end: float) -> list[mpf]:
    """The t in use at each step: TAID.update_t of the authors' code, called after each step."""
    t, momentum, previous, used = mpf(start), mpf(0), mp.inf, []
    for global_step, loss in enumerate(losses):
        used.append(t)
        if mp.isinf(previous):
            previous = mpf(loss)
            continue
        relative_change = (previous - loss) / (previous + mpf(1e-15))
        momentum = mpf(0.99) * momentum + (1 - mpf(0.99)) * relative_change
        adaptive_delta = 1 / (1 + mp.exp(-momentum))
        progress = mpf(global_step) / total
        t_target = start + (mpf(end) - start) * progress
        delta_t = mpf(5e-4) * adaptive_delta * (1 - t)
        t = min(mpf(end), max(t_target, t + delta_t))
        previous = mpf(loss)
    return used


def taid_values(schedule: StepSchedule, losses: list[float], total: int) -> list[float]:
    values = []
    for step, loss in enumerate(losses):
        values.append(schedule.value(step, total))
        schedule.observe({"loss": loss})
    return values


@given(losses=LOSSES, more=st.integers(0, 100_000), ends=st.tuples(st.floats(0, 0.99), UNIT))
@example(losses=[1e-15, 0.0, 0.0, 1.0], more=100_000, ends=(0.4, 1.0))
def test_taid_follows_the_published_code(
    losses: list[float], more: int, ends: tuple[float, float]
) -> None:
    start, end = min(ends), max(ends[1], ends[0], 0.01)
    total = len(losses) + more
    with mp.workdps(40):
        published = [float(t) for t in taid_as_published(losses, total, start, end)]
    values = taid_values(Taid(start, end), losses, total)
    assert values == pytest.approx(published, rel=1e-13)
    assert values == sorted(values)


def test_taid_runs_ahead_of_its_floor_on_a_long_run_and_reaches_one_on_a_short() -> None:
    losses = [5.0 * 0.9**n for n in range(200)]
    ahead = taid_values(Taid(), losses, 1_000_000)
    assert ahead[0] == ahead[1] == 0.4
    assert ahead[199] > 0.4 + 199 * 0.6 / 1_000_000 + 0.01
    floor = taid_values(Taid(), losses, 200)
    assert floor[101] == pytest.approx(0.4 + 0.6 * 100 / 200)
    assert taid_values(Taid(), [1.0] * 12, 10)[-1] == 1.0


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, -1.0, -1e-15])
def test_a_loss_that_says_nothing_leaves_taid_on_its_floor(strange: float) -> None:
    schedule = Taid()
    taid_values(schedule, [3.0, 2.5], 10)
    before = schedule.state()
    taid_values(schedule, [strange], 10)
    after = schedule.state()
    assert after["t"] == pytest.approx(0.4 + 0.6 * 2 / 10)
    assert after == {**before, "t": after["t"], "observed": 3}


def test_taid_needs_the_number_of_steps_first() -> None:
    with pytest.raises(RuntimeError, match=r"value\(step, total\) before observe"):
        Taid().observe({"loss": 1.0})


@given(overlaps=st.lists(UNIT, min_size=1), low=st.floats(-5, 5), high=st.floats(-5, 5))
def test_overlap_begins_low_and_then_follows_the_last_step(
    overlaps: list[float], low: float, high: float
) -> None:
    schedule = step_schedule(f"overlap:{low!r}:{high!r}")
    assert schedule.value(0, 9) == low
    for step, overlap in enumerate(overlaps, 1):
        schedule.observe({"loss": 1.0, "overlap": overlap})
        exact = Fraction(low) + (Fraction(high) - Fraction(low)) * Fraction(overlap)
        assert schedule.value(step, 9) == pytest.approx(float(exact), abs=1e-14)


def test_overlap_moves_its_average_from_the_first_overlap_on() -> None:
    schedule = step_schedule("overlap:-1:3:0.75")
    seen = []
    for overlap in (0.5, 1.0, 0.0, math.nan, 1.0 + 1e-7, -1e-7):
        schedule.observe({"overlap": overlap})
        seen.append(schedule.value(0, 1))
    averages = [0.5, 0.625, 0.46875, 0.46875, 0.6015625, 0.451171875]
    assert seen == [-1 + 4 * average for average in averages]


@pytest.mark.parametrize("asarray", [np.float32, np.asarray, torch.tensor, float])
def test_the_overlap_of_each_token_gives_its_own_value(asarray: type) -> None:
    schedules = Schedules.parse(["alpha=overlap_token:-2:1", "lam=constant:0.1"], ["alpha", "lam"])
    assert schedules.values(0, 10) == {"lam": 0.1}
    assert not schedules.needs_overlap
    token = schedules.per_token["alpha"]
    assert token.per_token
    for overlap, wanted in ((0.0, -2.0), (0.25, -1.25), (1.0, 1.0)):
        value = token.from_overlap(asarray(overlap))
        assert type(value) is type(asarray(overlap) * 1.0)
        assert value == wanted


@given(ends=st.tuples(UNIT, UNIT), overlap=st.floats(0, 1, width=32))
def test_a_weight_by_overlap_stays_a_weight(ends: tuple[float, float], overlap: float) -> None:
    low, high = (float(np.float32(end)) for end in ends)
    schedule = OverlapToken(low, high)
    for dtype in (np.float32, np.float64):
        values = schedule.from_overlap(np.asarray([overlap, 0.0, 1.0], dtype))
        assert values.dtype == dtype
        assert 0.0 <= values.min() <= values.max() <= 1.0
        assert list(values[1:]) == [low, high]


ALL = [
    "a=constant:0.3",
    "b=linear:0:1",
    "c=cosine:1:0",
    "d=taid",
    "e=overlap:-1:1:0.9",
    "f=overlap:0:1",
    "g=overlap_token:0:1",
]


def all_schedules() -> Schedules:
    return Schedules.parse(ALL, "abcdefg")


@given(
    steps=st.lists(st.tuples(st.floats(0, 50, width=32), UNIT), min_size=1, max_size=12),
    data=st.data(),
)
def test_a_resumed_run_has_the_values_of_an_uninterrupted_one(
    steps: list[tuple[float, float]], data: st.DataObject
) -> None:
    total, stop = len(steps) + 3, data.draw(st.integers(0, len(steps)))
    whole, values = all_schedules(), []
    first, resumed = all_schedules(), all_schedules()
    for step, (loss, overlap) in enumerate(steps):
        if step == stop:
            resumed.restore(through_json(first.state()))
            assert resumed.state() == first.state()
            first = resumed
        values.append(whole.values(step, total))
        assert first.values(step, total) == values[-1]
        for schedules in (whole, first):
            schedules.observe({"loss": loss, "overlap": overlap})
    assert through_json(first.state()) == whole.state()
    assert set(values[0]) == set("abcdef")


@pytest.mark.parametrize("text", ALL)
def test_the_schedules_that_learn_from_the_steps_say_so(text: str) -> None:
    assert Schedules.parse([text], "abcdefg").observes == (text[0] in "def")


def test_only_the_overlap_per_batch_needs_an_observed_overlap() -> None:
    assert all_schedules().needs_overlap
    schedules = Schedules.parse(["b=linear:0:1", "d=taid"], "bd")
    assert not schedules.needs_overlap
    schedules.values(0, 2)
    schedules.observe({"loss": 2.0})


def test_every_kind_says_how_it_is_written_and_what_it_does() -> None:
    assert {usage(kind) for kind in KINDS} == {
        "constant:V",
        "linear:START:END",
        "cosine:START:END",
        "taid[:START[:END[:A[:BETA]]]]",
        "overlap:LOW:HIGH[:DECAY]",
        "overlap_token:LOW:HIGH",
    }
    assert all_schedules().describe() == (
        "a: 0.3; b: linear from 0 to 1; c: cosine from 1 to 0; "
        "d: TAID's adaptive t from 0.4 to 1 (a = 0.0005, beta = 0.99); "
        "e: -1 at no overlap to 1 at full overlap, per batch, moving average with decay 0.9; "
        "f: 0 at no overlap to 1 at full overlap, per batch; "
        "g: 0 at no overlap to 1 at full overlap, per token"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write PARAMETER=KIND:NUMBER:..., for instance lam=cosine:0.1:0.9; the kinds are"),
        ("cosine:0:1", "write PARAMETER=KIND"),
        ("=cosine:0:1", "write PARAMETER=KIND"),
        ("lam=", "write PARAMETER=KIND"),
        ("lam=0.5", "there is no kind '0.5'; the kinds are constant:V, linear:START:END, "),
        ("lam=step:0:1", "there is no kind 'step'; the kinds are constant:V"),
        ("lam=linear:0", "linear takes 2 numbers, got 1; write lam=linear:START:END"),
        ("lam=linear:0:1:2", "linear takes 2 numbers, got 3"),
        (
            "lam=overlap:0",
            "overlap takes 2 to 3 numbers, got 1; write lam=overlap:LOW:HIGH[:DECAY]",
        ),
        ("lam=linear:0:one", "'one' is not a number; write lam=linear:START:END"),
        ("lam=linear:0:", "'' is not a number"),
        ("lam=constant:nan", "V must be a number, got nan"),
        ("lam=linear:0:inf", "END must be a finite number, got inf"),
        ("lam=cosine:nan:1", "START must be a finite number, got nan"),
        ("lam=overlap:-inf:1", "LOW must be a finite number, got -inf"),
        ("lam=overlap_token:0:nan", "HIGH must be a finite number, got nan"),
        ("lam=overlap:0:1:1", "DECAY must be in [0, 1), got 1"),
        ("lam=taid:1:1", "START must be in [0, 1), got 1"),
        ("lam=taid:nan:1", "START must be in [0, 1), got nan"),
        ("lam=taid:0:1.5", "END must be in (0, 1], got 1.5"),
        ("lam=taid:0.5:0.4", "END must be at least START, 0.5, got 0.4"),
        ("lam=taid:0:1:2", "A must be in [0, 1], got 2"),
        ("lam=taid:0:1:0.1:1", "BETA must be in [0, 1), got 1"),
    ],
)
def test_a_text_that_is_no_schedule_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        parse_schedule(text)
    assert str(error.value).startswith(f"--schedule {text!r}: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (
            ["mu=linear:0:1"],
            "--schedule 'mu=linear:0:1': the loss has no parameter 'mu'; it has lam",
        ),
        (["lam=linear:0:1", "lam=taid"], "--schedule 'lam=taid': lam has a schedule already"),
    ],
)
def test_schedules_that_do_not_fit_the_loss_are_refused(texts: list[str], says: str) -> None:
    with pytest.raises(InputError) as error:
        Schedules.parse(texts, ["lam"])
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "state", "says"),
    [
        ("linear:0:1", {}, "the checkpoint has schedules of nothing, this run of lam"),
        ("linear:0:1", {"alpha": {}, "lam": {}}, "has schedules of alpha, lam, this run of lam"),
        ("linear:0:1", {"lam": {"t": 0.5}}, "--schedule lam: the saved state is that of another"),
        ("taid", {"lam": {}}, "it holds nothing, expected t, momentum, observed, [previous]"),
        ("overlap:0:1", {"lam": {"average": "0.5"}}, "average must be a finite number, got '0.5'"),
        ("overlap:0:1", {"lam": {"average": math.nan}}, "average must be a finite number, got nan"),
    ],
)
def test_the_state_of_other_schedules_is_refused(text: str, state: dict, says: str) -> None:
    schedules = Schedules.parse([f"lam={text}"], ["lam"])
    with pytest.raises(InputError) as error:
        schedules.restore(state)
    assert says in str(error.value)


@pytest.mark.parametrize("module", ["recipe.schedules", "policies.kinds", "policies.replay_buffer"])
def test_no_framework_is_imported(module: str) -> None:
    code = (
        f"import sys, amidmath.integrations.common.{module}\n"
        "print({m.partition('.')[0] for m in sys.modules}"
        " & {'torch', 'jax', 'transformers', 'trl', 'datasets', 'accelerate'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
