"""Data policies: their choices, DistiLLM's scheduler, exact resume, and what is refused."""

import json
import math
from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.kinds import POLICIES, Adaptive, Policy, Source, policy
from amidmath.integrations.common.policies.replay_buffer import ReplayBuffer

SEEDS = st.integers(0, 2**32)
RATIOS = st.sampled_from(["decreasing", "constant", "increasing"])


def choices(
    chosen: Policy,
    steps: range,
    total: int,
    buffer: ReplayBuffer,
    evaluations: dict[int, float] | None = None,
) -> list[Source]:
    """The sources of some steps of a run that generates one example a step."""
    found = []
    for step in steps:
        if evaluations and step in evaluations:
            chosen.observe_evaluation(evaluations[step])
        found.append(chosen.choose(step, total, buffer))
        if found[-1] is Source.STUDENT and Source.BUFFER in chosen.sources:
            buffer.push([step], [step])
    return found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("off_policy", Source.DATASET),
        ("on_policy", Source.STUDENT),
        ("sequence_level", Source.TEACHER),
    ],
)
def test_a_policy_of_one_source_always_chooses_it(name: str, source: Source) -> None:
    chosen = policy(name, seed=5)
    assert choices(chosen, range(20), 20, ReplayBuffer()) == [source] * 20
    assert chosen.sources == {source}


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_mixed_generates_at_a_fraction_of_the_steps(fraction: float) -> None:
    steps = 4000
    mixed = policy("mixed", seed=3, student_fraction=fraction)
    counted = Counter(choices(mixed, range(steps), steps, ReplayBuffer()))
    assert set(counted) <= mixed.sources
    deviation = math.sqrt(steps * fraction * (1 - fraction))
    assert abs(counted[Source.STUDENT] - fraction * steps) <= 4 * deviation


def distillm_as_published(
    draws: list[float], evaluations: dict[int, float], args: dict[str, Any], start: float
) -> list[str]:
    """The branches that finetune.py of the authors' code takes, one example a step."""
    taken, total_iters = [], len(draws)
    replay_buffer: deque[int] = deque(maxlen=args["capacity"])
    adaptive_threshold, prev_avg_loss = args["init_threshold"], start
    for global_step, r in enumerate(draws, 1):
        samp_threshold = adaptive_threshold * (1 - global_step / total_iters)
        if args["replay_ratio"] == "constant":
            samp_threshold = adaptive_threshold * 0.5
        elif args["replay_ratio"] == "increasing":
            samp_threshold = adaptive_threshold * global_step / total_iters
        if r < samp_threshold or (r < adaptive_threshold and len(replay_buffer) < args["capacity"]):
            taken.append("student")
            replay_buffer.append(global_step)
        elif r < adaptive_threshold:
            taken.append("buffer")
        else:
            taken.append("dataset")
        if global_step in evaluations:
            curr_avg_loss = evaluations[global_step]
            if curr_avg_loss >= prev_avg_loss + args["loss_eps"]:
                adaptive_threshold += 0.1
                adaptive_threshold = min(adaptive_threshold, 1.0)
                prev_avg_loss = curr_avg_loss
    return taken


@given(
    seed=SEEDS,
    ratio=RATIOS,
    losses=st.lists(st.floats(0, 20), min_size=1, max_size=25),
    between=st.integers(1, 6),
    capacity=st.integers(1, 12),
    init=st.sampled_from([0.0, 0.25, 0.95]),
    eps=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_adaptive_follows_the_published_code(
    seed: int, ratio: str, losses: list[float], between: int, capacity: int, init: float, eps: float
) -> None:
    settings = {"replay_ratio": ratio, "init_threshold": init, "loss_eps": eps}
    total = between * len(losses)
    evaluations = {between * n: loss for n, loss in enumerate(losses)}
    draws = np.random.default_rng(seed).random(total).tolist()
    published = distillm_as_published(
        draws, evaluations, {**settings, "capacity": capacity}, start=losses[0]
    )
    adaptive = policy("adaptive", seed=seed, **settings)
    found = choices(adaptive, range(total), total, ReplayBuffer(capacity), evaluations)
    assert [source.value for source in found] == published


def test_the_threshold_rises_by_a_tenth_when_the_held_out_loss_rises() -> None:
    adaptive = Adaptive()
    thresholds = []
    for value in (2.0, 2.05, 1.0, math.nan, math.inf, 2.125, 2.2, 2.25, *range(3, 20)):
        adaptive.observe_evaluation(value)
        thresholds.append(adaptive.threshold)
    assert thresholds[:8] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.1, 0.2])
    assert thresholds[-1] == 1.0
    assert thresholds[8:16] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_adaptive_starts_on_the_dataset_alone() -> None:
    assert set(choices(Adaptive(), range(50), 50, ReplayBuffer(5))) == {Source.DATASET}


@pytest.mark.parametrize("name", POLICIES)
@given(seed=SEEDS, stop=st.integers(0, 40), losses=st.lists(st.floats(0, 9), min_size=8))
def test_a_resumed_run_chooses_as_an_uninterrupted_one(
    name: str, seed: int, stop: int, losses: list[float]
) -> None:
    evaluations = {5 * n: loss for n, loss in enumerate(losses)}
    whole, first, resumed = policy(name, seed=seed), policy(name, seed=seed), policy(name, seed=1)
    uninterrupted = choices(whole, range(40), 40, ReplayBuffer(4), evaluations)
    buffer = ReplayBuffer(4)
    before = choices(first, range(stop), 40, buffer, evaluations)
    resumed.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    buffer = ReplayBuffer.from_state(buffer.state())
    after = choices(resumed, range(stop, 40), 40, buffer, evaluations)
    assert before + after == uninterrupted
    assert resumed.state() == whole.state()


@pytest.mark.parametrize("name", ["mixed", "adaptive"])
def test_processes_with_the_same_seed_choose_the_same_whatever_they_generate(name: str) -> None:
    settings = {"init_threshold": 0.8} if name == "adaptive" else {}
    ranks = [policy(name, seed=7, **settings) for _ in range(2)]
    buffers = [ReplayBuffer(3), ReplayBuffer(3)]
    found = []
    for step in range(60):
        both = [rank.choose(step, 60, b) for rank, b in zip(ranks, buffers, strict=True)]
        assert both[0] is both[1]
        found.append(both[0])
        if both[0] is Source.STUDENT:
            for rank, buffer in enumerate(buffers):
                buffer.push([rank], [step] * rank)
    assert set(found) == ranks[0].sources
    other = policy(name, seed=8, **settings)
    assert choices(other, range(60), 60, ReplayBuffer(3)) != found


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_says_what_it_does(name: str) -> None:
    text = policy(name).describe()
    first, colon, _ = text.partition(":")
    assert colon
    assert first in {
        "off-policy",
        "on-policy",
        "mixed",
        "adaptive off-policy",
        "sequence-level",
    }


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        (
            "onpolicy",
            {},
            "--policy must be one of off_policy, on_policy, mixed, adaptive, sequence",
        ),
        ("off_policy", {"student_fraction": 0.5}, "--student_fraction has no effect with --policy"),
        ("mixed", {"loss_eps": 0.5}, "leave it out (it has --student_fraction)"),
        ("mixed", {"student_fraction": 1.5}, "--student_fraction must lie in [0, 1], got 1.5"),
        ("mixed", {"student_fraction": math.nan}, "--student_fraction must lie in [0, 1], got nan"),
        ("mixed", {"seed": -1}, "--seed must be an integer from 0 on, got -1"),
        ("adaptive", {"loss_eps": -0.1}, "--loss_eps must be a finite number from 0 on, got -0.1"),
        ("adaptive", {"loss_eps": math.nan}, "--loss_eps must be a finite number from 0 on"),
        ("adaptive", {"init_threshold": 2}, "--init_threshold must lie in [0, 1], got 2"),
        (
            "adaptive",
            {"replay_ratio": "rising"},
            "--replay_ratio must be one of decreasing, constant, increasing, got 'rising'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    name: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError) as error:
        policy(name, **settings)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("on_policy", {"policy": "mixed"}, "the checkpoint is of a run with 'mixed'; give its"),
        ("on_policy", {"policy": None}, "the checkpoint is of a run with None"),
        ("off_policy", {"more": 1}, "the saved state is damaged: it has ['more', 'policy']"),
        ("mixed", {"generator": None}, "the saved state is damaged: generator: TypeError"),
        ("mixed", {"generator": {}}, "damaged: generator: "),
        ("mixed", {"generator": {"bit_generator": "MT19937"}}, "damaged: generator: ValueError"),
        ("adaptive", {"threshold": 1.5}, "threshold must lie in [0, 1], got 1.5"),
        ("adaptive", {"threshold": "0"}, "threshold must lie in [0, 1], got '0'"),
        ("adaptive", {"reference": math.nan}, "reference must be a number or null, got nan"),
    ],
)
def test_the_state_of_another_policy_or_a_damaged_one_is_refused(
    name: str, change: dict[str, Any], says: str
) -> None:
    chosen = policy(name)
    with pytest.raises(InputError) as error:
        chosen.restore({**chosen.state(), **change})
    assert str(error.value).startswith(f"--policy {name}: ")
    assert says in str(error.value)


def test_a_state_that_cannot_be_restored_changes_nothing() -> None:
    adaptive = policy("adaptive", seed=2, init_threshold=0.5)
    before = adaptive.state()
    with pytest.raises(InputError):
        adaptive.restore({**before, "threshold": 0.9, "generator": {"bit_generator": "PCG64"}})
    assert adaptive.state() == before
