"""The parts of a causal language model's logits: its last hidden states and its head."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

import amidmath as am
from amidmath.integrations.common.errors import InputError, first_paragraph
from amidmath.integrations.torch_loop.models.model_files import logits_of_model
from amidmath.integrations.torch_loop.models.modes import evaluation_mode, needs_half

T = TypeVar("T")

# By what name a config says that logits are multiplied, and how it says by what.
_SCALES: dict[str, Callable[[Any, float], float]] = {
    "logit_scale": lambda config, value: value,  # Cohere
    "output_multiplier": lambda config, value: value,
    "lm_head_multiplier": lambda config, value: value,  # Falcon-H1
    "logits_scaling": lambda config, value: (  # Granite and MiniCPM divide
        value if config.model_type == "hyperclovax" else 1.0 / value
    ),
}
# By what names a config says that logits are capped: Gemma, RecurrentGemma, xLSTM.
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_PROBE_TOKENS = 8
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError)
_ROUGH = 0.1
_EXPOSED = "_amidmath_exposed"


class UnknownHeadError(InputError):
    """Logits that are not made of the last hidden states in a way that is known here."""


@dataclass(frozen=True)
class States:
    """A model's output as the input of a loss: hidden states with their head, or whole logits.

    Args:
        output: states (B, L, H) after the last norm and the output layer; or logits (B, L, V).
        base_head: the output layer without the adapter that it may have, as a constant; None
            beside logits.
    """

    output: am.Hidden | torch.Tensor
    base_head: am.Head | None = None

    @property
    def hidden(self) -> torch.Tensor:
        """The states, or the logits."""
        found: torch.Tensor
        found = self.output.states if isinstance(self.output, am.Hidden) else self.output
        return found

    @property
    def head(self) -> am.Head | None:
        """The output layer; None beside logits."""
        return self.output.head if isinstance(self.output, am.Hidden) else None

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""
        return int(self.hidden.shape[-1] if self.head is None else self.head.weight.shape[0])

    def first(self, tokens: int | None) -> "States":
        """States of logits for the first so many tokens alone; None for all."""
        if self.head is None or self.base_head is None:
            return States(self.hidden[..., :tokens])
        return States(am.Hidden(self.hidden, self.head.first(tokens)), self.base_head.first(tokens))

    @property
    def logits(self) -> torch.Tensor:
        """All logits, (B, L, V); for few positions."""
        return logits_of(self.hidden, self.head)


def logits_of(hidden: torch.Tensor, head: am.Head | None) -> torch.Tensor:
    """The logits (..., V) of hidden states (..., H), whole; for few positions."""
    if head is None:
        return hidden
    logits: torch.Tensor = head.logits(hidden)
    return logits


def expose_states(model: PreTrainedModel) -> None:
    """Let ``model(**inputs, with_states=f)`` run the backbone and return ``f(states)``.

    ``f`` is called inside of the forward pass, in the place of the output layer, so that what wraps
    the model sees all of it: DDP its gradients, FSDP and ZeRO-3 the use of the head, accelerate's
    autocast the loss. Without ``with_states`` the model does what it did.

    Where a small forward pass finds that logits are made in another way than is known here, or the
    head is no linear layer, ``f`` is given whole logits (``gives_logits``).

    Args:
        model: a causal language model, not wrapped by PEFT; exposing it twice is the same as once.

    Raises:
        InputError: an adapter on the head that cannot be had.
    """
    if hasattr(model, _EXPOSED):
        return
    forward = model.forward
    whole = False

    @functools.wraps(type(model).forward)  # generate looks at its signature
    def exposed(
        self: PreTrainedModel,
        *args: Any,
        with_states: Callable[[States], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if with_states is None:
            return forward(*args, **kwargs)
        kwargs["use_cache"] = False
        if whole:
            return with_states(States(forward(*args, **kwargs).logits))
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        layer: Any = self.get_output_embeddings()

        def states(hidden: torch.Tensor) -> Any:
            head = head_of(self)
            base = head if not hasattr(layer, "active_adapters") else head_of(self, adapter=False)
            return with_states(States(am.Hidden(hidden, head), _constant(base)))

        return _in_place_of(layer, states, hidden)

    model.forward = MethodType(exposed, model)
    try:
        head_of(model)
        _check(model)
    except UnknownHeadError:
        whole = True
    except InputError:
        model.forward = forward
        raise
    setattr(model, _EXPOSED, "logits" if whole else "states")


def gives_logits(model: torch.nn.Module) -> bool:
    """Whether a model whose states are exposed gives whole logits in their place."""
    return getattr(model, _EXPOSED, "") == "logits"


def is_here(model: torch.nn.Module) -> bool:
    """Whether the model's weights are whole in this process, so that it can be run at once."""
    return not any(
        p.is_meta or hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters()
    )


def head_of(model: PreTrainedModel, adapter: bool = True) -> am.Head:
    """A model's output layer as it is now, an adapter on it included unless told otherwise.

    Raises:
        UnknownHeadError: no output layer, or none that is linear.
        InputError: an adapter on it that is no low-rank sum.
    """
    layer: Any = model.get_output_embeddings()
    name = type(model).__name__
    if layer is None:
        raise UnknownHeadError(f"{name} has no output layer; a causal language model is needed")
    config = model.config.get_text_config()
    caps = [cap for name in _SOFT_CAPS if (cap := getattr(config, name, None)) is not None]
    settings: dict[str, Any] = {"softcap": caps[0] if caps else None}
    for key, scale in _SCALES.items():
        value = getattr(config, key, None)
        if value is not None:
            settings["scale"] = scale(config, float(value))
            break
    if hasattr(layer, "modules_to_save"):  # PEFT's whole trained copy
        active = layer.active_adapters
        use = adapter and not layer.disable_adapters and active
        layer = layer.modules_to_save[active[0]] if use else layer.original_module
    if hasattr(layer, "lora_A"):
        settings["low_rank"] = _low_rank(layer) if adapter else None
        layer = layer.base_layer
    if not isinstance(layer, torch.nn.Linear) or not layer.weight.is_floating_point():
        raise UnknownHeadError(
            f"the output layer of {name} is a {type(layer).__name__}, the loss needs a linear "
            "layer with floating-point weights: leave the head out of quantization and adapters"
        )
    return am.Head(layer.weight, bias=layer.bias, **settings)


def _constant(head: am.Head) -> am.Head:
    """A head whose arrays take no gradient."""
    return head.holding({name: array.detach() for name, array in head.arrays().items()})


def _low_rank(layer: Any) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    if layer.disable_adapters or layer.merged or not layer.active_adapters:
        return None
    if len(layer.active_adapters) > 1:
        raise InputError(
            f"the output layer has {len(layer.active_adapters)} active LoRA adapters; one at most"
        )
    name = layer.active_adapters[0]
    if layer.use_dora.get(name):
        raise InputError("DoRA on the output layer is no low-rank sum; use plain LoRA there")
    dropout = layer.lora_dropout[name]
    if getattr(dropout, "p", 0.0) > 0.0:
        raise InputError(
            f"--lora_dropout {dropout.p} on the output layer cannot be had here: set it to 0, or "
            "leave lm_head out of --lora_target_modules"
        )
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="a forward pass is replaced, and the loss is not compiled anyway"
)
def _in_place_of(
    layer: torch.nn.Module, work: Callable[[torch.Tensor], Any], hidden: torch.Tensor
) -> Any:
    """``work(hidden)`` as the layer's forward pass.

    Engines that keep weights in parts have a layer's whole during its own forward and backward
    pass only.
    """
    own = vars(layer).get("forward")  # accelerate's hooks put one there
    try:
        layer.forward = work
        return layer(hidden)
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


@torch.no_grad()
def _check(model: PreTrainedModel) -> None:
    """Raise UnknownHeadError unless the head's logits are the model's own."""
    if not is_here(model):
        return
    parameter = next(model.parameters())
    size = logits_of_model(model)
    ids = (torch.arange(_PROBE_TOKENS, device=parameter.device) * 7919 % size)[None]
    with evaluation_mode(model):
        try:
            theirs = model(input_ids=ids, use_cache=False).logits.float()
        except _FAILURES as error:
            adapted = any(hasattr(layer, "lora_A") for layer in model.modules())
            advice = "; name fewer layers with --lora_target_modules" if adapted else ""
            raise InputError(
                f"{type(model).__name__} does not run on a few tokens{' as adapted' * adapted} "
                f"({type(error).__name__}: {first_paragraph(error)}){advice}"
            ) from error
        try:
            ours = model(input_ids=ids, with_states=lambda states: states.logits).float()
        except _FAILURES as error:
            raise UnknownHeadError(
                f"{type(model).__name__} has no last hidden states that its output layer takes"
            ) from error
    allowed = _ROUGH if needs_half(model) else _tolerance(parameter.dtype)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=allowed, atol=allowed):
        raise UnknownHeadError(
            f"{type(model).__name__} makes its logits in a way that is not known here: they are "
            f"not its output layer's of its last hidden states (largest difference "
            f"{_difference(ours, theirs)})"
        )


def _tolerance(dtype: torch.dtype) -> float:
    return _ROUGH if dtype in (torch.bfloat16, torch.float16) else 1e-3


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"in shape, {tuple(ours.shape)} against {tuple(theirs.shape)}"
    return f"{float((ours - theirs).abs().max()):.3g}"
