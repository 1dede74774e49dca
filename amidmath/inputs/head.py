"""The output layer of a language model, which makes logits of hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from amidmath.arrays import checks, kinds, libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.values.value import Value


@dataclass(frozen=True, eq=False, repr=False)
class Head(Value):
    """The linear layer that makes logits of hidden states, its scale, and its soft cap.

    logits = softcap·tanh(scale·(h Wᵀ + b + factor·(h Aᵀ) Bᵀ)/softcap), without the tanh where
    there is no soft cap. A tied head is the embedding's weight.

    | model | as a head |
    |---|---|
    | Gemma | ``Head(weight, softcap=config.final_logit_softcapping)`` |
    | Granite | ``Head(weight, scale=1 / config.logits_scaling)`` |
    | Cohere | ``Head(weight, scale=config.logit_scale)`` |
    | LoRA on the head | ``Head(weight, low_rank=(lora_A.weight, lora_B.weight, lora_alpha / r))`` |

    Source: transformers, ``modeling_gemma2``, ``modeling_granite``, ``modeling_cohere``; LoRA,
    arXiv 2106.09685; docs: gradients, G11.

    Args:
        weight: W, shape (V, H), as ``torch.nn.Linear`` keeps it; real floating dtype.
        bias: b, shape (V,).
        softcap: a positive number, or None for no cap.
        scale: what the layer's output is multiplied by, before the cap.
        low_rank: (A of shape (r, H), B of shape (V, r), factor).

    Raises:
        TypeError: not arrays of one library and of real floating dtypes, or no numbers.
        ValueError: shapes that do not fit, or numbers out of range.

    Example:
        >>> import numpy as np, amidmath as am
        >>> head = am.Head(np.zeros((5, 3)), softcap=30.0)
        >>> teacher = am.Hidden(np.ones((2, 4)), np.zeros((5, 4)))
        >>> am.AMiD()(am.Hidden(np.zeros((2, 3)), head), teacher).item()
        0.0
    """

    weight: Array
    bias: Array | None = None
    softcap: float | None = None
    scale: float = 1.0
    low_rank: tuple[Array, Array, float] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the hidden states."""
        arrays: dict[str, Array] = {"weight": self.weight}
        if self.bias is not None:
            arrays["bias"] = self.bias
        if self.low_rank is not None:
            if not isinstance(self.low_rank, tuple) or len(self.low_rank) != 3:
                raise TypeError(
                    "low_rank must be a tuple (A, B, factor), "
                    f"got {checks.shortened(self.low_rank)}"
                )
            a, b, factor = self.low_rank
            arrays |= {"low_rank[0]": a, "low_rank[1]": b}
            factor = checks.number("low_rank[2]", factor)
            object.__setattr__(self, "low_rank", (a, b, factor))
        checks.real_floating(checks.namespace(**arrays), **arrays)
        checks.same_device(**arrays)
        self._check_shapes()
        if self.softcap is not None:
            object.__setattr__(self, "softcap", checks.positive("softcap", self.softcap))
        object.__setattr__(self, "scale", checks.number("scale", self.scale))

    def _check_shapes(self) -> None:
        shape = tuple(self.weight.shape)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"weight must have shape (V, H), got {shape}")
        v, h = shape
        if self.bias is not None and tuple(self.bias.shape) != (v,):
            raise ValueError(
                f"bias must have shape (V,) = ({v},) for weight of shape {shape}, "
                f"got {tuple(self.bias.shape)}"
            )
        if self.low_rank is not None:
            a, b = (tuple(x.shape) for x in self.low_rank[:2])
            if len(a) != 2 or len(b) != 2 or a[1] != h or b != (v, a[0]):
                raise ValueError(
                    f"low_rank must have A of shape (r, H) = (r, {h}) and B of shape (V, r) = "
                    f"({v}, r), got {a} and {b}"
                )

    def first(self, tokens: int | None) -> "Head":
        """The head of the first so many tokens, whose softmax is that of all, renormalised.

        Args:
            tokens: how many, at most those of the head; None for all.
        """
        if tokens is None or tokens == self.weight.shape[0]:
            return self
        arrays = {
            name: array if name == "low_rank[0]" else array[:tokens, ...]
            for name, array in self.arrays().items()
        }
        return self.holding(arrays)

    def logits(self, states: Array) -> Array:
        """The logits (..., V) of some hidden states (..., H), whole, on any library.

        Multiplied in the dtype of the states; bias, scale and cap in float32 (float64 for such
        states). Differentiated as the library does.
        """
        xp = checks.namespace(states=states, weight=self.weight)
        multiplied = {
            name: xp.astype(array, states.dtype, copy=False)
            for name, array in self.arrays().items()
        }
        computing = checks.computing_dtype(xp, states)

        def product(hidden: Array, name: str) -> Array:
            outputs = xp.matmul(hidden, xp.permute_dims(multiplied[name], (1, 0)))
            return xp.astype(outputs, computing, copy=False)

        outputs = product(states, "weight")
        if self.bias is not None:
            outputs = outputs + xp.astype(self.bias, computing, copy=False)
        if self.low_rank is not None:
            inside = xp.astype(product(states, "low_rank[0]"), states.dtype, copy=False)
            outputs = outputs + self.low_rank[2] * product(inside, "low_rank[1]")
        return self.projection.logits(outputs, xp)

    @property
    def projection(self) -> "Projection":
        """The head without its arrays."""
        factor = 0.0 if self.low_rank is None else self.low_rank[2]
        return Projection(int(self.weight.shape[0]), self.softcap, self.scale, factor)

    def arrays(self) -> dict[str, Array]:
        """The arrays by the names of their fields."""
        found = {"weight": self.weight}
        if self.bias is not None:
            found["bias"] = self.bias
        if self.low_rank is not None:
            found["low_rank[0]"], found["low_rank[1]"] = self.low_rank[:2]
        return found

    def holding(self, arrays: Mapping[str, Array]) -> "Head":
        """The same head of other arrays, such as gradients."""
        low_rank = self.low_rank
        if low_rank is not None:
            low_rank = (arrays["low_rank[0]"], arrays["low_rank[1]"], low_rank[2])
        return replace(self, weight=arrays["weight"], bias=arrays.get("bias"), low_rank=low_rank)


def as_head(name: str, head: Any) -> Head:
    """The argument as a Head; raises TypeError unless it is one, or the weight of one."""
    if isinstance(head, Head):
        return head
    if not libraries.is_array(head):
        raise TypeError(
            f"{name} must be a weight of shape (V, H), as torch.nn.Linear's, or an am.Head, "
            f"got {type(head).__name__}: {checks.shortened(head)}{kinds.remedy(head)}"
        )
    weight: Array = head
    checks.real_floating(checks.namespace(**{name: weight}), **{name: weight})
    if weight.ndim != 2:
        raise ValueError(f"{name} must have shape (V, H), got {tuple(weight.shape)}")
    return Head(weight)


@dataclass(frozen=True)
class Projection:
    """A head without its arrays: what happens to the output of its layer, number by number.

    Args:
        vocabulary: V.
        softcap: see :class:`Head`, as the others.
        scale: before the cap.
        factor: of the low-rank part.
    """

    vocabulary: int
    softcap: float | None
    scale: float
    factor: float

    @property
    def plain(self) -> bool:
        """Whether the layer's output is the logits."""
        return self.softcap is None and self.scale == 1.0

    def logits(self, outputs: Array, xp: Namespace) -> Array:
        """Logits from outputs of the layer."""
        if self.plain:
            return outputs
        if self.softcap is None:
            return outputs * self.scale
        return self.softcap * xp.tanh(outputs * (self.scale / self.softcap))

    def pulled_back(self, grad: Array, outputs: Array, xp: Namespace) -> Array:
        """The gradient by the layer's outputs, from that by the logits."""
        if self.plain:
            return grad
        if self.softcap is None:
            return grad * self.scale
        # 1 - tanh² without its cancellation far out, as 4e/(1 + e)² with e = exp(-2|x|).
        e = xp.exp(xp.abs(outputs) * (-2.0 * abs(self.scale) / self.softcap))
        return grad * (4.0 * self.scale * e / ((1.0 + e) * (1.0 + e)))
