"""The accuracy report: tables for people, and the same with every failure as JSON."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from certify.measure import Record

FAMILIES = {
    "divergence": "Divergences",
    "loss": "The AMiD loss",
    "mean": "Means and mixtures",
}
NO_ORACLE = "no oracle"
LARGE = 1e-6  # a result that matters to a sum of losses, or to a step of training

COMPUTED_BY = {
    "reference": "The array core computes, as it does on any library.",
    "compiled": "The compiled kernel computes, which NumPy arrays and torch tensors on the CPU get "
    'from some size\non (`backend="compiled"`), at the points and with the bounds of the array '
    "core's\n[accuracy](accuracy.md). It has no means.",
}

INTRODUCTION = """\
# Accuracy{of}

Made by `{command}`; do not edit. {versions}.

{computed_by}

Values and gradients are compared with their definitions, evaluated by mpmath to as many digits as
it takes, at random and at adversarial points: α from -∞ to ∞ and next to 1, λ from 0 to 1 and next
to either, logits spread over 1 to 10⁴, rows that differ by noise of 10⁻¹ to 10⁻⁸, rows sure of one
token or of two different ones, zeros on either side or on both, 2 to {largest} outcomes.

**What is to be reached.** A value within 16 eps of itself, a gradient within 16 eps of its largest
entry, a mixture or mean within 2 eps·max(1, |log p|, |log q|), each after the part of the error
that rounding forces on any algorithm; no result that is not finite where the true one is; no
negative divergence. eps is that of the dtype computed in: bfloat16 rows are computed in float32.

**What is forced.** A logarithm of size |log x| is rounded to eps |log x|, half as much where it is
an input, and moves the result by that times the derivative, to second order: Σ |∂F/∂i| δᵢ +
½ Σ |∂²F/∂i∂j| δᵢ δⱼ for a value F and Σⱼ |∂²F/∂i∂j| δⱼ for an entry of its gradient, along the
simplex, with δᵢ = eps |log xᵢ| / 2 for a divergence, where eps is that of the rows, and
eps |log pᵢ| for the loss. The mass of a divergence's rows is rounded off 1, and its result with it;
every result is rounded, and what lies below the smallest normal number is lost. The full account is
in `tests/helpers/certify/__init__.py`.

**Not compared**: the gradients of concrete score matching, which holds its weights constant, but
for uniform ones, and its values where only one side is zero, which is a convention; gradients where
the loss is infinite, or has a kink within rounding (total variation and distances near x = y);
divergences that numbers do not describe, such as a Bregman divergence of a given generator.

"raw" is the worst error as it is, "error" the worst one less its forced part, both in eps of the
size of the result, which stands in brackets at the point: where it is far below 1, so is the error.
"""


BEYOND = """\
Of results of at least {size:g}, {beyond} are beyond their bounds. {gradients} of these are
gradients that are smaller than the loss, and within 16 eps of the loss: what is left when nearly
all of the derivatives by log x is taken off as a multiple of x, each of them rounded before. Where
that multiple is known, it is taken off before (docs/derivations/divergences.md, D24). The others:
{others}.
"""


@dataclass(frozen=True)
class Row:
    """The worst of one result of one function in one dtype."""

    kind: str
    function: str
    dtype: str
    quantity: str
    compared: int
    within: int
    raw: float
    bound: float
    worst: Record
    non_finite: int
    negative: int

    @property
    def reached(self) -> bool:
        return self.within == self.compared


def rows(records: Iterable[Record], by_function: bool = True) -> list[Row]:
    """Gather the records of every function, or of every family, dtype and result."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if not record.note.startswith(NO_ORACLE):
            point = record.point
            name = point.function if by_function else FAMILIES[point.kind]
            groups[point.kind, name, point.dtype, record.quantity].append(record)
    found = []
    for (kind, name, dtype, quantity), group in groups.items():
        worst = max(group, key=lambda r: (not r.reached, r.error, r.raw))
        found.append(
            Row(
                *(kind, name, dtype, quantity, len(group), sum(r.reached for r in group)),
                *(max(r.raw for r in group), group[0].bound, worst),
                *(sum(r.non_finite for r in group), sum(r.negative for r in group)),
            )
        )
    kinds = list(FAMILIES)
    return sorted(found, key=lambda r: (kinds.index(r.kind), r.function, r.quantity, r.dtype))


def failures(records: Iterable[Record]) -> list[Record]:
    """What does not reach its bound, worst first."""
    return sorted((r for r in records if not r.reached), key=lambda r: -r.error)


def undecided(records: Iterable[Record]) -> list[Record]:
    """Points where mpmath did not settle on a value."""
    return [r for r in records if r.note.startswith(NO_ORACLE)]


def describe(record: Record) -> str:
    """One line on a record."""
    what = record.quantity + (f" ({record.by})" if record.by else "")
    off = f"{number(record.error)} eps of {number(record.size)}"
    return f"{record.point.label}: {what} off by {off}; {record.note}"


def number(x: float) -> str:
    """Three digits."""
    return "∞" if math.isinf(x) else f"{x:.3g}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def markdown(
    records: list[Record],
    command: str,
    versions: str,
    largest: int,
    executor: str = "reference",
) -> str:
    """The report."""
    points = len({r.point for r in records})
    failed, unknown = failures(records), undecided(records)
    parts = [
        INTRODUCTION.format(
            of="" if executor == "reference" else " of the compiled kernel",
            computed_by=COMPUTED_BY[executor],
            command=command,
            versions=versions,
            largest=f"{largest:,}",
        )
    ]
    said = f"{_count(len(records), 'result')} at {_count(points, 'point')}. "
    if failed:
        share = len(failed) / len(records)
        said += f"**{_count(len(failed), 'result')} did not reach the bound**, {share:.2%}."
    else:
        said += "**Every bound is reached.**"
    if unknown:
        said += f" At {_count(len(unknown), 'point')} mpmath did not settle on a value."
    summary = [
        "| | dtype | result | compared | reached | worst error | bound | not finite | negative |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {r.function} | {r.dtype} | {r.quantity} | {r.compared:,} | {_share(r)} "
            f"| {number(r.worst.error)} | {r.bound:g} | {r.non_finite} | {r.negative} |"
            for r in rows(records, by_function=False)
        ),
    ]
    parts.append("\n".join(["## Summary", "", said, "", *summary, ""]))
    if failed:
        parts.append(_where(records))
    for kind, title in FAMILIES.items():
        table = [_line(r) for r in rows(records) if r.kind == kind]
        if table:
            parts.append("\n".join([f"## {title}", "", *HEAD, *table, ""]))
    return "\n".join(parts)


HEAD = (
    "| function | dtype | result | compared | raw | error | bound | reached | not finite "
    "| negative | worst at |",
    "|---|---|---|--:|--:|--:|--:|---|--:|--:|---|",
)


def _where(records: list[Record]) -> str:
    """How often, in which rows, and whether a result of any size is concerned."""
    cases: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        cases[record.point.case].append(record)
    lines = []
    for case, group in cases.items():
        failed = [r for r in group if not r.reached]
        if failed:
            large = [r for r in failed if r.size >= LARGE]
            worst = f"{number(max(r.error for r in large))}" if large else ""
            counts = f"{len(group):,} | {len(failed):,} | {len(large):,}"
            lines.append((len(failed), f"| {case} | {counts} | {worst} |"))
    large = [r for r in failures(records) if r.size >= LARGE]
    small_gradients = [r for r in large if _within_loss(r)]
    others = [f"- {describe(r)}" for r in large if not _within_loss(r)]
    left = BEYOND.format(
        beyond=len(large), size=LARGE, gradients=len(small_gradients), others=len(others)
    )
    return "\n".join(
        [
            "## Where bounds are not reached",
            "",
            left,
            *([*others, ""] if others else []),
            f"By rows; the last two columns are of results of at least {LARGE:g}.",
            "",
            "| rows | compared | beyond | beyond, not small | worst of those |",
            "|---|--:|--:|--:|--:|",
            *(line for _, line in sorted(lines, reverse=True)),
            "",
        ]
    )


def _within_loss(record: Record) -> bool:
    """Whether a gradient smaller than the loss would meet the bound, were it as large."""
    if record.non_finite or not record.size < record.loss:
        return False
    return record.error * record.size <= record.bound * record.loss


def _share(row: Row) -> str:
    # Not rounded up to all of them.
    return "all" if row.reached else f"{math.floor(1000 * row.within / row.compared) / 10:.1f} %"


def _line(row: Row) -> str:
    verdict = "yes" if row.reached else f"**no**, {_share(row)}"
    return (
        f"| {row.function} | {row.dtype} | {row.quantity} | {row.compared:,} | {number(row.raw)} "
        f"| {number(row.worst.error)} | {row.bound:g} | {verdict} | {row.non_finite} "
        f"| {row.negative} | {row.worst.point} ({number(row.worst.size)}) |"
    )


def _plain(record: Record) -> dict[str, Any]:
    point = record.point
    fields = {k: v for k, v in vars(point).items() if v not in ("", ())}
    fields |= {k: str(v) for k, v in fields.items() if isinstance(v, float) and math.isinf(v)}
    return {
        "point": fields,
        "quantity": record.quantity,
        "by": record.by,
        "raw": _finite(record.raw),
        "error": _finite(record.error),
        "size": _finite(record.size),
        "loss": _finite(record.loss),
        "bound": record.bound,
        "non_finite": record.non_finite,
        "negative": record.negative,
        "note": record.note,
    }


def _finite(x: float) -> float | str:
    return str(x) if math.isinf(x) else float(f"{x:.4g}")


def as_json(records: list[Record], command: str, versions: str) -> str:
    """Every row of the tables with its worst point, every failure, every undecided point."""
    table = [
        {
            "family": r.kind,
            "function": r.function,
            "dtype": r.dtype,
            "result": r.quantity,
            "compared": r.compared,
            "within": r.within,
            "raw": _finite(r.raw),
            "non_finite": r.non_finite,
            "negative": r.negative,
            "worst": _plain(r.worst),
        }
        for r in rows(records)
    ]
    content = {
        "command": command,
        "versions": versions,
        "rows": table,
        "failures": [_plain(r) for r in failures(records)],
        "undecided": [_plain(r) for r in undecided(records)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, text: str, data: str) -> None:
    """Write the report, and every result as JSON into ``build/``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    everything = results_path(path)
    everything.parent.mkdir(parents=True, exist_ok=True)
    everything.write_text(data, encoding="utf-8")


def results_path(path: Path) -> Path:
    """Where the results of a report are, each by itself: too many for the repository."""
    return Path("build") / path.with_suffix(".json").name
