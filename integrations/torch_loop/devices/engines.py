"""Models under the engines that keep weights in parts: FSDP, DeepSpeed."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl.models.utils import prepare_deepspeed


def prepare_frozen(model: PreTrainedModel, accelerator: Accelerator) -> torch.nn.Module:
    """A model that does not train, on this process's device, in parts where the engine has parts.

    FSDP2 and ZeRO-3 keep a part of each weight on each process, of the teacher as of the student.
    DDP keeps the whole on each; so does FSDP2 where the model is quantised, whose integers it
    cannot cut.

    Args:
        model: a causal language model, as loaded.
        accelerator: of the trainer.
    """
    if accelerator.distributed_type == "DEEPSPEED":
        return cast("torch.nn.Module", prepare_deepspeed(model, accelerator))
    if not accelerator.is_fsdp2:
        return _forgotten(accelerator, accelerator.prepare_model(model, evaluation_mode=True))
    if getattr(model, "is_quantized", False):
        return cast("torch.nn.Module", cast("Any", model).to(accelerator.device))
    # accelerate's own preparation wants an optimizer, and remembers the layers of the first model.
    state: Any = accelerator.state
    plugin = state.fsdp_plugin
    state.fsdp_plugin = copy.copy(plugin)
    state.fsdp_plugin.transformer_cls_names_to_wrap = None
    try:
        return cast("torch.nn.Module", fsdp2_prepare_model(accelerator, model))
    finally:
        state.fsdp_plugin = plugin


def _forgotten(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """The model, which the Trainer would otherwise take for its own prepared one."""
    models = cast("Any", accelerator)._models
    models[:] = [other for other in models if other is not model]
    return model


def keep_loss_wide(accelerator: Accelerator) -> None:
    """Let FSDP2 give the loss back as it is; accelerate has it rounded to bfloat16.

    Call it before the first model is prepared. The weights' and gradients' types stay.
    """
    if accelerator.is_fsdp2:
        plugin = cast("Any", accelerator.state).fsdp_plugin
        policy = plugin.mixed_precision_policy
        if policy is not None:
            plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def reshard(model: torch.nn.Module) -> None:
    """Give back what FSDP2 has gathered for a forward pass that no backward pass follows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The student's weights put together, for ``save_pretrained``; all processes must call it.

    Returns:
        Under FSDP and ZeRO-3, on the main process, the weights by name, on the CPU, and an empty
        dictionary on the others; None where every process has the whole student anyway.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type not in ("FSDP", "DEEPSPEED"):
        return None
    weights = cast("dict[str, torch.Tensor]", accelerator.get_state_dict(trainer.model_wrapped))
    return weights if accelerator.is_main_process else {}


class BeforeFirstStep(TrainerCallback):
    """Calls a function when the engine has the student, before the first step.

    Under FSDP and ZeRO-3 the student cannot run before: it has its parts from ``train()`` on.

    Args:
        work: what to do, on all processes.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do it."""
        self.work()
