"""Which trials a run asks of which model."""

from typing import Any, cast

import pytest
from transformers import PreTrainedModel

from amidmath.integrations.common.policies.kinds import Policy, policy
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training import demands as module
from amidmath.integrations.torch_loop.training.demands import Demands

TRIALS = ("check_causal", "check_packing", "check_padded", "answers_together")


class Settings:
    def __init__(self, packing: bool = False, rows: int = 2) -> None:
        self.packing = packing
        self.per_device_train_batch_size, self.per_device_eval_batch_size = 1, rows


def tried(
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    asked: Policy,
    settings: Settings,
    *,
    joined: bool = False,
    scored: bool = False,
) -> dict[str, tuple[Any, ...]]:
    """The trials that are made of a model of a role, and what they are told."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in TRIALS:
        monkeypatch.setattr(module, name, lambda *given, of=name: found.update({of: given}))
    args = cast("AMiDConfig", settings)
    demands = Demands.of(args, asked, joined=joined, scored=scored)
    demands.check(role, cast("PreTrainedModel", "model"))
    return found


@pytest.mark.parametrize(
    ("name", "scored", "role", "answers"),
    [
        ("off_policy", False, "student", False),
        ("off_policy", True, "student", True),
        ("off_policy", True, "teacher", False),
        ("on_policy", False, "student", True),
        ("on_policy", False, "teacher", False),
        ("adaptive", False, "student", True),
        ("sequence_level", False, "student", False),
        ("sequence_level", False, "teacher", True),
    ],
)
def test_who_generates_is_asked_for_answers(
    name: str, scored: bool, role: str, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tried(monkeypatch, role, policy(name, seed=0), Settings(), scored=scored)
    assert "check_causal" in found
    assert ("answers_together" in found) == answers


@pytest.mark.parametrize(
    ("settings", "joined", "trial"),
    [
        (Settings(packing=True), True, ("check_packing", "--packing")),
        (Settings(), True, ("check_packing", "--padding_free")),
        (Settings(), False, ("check_padded",)),
        (Settings(rows=1), False, ()),
    ],
    ids=["packed", "padding-free", "padded", "row by row"],
)
def test_rows_are_tried_as_they_come(
    settings: Settings, joined: bool, trial: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tried(monkeypatch, "teacher", policy("off_policy", seed=0), settings, joined=joined)
    assert set(found) == {"check_causal", *trial[:1]}
    if trial[1:]:
        assert found[trial[0]] == ("teacher", "model", trial[1])
