"""The loss that arguments name, and what is said of those that do not fit."""

from typing import Any

import pytest

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.settings import LossSettings, TeacherSettings, from_json


def loss_of(**settings: Any) -> am.Loss:
    (loss,) = LossSettings(**settings).recipe().losses(0, 10).values()
    return loss


def test_the_parts_of_an_amid_loss() -> None:
    assert loss_of() == am.AMiD(am.KL(), order="pr", alpha=-1.0, lam=0.1)
    given = {"divergence": "alpha_beta", "order": "rq", "alpha": -3.0, "lam": 0.4}
    parts = '{"alpha": 0.2, "beta": 0.7}'
    made = loss_of(**given, divergence_kwargs=parts, temperature=2.0)
    divergence = am.AlphaBeta(0.2, 0.7)
    assert made == am.AMiD(divergence, order="rq", alpha=-3.0, lam=0.4, temperature=2.0)


def test_a_named_method_has_parameters_of_its_own() -> None:
    found = LossSettings(method="gkd", method_kwargs='{"beta": 0.25}').recipe()
    assert found.method is am.methods.METHODS["gkd"]
    assert found.params["beta"] == 0.25


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "magic"}, "--method must be one of"),
        (
            {"method": "gkd", "alpha": 0.5},
            "--alpha 0.5: it is a parameter of method amid",
        ),
        ({"method_kwargs": '{"beta": 1}'}, "method amid takes --divergence, --order"),
        ({"divergence": "magic"}, "--divergence must be one of"),
        ({"divergence_kwargs": "{rho: 2}"}, "--divergence_kwargs must be JSON such as"),
        ({"divergence_kwargs": "[2]"}, "--divergence_kwargs must be a JSON object"),
        ({"divergence": "renyi", "divergence_kwargs": '{"sigma": 2}'}, "--divergence_kwargs "),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        LossSettings(**settings).recipe()
    assert str(error.value).startswith(says) or says in str(error.value)


def test_json_is_taken_as_an_object_or_as_nothing() -> None:
    assert from_json("--a", None) == {}
    assert from_json("--a", '{"b": 1}') == from_json("--a", {"b": 1}) == {"b": 1}


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_label_weight_is_a_finite_number(weight: float) -> None:
    with pytest.raises(InputError, match="--label_weight must be a finite number from 0 on"):
        TeacherSettings(label_weight=weight).check_label_weight()
