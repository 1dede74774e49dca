"""The README.md of a distilled student, which a hub shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amidmath.integrations.common.storage.whole_files import staged_file
from amidmath.integrations.common.tasks.metrics import NAMES

_FIGURES = {
    "kl": "KL to teacher (nats a token)",
    "agreement": "top-1 agreement",
    "perplexity": "perplexity",
    **{name: f"{label} (%)" for name, label in NAMES.items()},
}


@dataclass(frozen=True)
class Card:
    """The facts of a model card.

    Args:
        name: of the student.
        student: the model that the student began as: hub name or folder.
        teacher: hub name, folder or description of the teacher.
        data: the dataset, hub name or file.
        method: the method by name.
        loss: the loss in one line, parameters included.
        conventions: what the parameters mean.
        sequences: where the training sequences come from.
        steps: optimiser steps.
        sequences_a_step: how many sequences each.
        tokens: how many tokens it was trained on; None if they were not counted.
        results: held-out figures by model, as in results.json.
        versions: of the libraries.
        has_adapter: the folder holds a LoRA adapter, not a whole model.
        license: None for unknown.
    """

    name: str
    student: str
    teacher: str
    data: str
    method: str
    loss: str
    conventions: str
    sequences: str
    steps: int
    sequences_a_step: int
    tokens: int | None = None
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    has_adapter: bool = False
    license: str | None = None

    def front_matter(self) -> dict[str, Any]:
        """The facts that a hub reads; local folders and files are nothing to it."""
        facts: dict[str, Any] = {
            "library_name": "peft" if self.has_adapter else "transformers",
            "pipeline_tag": "text-generation",
            "tags": list(dict.fromkeys(["distillation", "amid", self.method])),
        }
        if _is_hub_name(self.student):
            facts["base_model"] = self.student
        if _is_hub_name(self.data):
            facts["datasets"] = [self.data]
        if self.license is not None:
            facts["license"] = self.license
        return facts

    def text(self) -> str:
        """All of README.md."""
        matter = yaml.safe_dump(self.front_matter(), sort_keys=False, allow_unicode=True)
        tokens = "" if self.tokens is None else f", {self.tokens:,} tokens in all"
        rows = {
            "student": f"began as {_code(self.student)}",
            "teacher": _code(self.teacher),
            "method": _code(self.method),
            "loss": _cell(self.loss),
            "where p is the teacher, q the student, r the assistant": _cell(self.conventions),
            "sequences": _cell(self.sequences),
            "data": _code(self.data),
            "training": f"{self.steps:,} steps of {self.sequences_a_step:,} sequences{tokens}",
            "license": self.license
            or "unknown: see those of the student, the teacher and the data",
        }
        parts = [
            f"---\n{matter}---",
            f"# {self.name}",
            "A causal language model distilled with "
            "[amidmath](https://pypi.org/project/amidmath/)."
            + (" This folder holds a LoRA adapter." if self.has_adapter else ""),
            _table(("", ""), list(rows.items())),
        ]
        if self.results:
            parts += ["## On held-out text", self._results()]
        if self.versions:
            listed = ", ".join(f"{name} {version}" for name, version in self.versions.items())
            parts += ["## Made with", listed]
        return "\n\n".join(parts) + "\n"

    def _results(self) -> str:
        figures = [k for k in _FIGURES if any(k in values for values in self.results.values())]
        rows = [
            (name, *(f"{values[k]:.4g}" if k in values else "" for k in figures))
            for name, values in self.results.items()
        ]
        table = _table(("", *(_FIGURES[k] for k in figures)), rows)
        counted = next((v["tokens"] for v in self.results.values() if "tokens" in v), None)
        if counted is None:
            return table
        scored = "; scores are of answers to a task's prompts" if set(figures) & set(NAMES) else ""
        return f"{table}\n\nMeans over {counted:,} tokens{scored}."


def write_card(folder: Path, card: Card) -> None:
    """Write README.md into a student's folder."""
    with staged_file(folder / "README.md") as partial:
        partial.write_text(card.text(), encoding="utf-8")


def _is_hub_name(name: str) -> bool:
    """Whether a name can be one on the hub: ``model`` or ``owner/model``, and nothing is there."""
    parts = name.split("/")
    return len(parts) <= 2 and all(parts) and "." not in parts[0] and not Path(name).exists()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """A name as code, whatever is in it."""
    return f"`{_cell(text).replace('`', '')}`"


def _cell(text: str) -> str:
    """Text for a cell of a table: on one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")
