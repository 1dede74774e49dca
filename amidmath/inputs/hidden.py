"""Hidden states with the head that makes logits of them, as an input of a loss."""

import numbers
from dataclasses import dataclass

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.inputs.head import Head, as_head
from amidmath.values.value import Value

VOCABULARIES = ("strict", "common")


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Hidden(Value):
    """Hidden states and their head: logits that are never there as a whole.

    A loss of it multiplies out a chunk of positions at a time, and has the value and the gradients
    of the loss of the logits, at a cost in memory that does not depend on positions × vocabulary.
    Gradients are made together with the value and kept: of the head they take a float32 array of
    its size, and none where the head is constant (torch: ``requires_grad`` is off; JAX: not
    differentiated by). With reduction "none" they are made in the backward pass, which multiplies
    out once more.

    Hidden states and heads are multiplied in the dtype of the hidden states (NumPy's float16
    in float32; torch under autocast in that dtype, as its Linear would be), rows are computed
    as those of logits, soft caps and scales in float32, and the head's gradient is added up in
    float32 before it goes to the head's dtype.

    A gradient by a Hidden is a Hidden of gradients. In JAX it is a pytree, whose leaves are the
    states and the arrays of the head; ``torch.func`` takes it likewise.

    **torch**: under autograd, autocast, activation checkpointing (which would make the
    gradients twice: leave the loss out of it), torch.func.grad, and data parallel engines. A
    DTensor of a head is gathered, and its gradient averaged over the ranks, which is what
    fully_shard does; hidden states are this rank's. Graphs of torch.compile have the loss
    as one operator. A mask on CUDA costs one wait for the device.
    **JAX**: under jit, grad, vmap, forward mode and shard_map over the positions.

    Source: chunks as in Liger Kernel (arXiv 2410.10989), section 3.2; docs: gradients, G11.

    Args:
        states: shape (..., H), real floating dtype.
        head: a weight (V, H), as ``torch.nn.Linear`` keeps it, or a :class:`Head`. The field is a
            Head in any case.
        vocab: how the vocabularies of student and teacher relate, where both are known whole and
            one of them is a Hidden: "strict", they have the same size; "common", the first
            min(V_s, V_t) tokens are the same and all others, on either side, are one more token,
            with their probabilities added up (0 where there are none). The loss is exact for
            those distributions. It is enough that one side says "common".
        chunk_rows: positions a chunk; by default as many as keep a chunk's logits within
            96 MiB on a CPU, 512 MiB elsewhere. Of two sides that say it, the smaller counts.

    Raises:
        TypeError: not arrays of one library and of real floating dtypes, a head that is none.
        ValueError: shapes or devices that do not fit, an unknown ``vocab``.

    Example:
        >>> import numpy as np, amidmath as am
        >>> rng = np.random.default_rng(0)
        >>> states, head = rng.normal(size=(2, 6, 3)), rng.normal(size=(11, 3))
        >>> teacher = am.Hidden(rng.normal(size=(2, 6, 8)), rng.normal(size=(11, 8)))
        >>> value = am.AMiD()(am.Hidden(states, head), teacher)
        >>> logits = teacher.states @ teacher.head.weight.T
        >>> bool(abs(value - am.AMiD()(states @ head.T, logits)) < 1e-12)
        True
        >>> _, grad = am.AMiD().value_and_grad(am.Hidden(states, head), teacher)
        >>> grad.states.shape, grad.head.weight.shape
        ((2, 6, 3), (11, 3))
    """

    states: Array
    head: Head
    vocab: str = "strict"
    chunk_rows: int | None = None

    def __init__(
        self,
        states: Array,
        head: Array | Head,
        vocab: str = "strict",
        chunk_rows: int | None = None,
    ) -> None:
        head = as_head("head", head)
        xp = checks.namespace(states=states, **{"head.weight": head.weight})
        checks.real_floating(xp, states=states)
        checks.same_device(states=states, **{"head.weight": head.weight})
        shape, weight = tuple(states.shape), tuple(head.weight.shape)
        if not shape or shape[-1] != weight[1]:
            raise ValueError(
                f"states must have a last axis of the size of the head's, {weight[1]} "
                f"(weight of shape {weight}), got shape {shape}"
            )
        if chunk_rows is not None:
            if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, numbers.Integral):
                raise TypeError(f"chunk_rows must be an integer or None, got {chunk_rows!r}")
            if chunk_rows < 1:
                raise ValueError(f"chunk_rows must be positive, got {chunk_rows!r}")
        object.__setattr__(self, "states", states)
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "vocab", checks.choice("vocab", vocab, VOCABULARIES))
        object.__setattr__(self, "chunk_rows", None if chunk_rows is None else int(chunk_rows))

    def arrays(self) -> dict[str, Array]:
        """The arrays by the names of their fields."""
        return {"states": self.states} | {
            f"head.{name}": array for name, array in self.head.arrays().items()
        }
