"""TRL's DistillationTrainer, which generates with vLLM, with any of this library's losses."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from trl import DistillationConfig, DistillationTrainer

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.settings import LossSettings
from amidmath.integrations.torch_loop.devices.engines import keep_loss_wide, prepare_frozen
from amidmath.integrations.torch_loop.devices.shares import summed
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.objective import (
    recipe_loss,
    sampled_positions,
    sampled_statistics,
)
from amidmath.integrations.torch_loop.models.states import States, expose_states, logits_of
from amidmath.integrations.torch_loop.settings.config import CODE_IS_NEVER_RUN, choose_bf16
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher, Reference, freeze

# Logits of so many positions at a time, in float32, for the entropy that is logged.
_CHUNK = 64

_OF_PICTURES = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


@dataclass
class AMiDOnPolicyConfig(LossSettings, DistillationConfig):
    """DistillationConfig with any loss of this library in the place of ``beta``.

    ``temperature`` is, as there, that of the loss and that of generation; a schedule of it changes
    the loss's. bf16 defaults to on where a GPU supports it and off on the CPU, where it is many
    times slower.
    """

    # None, so that it is seen whether it was given.
    beta: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Not used: --method says what the loss is, for instance gkd."},
    )

    def __post_init__(self) -> None:
        """Check the loss and choose the precision; raises InputError."""
        if self.beta is not None:
            raise InputError(
                f"--beta {self.beta}: it has no effect here; --method kl, reverse_kl, or gkd with "
                "--method_kwargs '{\"beta\": 0.5}' says what it would"
            )
        choose_bf16(self)
        self.logging_nan_inf_filter = False  # it would log an infinite loss as 0
        self.beta = 0.0  # TRL compares it with numbers
        super().__post_init__()
        self.beta = None  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.trust_remote_code:
            raise InputError(f"--trust_remote_code True: {CODE_IS_NEVER_RUN}; leave it out")
        if self.use_liger_kernel:
            raise InputError("--use_liger_kernel True: it replaces the forward pass; leave it out")
        recipe = self.recipe()
        if "any" not in recipe.method.sources:
            raise InputError(
                f"--method {self.method} compares the teacher's answers with the student's, and "
                "here all are the student's: choose another method, or torch_distill.py"
            )
        if recipe.schedules.observes:
            raise InputError(
                f"--schedule {' '.join(self.schedule)}: here a schedule may depend on the step, "
                "or on each token's overlap (overlap_token), not on the steps before; "
                "torch_distill.py --policy on_policy has the others"
            )


class AMiDOnPolicyTrainer(DistillationTrainer):
    """Trains the student on its own answers, which vLLM or transformers generates.

    Of DistillationTrainer, the loss is another: by any method and schedule, from hidden states.
    It logs, beside what that logs, ``kl`` (KL(p‖q), teacher p, student q), ``overlap``
    (Σ min(p, q)) and the parameters that have a schedule; these and ``entropy`` are means over up
    to 64 positions of each micro-batch, the entropy at the loss's temperature.

    Args:
        model: the student, loaded.
        teacher_model: the teacher, loaded; it is put in evaluation mode and stops training.
        args: the configuration, with the loss.
        **kwargs: for DistillationTrainer.

    Raises:
        InputError: a model that is only named, or whose logits cannot be had from hidden states.
    """

    _tag_names = ["amid", "distillation"]  # noqa: RUF012
    _name = "AMiD"

    def __init__(
        self,
        model: PreTrainedModel,
        teacher_model: PreTrainedModel,
        args: AMiDOnPolicyConfig,
        **kwargs: Any,
    ) -> None:
        """Expose both models' states, and freeze the teacher."""
        for name, given in (("model", model), ("teacher_model", teacher_model)):
            if isinstance(given, str) or given is None:
                raise InputError(
                    f"{name} must be a loaded model, got {given!r}: pass load_model('--{name}', …) "
                    "of integrations/torch_loop/models/model_files.py, which reads safetensors only"
                )
        self.recipe = args.recipe()
        self._statistics = torch.zeros(3)
        freeze(teacher_model)
        super().__init__(model=model, teacher_model=teacher_model, args=args, **kwargs)
        student = cast("Any", self.model)
        inner = student.get_base_model() if hasattr(student, "get_base_model") else student
        expose_states(inner)
        keep_loss_wide(self.accelerator)
        if self.accelerator.is_fsdp2:  # TRL has left it whole on each process
            self.teacher_model = prepare_frozen(teacher_model, self.accelerator)
        self.teacher = ModelTeacher(
            cast("torch.nn.Module", self.teacher_model), str(teacher_model.config.name_or_path)
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """DistillationTrainer's, and KL and overlap for the log."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mode = "train" if cast("Any", self.model).training else "eval"
        # Here and not before, since processes must not wait for each other in a forward pass.
        kl, overlap, count = summed(self._statistics).tolist()
        if count:
            self._metrics[mode]["kl"].append(kl / count)
            self._metrics[mode]["overlap"].append(overlap / count)
        if mode == "train":
            for name, value in self.recipe.values(*self._progress()).items():
                self._metrics[mode][name].append(value)
        return result

    def _compute_loss(
        self,
        unwrapped_student: Any,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, sum of entropies, and of how many positions; in the student's forward pass."""
        answers, kept = inputs["completion_ids"], inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            kept = kept & inputs["tool_mask"].bool()
        prompts = torch.full_like(inputs["prompt_ids"], -100)
        labels = torch.cat([prompts, answers.masked_fill(~kept, -100)], dim=1)
        to_model = {
            "input_ids": torch.cat([inputs["prompt_ids"], answers], dim=1),
            "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            "use_cache": False,
            **{name: inputs[name] for name in _OF_PICTURES if name in inputs},
        }
        batch = Batch(labels, num_items_in_batch)
        entropies: list[torch.Tensor] = []

        def with_reference(reference: Reference) -> torch.Tensor:
            def with_states(states: States) -> torch.Tensor:
                self._statistics = sampled_statistics(states, reference, batch)
                entropies.append(self._entropy(states, batch))
                return recipe_loss(self.recipe, *self._progress(), states, reference, batch)

            # forward, whose hooks have run: this is called from within the model's call.
            loss: torch.Tensor = unwrapped_student.forward(**to_model, with_states=with_states)
            return loss

        loss = self.teacher.give(to_model, with_reference)
        return loss, entropies[0], self._statistics[2]

    def _progress(self) -> tuple[int, int]:
        """The optimiser step, and of how many; an evaluation is of the step before."""
        return self.state.global_step, max(1, self.state.max_steps)

    @torch.no_grad()
    def _entropy(self, student: States, batch: Batch) -> torch.Tensor:
        """The sum of the student's entropies, in nats, over the sampled positions."""
        hidden = student.hidden[sampled_positions(batch)]
        temperature = float(self.recipe.params["temperature"])
        total = hidden.new_zeros((), dtype=torch.float32)
        for chunk in hidden.split(_CHUNK):
            logits = logits_of(chunk, student.head).float() / temperature
            log_probs = logits.log_softmax(-1)
            total -= (log_probs.exp() * log_probs).sum()
        return total
