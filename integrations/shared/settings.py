"""What every distillation loop can be told, whatever its framework."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import amidmath as am
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.policies import POLICIES, REPLAY_RATIOS, Policy, policy
from amidmath.integrations.shared.quiet import VERBOSE_HELP
from amidmath.integrations.shared.recipe import Recipe
from amidmath.integrations.shared.replay_buffer import ReplayBuffer
from amidmath.integrations.shared.schedules import Schedules
from amidmath.integrations.shared.vocabularies import MODES, VOCAB_HELP
from amidmath.losses.amid import ORDERS

DIVERGENCES = tuple(sorted(am.divergences.REGISTRY))
METHODS = tuple(sorted(am.methods.METHODS))


@dataclass
class LossSettings:
    """Which loss: a named method, or the parts of an AMiD loss."""

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
class PolicySettings:
    """Which sequences: the dataset's, or generated ones."""

    policy: str = field(
        default="off_policy",
        metadata={
            "help": "Where sequences come from: the dataset's completions (off_policy), the "
            "student's (on_policy), either (mixed), DistiLLM's adaptive off-policy with a replay "
            "buffer (adaptive), the teacher's (sequence_level).",
            "choices": list(POLICIES),
        },
    )
    student_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of steps on the student's sequences; mixed (default 0.5)."},
    )
    loss_eps: float | None = field(
        default=None,
        metadata={
            "help": "How much the held-out loss must rise to raise the threshold; adaptive "
            "(default 0.1)."
        },
    )
    replay_ratio: str | None = field(
        default=None,
        metadata={
            "help": "How the share of newly generated sequences changes; adaptive (default "
            "decreasing).",
            "choices": list(REPLAY_RATIOS),
        },
    )
    init_threshold: float | None = field(
        default=None, metadata={"help": "The threshold at the start; adaptive (default 0)."}
    )
    buffer_capacity: int = field(
        default=1000,
        metadata={
            "help": "Sequences that a replay buffer holds: one for each process in torch, one for "
            "the whole run in JAX."
        },
    )
    max_new_tokens: int = field(
        default=128, metadata={"help": "Tokens to generate at most for a prompt."}
    )
    generation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of generation; 0 takes the likeliest token."}
    )
    generation_top_p: float = field(
        default=1.0, metadata={"help": "Generate from the likeliest tokens of this mass."}
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Prompts at a time; by default per_device_train_batch_size."},
    )

    def data_policy(self) -> Policy:
        """The data policy; raises InputError where settings do not fit it."""
        names = ("student_fraction", "loss_eps", "replay_ratio", "init_threshold")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return policy(self.policy, seed=int(getattr(self, "seed", 0)), **given)

    def replay_buffer(self) -> ReplayBuffer:
        """An empty replay buffer."""
        try:
            return ReplayBuffer(self.buffer_capacity)
        except InputError as error:
            raise InputError(f"--buffer_capacity: {error}") from error

    def check_generation(self) -> None:
        """Raise InputError on settings of generation that make no sense."""
        if self.max_new_tokens < 1:
            raise InputError(f"--max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 <= self.generation_temperature < math.inf:
            raise InputError(
                f"--generation_temperature must be a finite number from 0 on, "
                f"got {self.generation_temperature}"
            )
        if not 0.0 < self.generation_top_p <= 1.0:
            raise InputError(f"--generation_top_p must lie in (0, 1], got {self.generation_top_p}")
        if self.generation_batch_size is not None and self.generation_batch_size < 1:
            raise InputError(
                f"--generation_batch_size must be at least 1, got {self.generation_batch_size}"
            )


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


@dataclass
class HeldOutSettings:
    """On what a run is judged, and beside what."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out dataset: hub name, folder or file. Without it, the dataset's "
            "`dataset_test_split`, or else `eval_fraction` of the training rows is held out."
        },
    )
    eval_fraction: float = field(
        default=0.05,
        metadata={"help": "Share of rows held out when the dataset brings no held-out split."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on the first so many held-out rows (after packing) only."},
    )
    baseline: bool = field(
        default=False,
        metadata={
            "help": "Also train a student with plain cross-entropy on the same data, steps and "
            "seed, and report it beside the distilled one."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Say what would be trained and how much memory it would take, and stop before "
            "the first step; nothing is written."
        },
    )

    def check_held_out(self) -> None:
        """Raise InputError on values out of range."""
        if not 0.0 < self.eval_fraction < 1.0:
            raise InputError(
                f"--eval_fraction must lie between 0 and 1, both excluded, got {self.eval_fraction}"
            )
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise InputError(f"--max_eval_samples must be at least 1, got {self.max_eval_samples}")
