"""The model card is valid for a hub, and says what was done."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from amidmath.integrations.common.run.model_card import Card, write_card

CARD = Card(
    name="mine",
    student="owner/small",
    teacher="owner/large: v|2",
    data="owner/texts",
    method="amid",
    loss="KL D(p‖r), α = -1, λ = 0.1, T = 1",
    conventions="λ weighs the teacher",
    sequences="off-policy: the dataset's",
    steps=1200,
    sequences_a_step=32,
    tokens=1234567,
    results={
        "teacher": {"kl": 0.0, "agreement": 1.0, "perplexity": 8.25, "tokens": 900},
        "student after": {"kl": 0.3125, "agreement": 0.75, "perplexity": float("inf")},
    },
    versions={"amidmath": "0.1.0", "torch": "2.13.0"},
)


def test_a_hub_reads_the_front_matter(tmp_path: Path) -> None:
    write_card(tmp_path, CARD)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.to_dict()
    assert card.data.library_name == "transformers"
    assert card.data.base_model == "owner/small"
    assert card.data.datasets == ["owner/texts"]
    assert card.data.license is None
    assert set(card.data.tags) == {"distillation", "amid"}
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_everything_is_named() -> None:
    text = CARD.text()
    for words in (
        *("`owner/small`", "`owner/large: v\\|2`", "`owner/texts`", "`amid`", CARD.loss),
        *("λ weighs the teacher", "1,200 steps of 32 sequences, 1,234,567 tokens"),
        *("| student after | 0.3125 | 0.75 | inf |", "over 900 tokens", "unknown", "torch 2.13.0"),
    ):
        assert words in text, words


@pytest.mark.parametrize("name", ["./student", "/data/student", "runs/a/student", "student.v2/x"])
def test_local_places_are_no_hub_names(name: str) -> None:
    assert "base_model" not in replace(CARD, student=name).front_matter()


def test_a_folder_that_exists_is_no_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in CARD.front_matter()


def test_an_adapter_and_a_given_licence() -> None:
    card = replace(CARD, has_adapter=True, license="apache-2.0")
    assert card.front_matter()["library_name"] == "peft"
    assert card.front_matter()["license"] == "apache-2.0"
    assert "LoRA adapter" in card.text()


def test_nothing_in_a_name_breaks_the_yaml() -> None:
    card = replace(CARD, method='odd: "name"\n- #')
    assert ModelCard(card.text()).data.tags[-1] == 'odd: "name"\n- #'
