"""Losses from hidden states and heads, without the logits: the contract and its arguments."""

from typing import TYPE_CHECKING, Any, cast

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array
from amidmath.inputs.head import Head
from amidmath.inputs.hidden_arguments import given
from amidmath.inputs.hidden_layer import Library
from amidmath.inputs.hidden_rows import run
from amidmath.inputs.top_k import TopK
from amidmath.rows import positions

if TYPE_CHECKING:
    from amidmath.losses.loss import Loss


class LinearLoss:
    """A loss by rows of logits, computed from what the logits are made of."""

    def linear(
        self,
        student_hidden: Array,
        student_head: Array | Head,
        teacher_hidden: Array | TopK,
        teacher_head: Array | Head | None = None,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        vocab: str = "strict",
        labels: Array | None = None,
        label_weight: float = 1.0,
        ignore_index: int = -100,
        chunk_rows: int | None = None,
    ) -> Array:
        """The loss from hidden states and heads; no more than a chunk of logits at a time.

        The value and the gradients of calling the loss with the logits, or with the student's and
        a teacher's top-k lists (:meth:`sparse`), at a cost in memory that does not depend on
        positions × vocabulary. Gradients are made with the value and kept: of
        the head they take a float32 array of its size, and none where the head is constant
        (torch: ``requires_grad`` is off; JAX: not differentiated by). With reduction "none" they
        are made in the backward pass, which multiplies out once more.

        Hidden states and heads are multiplied in the dtype of the hidden states (NumPy's float16
        in float32; torch under autocast in that dtype, as its Linear would be), rows are computed
        as for calling the loss (lists: as for :meth:`sparse`), soft caps and scales in float32, and
        the head's gradient is added up in float32 before it goes to the head's dtype.

        **torch**: under autograd, autocast, activation checkpointing (which would make the
        gradients twice: leave the loss out of it), torch.func.grad, and data parallel engines. A
        DTensor of a head is gathered, and its gradient averaged over the ranks, which is what
        fully_shard does; hidden states and lists are this rank's. Graphs of torch.compile have it
        as one operator. A mask on CUDA costs one wait for the device.
        **JAX**: under jit, grad, vmap, forward mode and shard_map over the positions. Other
        libraries have values here, and gradients from :meth:`linear_value_and_grad`.

        Source: the loss's own; chunks as in Liger Kernel (arXiv 2410.10989), section 3.2;
        docs: gradients, G11; lists, G10.

        Args:
            student_hidden: shape (..., H_s), real floating dtype.
            student_head: a weight (V, H_s), as ``torch.nn.Linear`` keeps it, or a :class:`Head`.
            teacher_hidden: shape (..., H_t), the same positions; another size is fine. Or the
                teacher's most probable tokens, a :class:`TopK` of shape (..., k), at the loss's
                temperature already, as :meth:`sparse` takes them.
            teacher_head: a weight (V, H_t), or a Head; None beside a TopK. The teacher's side is
                constant: a torch tensor that requires a gradient is an error, JAX gives zeros
                (for a TopK, an error there too).
            mask: as for calling the loss. Positions left out are never read, and not multiplied
                out either, on NumPy, torch, CuPy and JAX.
            reduction: as for calling the loss.
            denominator: as for calling the loss.
            vocab: "strict", both vocabularies have the same size; "common", the first
                min(V_s, V_t) tokens are the same and all others, on either side, are one more
                token, with their probabilities added up (0 where there are none). The loss is
                exact for those distributions. Where only the student has further tokens, a
                divergence that the teacher's zeros make infinite is infinite. For a TopK always
                "strict": its tokens are the student's; put -1 for others, so that their mass goes
                to the tail.
            labels: shape (...), integers. Adds ``label_weight`` times the cross-entropy of the
                student's logits, at temperature 1 and over its own whole vocabulary, to the loss
                of every position that is kept and has a label, before the reduction: for "mean"
                the same denominator divides both.
            label_weight: what the cross-entropy counts.
            ignore_index: marks positions without a label.
            chunk_rows: positions a chunk; by default as many as keep a chunk's logits within
                96 MiB on a CPU, 512 MiB elsewhere.

        Returns:
            As calling the loss: a scalar, or shape (...) for "none".

        Raises:
            TypeError: not arrays, of different libraries, or of a wrong dtype; hidden states of a
                teacher without a head, or a TopK with one.
            ValueError: shapes that do not fit, vocabularies of two sizes with "strict", a label
                outside the student's vocabulary or lists that cannot be (where they are at hand,
                on the CPU and outside of jit and compile; elsewhere the loss is NaN), or as for
                calling the loss, for a TopK as for :meth:`sparse`.

        Example:
            >>> import numpy as np, amidmath as am
            >>> rng = np.random.default_rng(0)
            >>> hidden, teacher = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 8))
            >>> head, teacher_head = rng.normal(size=(11, 3)), rng.normal(size=(11, 8))
            >>> value = am.AMiD().linear(hidden, head, teacher, teacher_head)
            >>> bool(abs(value - am.AMiD()(hidden @ head.T, teacher @ teacher_head.T)) < 1e-12)
            True

            Against the four most probable tokens of a teacher, from its logits or from a file:

            >>> top = am.top_k(teacher @ teacher_head.T, k=4)
            >>> value = am.AMiD().linear(hidden, head, top)
            >>> bool(abs(value - am.AMiD().sparse(hidden @ head.T, top)) < 1e-12)
            True
        """
        arguments = (
            *(student_hidden, student_head, teacher_hidden, teacher_head, mask, reduction),
            *(denominator, vocab, labels, label_weight, ignore_index, chunk_rows),
        )
        loss = cast("Loss", self)
        if libraries.is_torch_array(student_hidden):
            from amidmath.backends.torch_backend import hidden as torch_linear

            return torch_linear.linear(loss, arguments)
        of = given(loss, *arguments)
        if libraries.is_jax_array(student_hidden):
            from amidmath.backends.jax_backend import hidden as jax_linear

            return jax_linear.linear(of)
        values, _ = run(of.form, of.arrays, (), None, Library(of.xp))
        return positions.reduced(values, of.scale, reduction, of.shape, of.xp)

    def linear_value_and_grad(
        self,
        student_hidden: Array,
        student_head: Array | Head,
        teacher_hidden: Array | TopK,
        teacher_head: Array | Head | None = None,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: str | tuple[str, ...] = "student_hidden",
        vocab: str = "strict",
        labels: Array | None = None,
        label_weight: float = 1.0,
        ignore_index: int = -100,
        chunk_rows: int | None = None,
    ) -> tuple[Array, Any]:
        """The loss from hidden states and heads, and its gradients, on any library.

        Args:
            student_hidden: as for :meth:`linear`; so are the other arguments.
            student_head: a weight, or a Head.
            teacher_hidden: the teacher's, or a TopK.
            teacher_head: a weight, or a Head; None beside a TopK.
            mask: positions to keep.
            reduction: "mean", "sum" or "none".
            denominator: divides the sum, for "mean".
            wrt: what to differentiate by: "student_hidden", "student_head" (its weight),
                "student_bias", "student_low_rank" (a pair, by A and by B), or a parameter of the
                loss that is an array; or several of them in a tuple.
            vocab: "strict" or "common".
            labels: for the cross-entropy.
            label_weight: what it counts.
            ignore_index: marks positions without a label.
            chunk_rows: positions a chunk.

        Returns:
            The value, and its gradient in the shape and dtype of the argument, a tuple of them
            for a tuple. For "none", the gradient of the sum of the values: for
            "student_hidden" and parameters of one value a position, that of each value. By a
            torch DTensor, the whole gradient of this rank's positions, as a plain tensor.

        Raises:
            TypeError: as for :meth:`linear`.
            ValueError: as for :meth:`linear`; also an unknown name in ``wrt``.

        Example:
            >>> import numpy as np, amidmath as am
            >>> states, head = np.eye(4, 3), am.Head(np.eye(5, 3), bias=np.zeros(5))
            >>> value, (by_weight, by_bias) = am.AMiD().linear_value_and_grad(
            ...     states, head, -states, head.weight, wrt=("student_head", "student_bias"))
            >>> by_weight.shape, by_bias.shape
            ((5, 3), (5,))
        """
        of = given(
            cast("Loss", self),
            *(student_hidden, student_head, teacher_hidden, teacher_head, mask, reduction),
            *(denominator, vocab, labels, label_weight, ignore_index, chunk_rows),
        )
        wanted = positions.wanted_of(wrt, of.differentiable)
        names = [part for name in wanted for part in _parts(name)]
        xp = of.xp
        if libraries.is_torch_array(student_hidden):
            from amidmath.backends.torch_backend import hidden as torch_linear

            values, grads = torch_linear.values_and_grads(of, names)
        elif libraries.is_jax_array(student_hidden):
            from amidmath.backends.jax_backend import hidden as jax_linear

            values, grads = jax_linear.values_and_grads(of, names)
        else:
            values, grads = run(of.form, of.arrays, names, of.row_scale, Library(xp))
        shaped = {}
        for name, grad in grads.items():
            argument = of.arguments[name]
            if name in of.form.knobs:
                shaped[name] = positions.unbroadcast(grad, argument, of.shape, xp)
            else:
                grad = xp.reshape(grad, argument.shape)
                shaped[name] = xp.astype(grad, argument.dtype, copy=False)
        value = positions.reduced(values, of.scale, reduction, of.shape, xp)
        found = []
        for name in wanted:
            parts = tuple(shaped[part] for part in _parts(name))
            found.append(parts if name == "student_low_rank" else parts[0])
        return value, found[0] if isinstance(wrt, str) else tuple(found)


def _parts(name: str) -> tuple[str, ...]:
    """The arrays that a name in ``wrt`` stands for."""
    return (f"{name}_a", f"{name}_b") if name == "student_low_rank" else (name,)
