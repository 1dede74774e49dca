"""LoRA: low-rank matrices beside the frozen weights of a decoder's layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.devices.processes import put
from amidmath.integrations.jax_loop.models.families import Family, Tensor

ALL = "all-linear"
_OF_THE_ADAPTER = ("lora_r", "lora_alpha", "use_rslora", "lora_target_modules")


@dataclass
class LoraSettings:
    """A low-rank adapter, and the student's base as its teacher; names as TRL has them."""

    use_peft: bool = field(
        default=False,
        metadata={"help": "Train a LoRA adapter beside the student's weights, which stay."},
    )
    lora_r: int = field(default=16, metadata={"help": "Its rank."})
    lora_alpha: float = field(
        default=32.0, metadata={"help": "It is added times lora_alpha / lora_r."}
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "0: there is no dropout in this loop."}
    )
    use_rslora: bool = field(
        default=False, metadata={"help": "Times lora_alpha / √lora_r instead."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Which matrices of the layers have one, q_proj and so on, or {ALL}. Default: "
            "q_proj and v_proj, or GPT-2's c_attn."
        },
    )
    teacher_is_base: bool = field(
        default=False,
        metadata={
            "help": "The student's own base model teaches it (with --use_peft): no second model."
        },
    )

    def check_lora(self) -> None:
        """Raise InputError on values that do not fit."""
        if self.lora_r < 1:
            raise InputError(f"--lora_r must be at least 1, got {self.lora_r}")
        if not 0.0 < self.lora_alpha < math.inf:
            raise InputError(f"--lora_alpha must be positive and finite, got {self.lora_alpha}")
        if self.lora_dropout:
            raise InputError(
                f"--lora_dropout {self.lora_dropout}: there is no dropout in this loop; leave it "
                "out, or set it to 0"
            )
        if ALL in (targets := self.lora_target_modules or []) and len(targets) > 1:
            raise InputError(
                f"--lora_target_modules {' '.join(targets)}: {ALL} stands for every matrix, so "
                "leave out the others, or leave it out"
            )
        if not self.use_peft:
            for each in fields(LoraSettings):
                value = getattr(self, each.name)
                if each.name in _OF_THE_ADAPTER and value != each.default:
                    words = " ".join(value) if isinstance(value, list) else str(value)
                    raise InputError(
                        f"--{each.name} {words}: without an adapter the whole student would be "
                        "trained; add --use_peft, or leave it out"
                    )
        if self.teacher_is_base and not self.use_peft:
            raise InputError(
                "--teacher_is_base: the student has no adapter whose base could teach it; add "
                "--use_peft, or name a teacher with --teacher_model_name_or_path"
            )

    @property
    def lora_scale(self) -> float:
        """The factor of the adapter."""
        return self.lora_alpha / (math.sqrt(self.lora_r) if self.use_rslora else self.lora_r)


class LowRank(nnx.Module):
    """An adapter's part of one matrix's outputs: its inputs times ``down``, ``up`` and a scale.

    Args:
        down: (layers, inputs…, r).
        up: (layers, r, outputs…).
        equation: the matrix's einsum, such as "bth,hnd->btnd".
        scale: the factor.
    """

    def __init__(
        self,
        down: nnx.LoRAParam[jax.Array],
        up: nnx.LoRAParam[jax.Array],
        equation: str,
        scale: float,
    ) -> None:
        self.down, self.up, self.scale = down, up, scale
        x, weight, y = equation.replace("->", ",").split(",")
        inputs = "".join(axis for axis in weight if axis in x)
        outputs = "".join(axis for axis in weight if axis in y)
        self.equations = f"{x},{inputs}r->btr", f"btr,r{outputs}->{y}"

    def __call__(self, x: jax.Array) -> jax.Array:
        """The addition, computed in the input's dtype."""
        down, up = self.equations
        inside = jnp.einsum(down, x, self.down[...].astype(x.dtype))
        return self.scale * jnp.einsum(up, inside, self.up[...].astype(x.dtype))


def adapted(known: Family, targets: Sequence[str] | None) -> list[Tensor]:
    """The matrices of a family's layers that have an adapter.

    Args:
        known: the family.
        targets: the names of its matrices' modules, or ``ALL``; None for the family's own choice.

    Raises:
        InputError: a name that there is not.
    """
    matrices = [t for t in known.tensors if t.per_layer and t.kind != "vector"]
    if targets is None:
        targets = known.adapted
    if list(targets) == [ALL]:
        return matrices
    names = list(dict.fromkeys(map(module_name, matrices)))
    unknown = [target for target in targets if target not in names]
    if unknown or not targets:
        raise InputError(
            f"--lora_target_modules: the layers of this model have {', '.join(names)} (or {ALL}), "
            f"got {', '.join(unknown) or 'none'}"
        )
    return [tensor for tensor in matrices if module_name(tensor) in targets]


def module_name(tensor: Tensor) -> str:
    """The last part of the name of the module that has a weight: "q_proj"."""
    return tensor.name.split(".")[-2]


def attach(
    decoder: Any,
    tensors: Sequence[Tensor],
    rank: int,
    scale: float,
    seed: int,
    sharding_of: Callable[[Any, tuple[int, ...]], Any] | None = None,
) -> None:
    """Give a decoder's matrices adapters that change nothing yet, as PEFT makes them.

    Matrices that lie in one tensor of the file (GPT-2's queries, keys and values) share ``down``.

    Args:
        decoder: a :class:`~.decoder.Decoder`; it is changed.
        tensors: of :func:`adapted`.
        rank: r.
        scale: what the product is multiplied by.
        seed: of the random numbers: ``down`` is uniform in ±1/√inputs, ``up`` is zero.
        sharding_of: where a parameter goes, by the names of its axes and its shape.
    """

    def parameter(value: jax.Array, axes: tuple[str | None, ...]) -> Any:
        sharding = None if sharding_of is None else sharding_of(axes, value.shape)
        return nnx.LoRAParam(put(np.asarray(value), sharding), axes=axes)

    for number, tensor in enumerate(tensors):
        linears = linears_of(decoder, tensor)
        key = jax.random.fold_in(jax.random.key(seed), number)
        down: Any = None
        for linear in linears:
            axes, shape = linear.weight.get_metadata("axes"), linear.weight.shape
            count = input_axes(axes)
            inputs, outputs = slice(1, 1 + count), slice(1 + count, None)
            if down is None:
                bound = 1.0 / math.sqrt(math.prod(shape[inputs]))
                drawn = jax.random.uniform(
                    key, (*shape[:1], *shape[inputs], rank), jnp.float32, -bound, bound
                )
                down = parameter(drawn, (*axes[:1], *axes[inputs], None))
            zeros = jnp.zeros((*shape[:1], rank, *shape[outputs]), jnp.float32)
            up = parameter(zeros, (*axes[:1], None, *axes[outputs]))
            linear.lora = LowRank(down, up, linear.equation, scale)


def linears_of(decoder: Any, tensor: Tensor) -> list[Any]:
    """The modules of a decoder whose weights a tensor holds."""
    found = []
    for path in tensor.paths:
        module = decoder
        for part in path.split(".")[:-1]:
            module = getattr(module, part)
        if module is not None:
            found.append(module)
    return found


def input_axes(axes: Sequence[str | None]) -> int:
    """How many axes of a stacked weight, after that of the layers, its inputs go over."""
    return 1 if axes[1] == "embed" else len(axes) - 2


def base_graph(decoder: Any) -> Any:
    """The structure of a decoder without its adapter, for its other parameters."""
    graph, state = nnx.split(decoder)
    copy = nnx.merge(graph, state)
    for module in vars(copy.layers).values():
        if getattr(module, "lora", None) is not None:
            module.lora = None
    return nnx.graphdef(copy)
