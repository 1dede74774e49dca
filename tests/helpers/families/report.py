"""The page of families: a table of what works, and what was said where something does not."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import torch
import transformers
from families.run import WAYS_OF, Family
from families.ways import RELOADED, TOLERANCE, Outcome

import amidmath as am

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COLUMNS = [(script, way) for script, ways in WAYS_OF.items() for way in (*ways, RELOADED)]

_OWN = (
    (r", an? \w+(LM|Decoder|HeadModel)\w*,", ""),
    (r"\b(an? )?[A-Z]\w+(LM|Decoder|HeadModel)\w*", "the model"),
    (r"\d+\.\d%", "…%"),
    (r"of size \d+|\(model_type='\w+'\)|tensor [ab] \(\d+\)", "…"),
    (r"\{'(\w+)', '(\w+)'\}", "…"),
    (r"--(packing|padding_free) true(?=:)", "--packing or --padding_free true"),
    (r"Leave --(packing|padding_free) out", "Leave it out"),
)
"""What in a reason is a family's own, and what stands for it on the page."""

INTRODUCTION = """\
# Model families

Made by `make families`; do not edit. amidmath {amidmath}, transformers {transformers},
torch {torch}.

Of every family that transformers has a causal language model of, a tiny teacher and a tiny student
with random weights go through one step of `torch_distill.py` (and of `jax_distill.py`, where that
loop knows the family), in each of these ways. The first loss that the run logs is compared with the
loss computed in float64 from the logits that the models give for each row alone; "yes" is equal to
{tolerance:g} of it.

- *padded*: rows of several lengths in one batch.
- *packed*: `--packing`, several rows one after another in a sequence.
- *padding-free*: `--padding_free`, a batch as one sequence.
- *LoRA*: `--use_peft`, adapters on all linear layers; and the adapter that was saved, loaded again,
  has the KL to the teacher that the run ended with.
- *generated*: `--policy on_policy`, greedily: what the student writes, in a batch padded on the
  left, is what it finds likeliest token by token, each row alone.
- *reloaded*: the student that the padded run saved, loaded again, has the KL to the teacher that
  the run ended with.

A number in brackets is a reason, below: the run ended with exit status 2 and one line, and had
written nothing.
"""


def markdown(families: Mapping[str, Family]) -> str:
    """The page."""
    built = {name: family for name, family in families.items() if not family.unavailable}
    reasons: dict[str, int] = {}
    rows = [_row(name, family, reasons) for name, family in built.items()]
    parts = [
        INTRODUCTION.format(
            amidmath=am.__version__,
            transformers=transformers.__version__,
            torch=torch.__version__,
            tolerance=TOLERANCE,
        ),
        "## Summary\n",
        _table(["", "tried", "yes", "refused", "wrong", "failed"], _summary(built.values())),
        "## Families\n",
        _table(["family", *(f"{script}: {way}" for script, way in COLUMNS)], rows),
    ]
    if reasons:
        parts += ["## Reasons\n", "".join(f"{n}. {said}\n" for said, n in reasons.items())]
    missing = {name: f.unavailable for name, f in families.items() if f.unavailable}
    if missing:
        parts.append("## Not built here\n")
        parts.append("".join(f"- {name}: {_plain(said)}\n" for name, said in missing.items()))
    return "\n".join(parts)


def line(name: str, family: Family) -> str:
    """A family in one line, for the terminal."""
    if family.unavailable:
        return f"{name}: not built, {family.unavailable}"
    said = []
    for script, found in family.found.items():
        other = [f"{w} {o.verdict} ({o.detail})" for w, o in found.items() if o.verdict != "right"]
        said.append(f"{script}: " + ("; ".join(other) or "all right"))
    return f"{name}: " + ", ".join(said)


def _row(name: str, family: Family, reasons: dict[str, int]) -> list[str]:
    cells = [name]
    for script, way in COLUMNS:
        outcome = family.found.get(script, {}).get(way)
        cells.append("" if outcome is None else _cell(outcome, reasons))
    return cells


def _cell(outcome: Outcome, reasons: dict[str, int]) -> str:
    if outcome.verdict == "right":
        return "yes"
    if outcome.verdict == "refused":
        return f"[{reasons.setdefault(_kind(outcome.detail), len(reasons) + 1)}]"
    return f"**{outcome.verdict}: {_plain(outcome.detail)}**"


def _summary(families: Iterable[Family]) -> list[list[str]]:
    counts: dict[tuple[str, str], Counter[str]] = {column: Counter() for column in COLUMNS}
    for family in families:
        for script, found in family.found.items():
            for way, outcome in found.items():
                counts[script, way][outcome.verdict] += 1
    verdicts = ("right", "refused", "wrong", "failed")
    return [
        [f"{script}: {way}", str(sum(of.values())), *(str(of[verdict]) for verdict in verdicts)]
        for (script, way), of in counts.items()
        if of
    ]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _kind(reason: str) -> str:
    """A reason without what differs from one family to the next: names, sizes, the flag."""
    for pattern, word in _OWN:
        reason = re.sub(pattern, word, reason)
    return _plain(reason)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
