"""The closeness of a student to its teacher, and the quality of both: the figures of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

CHUNK_BYTES = 2**25
"""Logits in float32 that an evaluation holds at a time, the teacher's and one model's together.

What is computed of them takes a few times as much.
"""


@dataclass(frozen=True)
class Quality:
    """Held-out figures of one model, means over the tokens that count.

    Args:
        kl: KL(teacher‖model) a token, in nats.
        agreement: share of tokens where the model's most probable token is the teacher's.
        perplexity: exp of the mean negative log-likelihood of the text.
        tokens: how many tokens were counted.
    """

    kl: float
    agreement: float
    perplexity: float
    tokens: int

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> "Quality":
        """From figures by name, as JSON keeps them."""
        return cls(**{**figures, "tokens": int(figures["tokens"])})  # type: ignore[arg-type]

    @classmethod
    def of_sums(cls, sums: Sequence[float], count: int, has_teacher: bool) -> "Quality":
        """From sums over tokens: of KL, of agreements, of the negative log-likelihood."""
        kl, agreements, nll = sums
        return cls(
            kl=kl / count if has_teacher else math.nan,
            agreement=agreements / count if has_teacher else math.nan,
            perplexity=_exp(nll / count),
            tokens=count,
        )


def plain(results: Mapping[str, Quality]) -> dict[str, dict[str, float]]:
    """Figures by model and name."""
    return {name: asdict(quality) for name, quality in results.items()}


def as_table(rows: Mapping[str, Quality], caption: str) -> Table:
    """Held-out figures, one row a model."""
    table = Table(caption=caption, caption_justify="left")
    table.add_column("")
    for title in ("KL to teacher", "top-1 agreement", "perplexity"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, quality in rows.items():
        table.add_row(
            name, _shown(quality.kl), _shown(quality.agreement), f"{quality.perplexity:,.2f}"
        )
    return table


def warnings_about(figures: Mapping[str, Quality]) -> Sequence[str]:
    """Warnings that the figures before training give against distilling at all."""
    teacher, student = figures.get("teacher"), figures["student before"]
    if teacher is None or teacher.perplexity < student.perplexity:
        return ()
    return (
        f"the teacher's held-out perplexity ({teacher.perplexity:.2f}) is no better than the "
        f"student's ({student.perplexity:.2f}): distillation will pull the student towards a worse "
        "model. Train the teacher further, or choose another",
    )


def _exp(nats: float) -> float:
    """exp, and inf where it would overflow."""
    return math.exp(nats) if nats < 700.0 else math.inf


def _shown(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.4f}"
