"""The settings of every loop's loss and teacher."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import amidmath as am
from amidmath.integrations.common.cli.quiet import VERBOSE_HELP
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.recipe.schedules import Schedules
from amidmath.integrations.common.text.vocabularies import MODES, VOCAB_HELP
from amidmath.losses.amid import ORDERS

DIVERGENCES = tuple(sorted(am.divergences.REGISTRY))

METHODS = tuple(sorted(am.methods.METHODS))


@dataclass
class LossSettings:
    """The loss: a named method, or the parts of an AMiD loss."""

    method: str = field(
        default="amid",
        metadata={
            "help": "The method by name; `amid` takes --divergence, --order, --alpha and --lam, "
            "the others --method_kwargs.",
            "choices": list(METHODS),
        },
    )
    method_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Parameters of a named method, as JSON: '{\"beta\": 0.5}' for gkd."},
    )
    divergence: str | None = field(
        default=None,
        metadata={
            "help": "The divergence D of method amid (default kl).",
            "choices": list(DIVERGENCES),
        },
    )
    divergence_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Parameters of the divergence, as JSON: "
            '\'{"alpha": 0.2, "beta": 0.7}\' for alpha_beta.'
        },
    )
    order: str | None = field(
        default=None,
        metadata={
            "help": "D(p||r), D(r||p), D(q||r) or D(r||q): teacher p, student q, assistant r; of "
            "method amid (default pr).",
            "choices": list(ORDERS),
        },
    )
    alpha: float | None = field(
        default=None,
        metadata={
            "help": "alpha of the assistant: -1 arithmetic mixture (the default), 1 geometric, "
            "-inf the larger, inf the smaller probability; of method amid."
        },
    )
    lam: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the teacher in the assistant, in [0, 1]; of method amid (default "
            "0.1)."
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits of teacher and student."}
    )
    schedule: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Parameters that change over training: alpha=linear:-5:1, lam=cosine:0.1:0.9, "
            "t=taid:0.4:1 (of method taid), alpha=overlap:-5:1 (by batch), "
            "alpha=overlap_token:-5:1, temperature=linear:2:1; several are given one after another."
        },
    )

    def recipe(self) -> Recipe:
        """The loss that the settings name; raises InputError where they do not fit."""
        if self.method not in METHODS:
            raise InputError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}")
        given = {
            name: getattr(self, name)
            for name in ("divergence", "divergence_kwargs", "order", "alpha", "lam")
            if getattr(self, name) is not None
        }
        params = from_json("--method_kwargs", self.method_kwargs)
        if self.method != "amid":
            for name, value in given.items():
                raise InputError(
                    f"--{name} {value}: it is a parameter of method amid; {self.method} takes "
                    f"--method_kwargs with {_listed(self.method)}"
                )
        elif params:
            raise InputError(
                f"--method_kwargs {self.method_kwargs}: method amid takes --divergence, --order, "
                "--alpha and --lam"
            )
        else:
            params = {name: given[name] for name in ("order", "alpha", "lam") if name in given}
            params["divergence"] = self._divergence()
        params.setdefault("temperature", self.temperature)
        method = am.methods.METHODS[self.method]
        numbers = [name for name, value in method.parameters.items() if isinstance(value, float)]
        return Recipe(method, params, Schedules.parse(self.schedule, numbers))

    def _divergence(self) -> am.Divergence:
        name = self.divergence or "kl"
        if name not in DIVERGENCES:
            raise InputError(f"--divergence must be one of {', '.join(DIVERGENCES)}, got {name!r}")
        try:
            return am.divergence(name, **from_json("--divergence_kwargs", self.divergence_kwargs))
        except (TypeError, ValueError) as error:
            raise InputError(f"--divergence_kwargs {error}") from error


def from_json(flag: str, given: dict[str, Any] | str | None) -> dict[str, Any]:
    """A flag's JSON object; raises InputError where it is none."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{flag} must be JSON such as '{{\"alpha\": 0.2}}', got {given!r}: {error}"
            ) from error
    if not isinstance(given, dict | None):
        raise InputError(f"{flag} must be a JSON object, got {given!r}")
    return dict(given or {})


def _listed(method: str) -> str:
    names = [name for name in am.methods.METHODS[method].parameters if name != "temperature"]
    return ", ".join(names) or "nothing"


@dataclass
class TeacherSettings:
    """Who teaches, and what of the student is trained on what."""

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher: hub name or local folder."}
    )
    teacher_model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the teacher."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that cache_teacher.py wrote, in place of a teacher in memory."},
    )
    vocab: str = field(
        default="strict",
        metadata={"help": VOCAB_HELP, "choices": list(MODES)},
    )
    label_weight: float = field(
        default=0.0,
        metadata={"help": "Adds so many times the cross-entropy with the labels to the loss."},
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "Data type of the teacher's weights; auto: the one that they were saved in, or "
            "in JAX the one that is computed in.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={"help": "Do not train the student's input embeddings (nor a head tied to them)."},
    )
    drop_unlearnable_rows: bool = field(
        default=False,
        metadata={
            "help": "Leave out rows with nothing to learn (an empty answer, a prompt that fills "
            "max_length, or a conversation that the chat template refuses or does not write) and "
            "say how many, instead of stopping."
        },
    )
    verbose: bool = field(default=False, metadata={"help": VERBOSE_HELP})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace an earlier run in output_dir."}
    )

    def check_label_weight(self) -> None:
        """Raise InputError on a weight that is none."""
        if not 0.0 <= self.label_weight < math.inf:
            raise InputError(
                f"--label_weight must be a finite number from 0 on, got {self.label_weight}"
            )
