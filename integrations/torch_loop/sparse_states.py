"""The loss against a teacher's top-k lists from hidden states, without the logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat.torch as xp
import torch

import amidmath as am
from amidmath import _checks, _dispatch, _loss
from amidmath._checks import computing_dtype
from amidmath._cross_entropy import cross_entropy
from amidmath._head import Projection
from amidmath._linear_arguments import CPU_BYTES, _chunk_rows, _labels
from amidmath._linear_rows import Sums, _Layer
from amidmath._rows import Block
from amidmath._sparse import _untempered
from amidmath._sparse_rows import SparseForm
from amidmath._top_k import checked
from amidmath.backends.torch_linear import TorchLibrary, _gathered, _Linear
from amidmath.integrations.torch_loop.states import States

# Rows are computed a few at a time, their temporaries being several times their logits.
_BLOCK_BYTES = CPU_BYTES // 8


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="the loss from hidden states runs as it is, not in a compiled graph"
)
def sparse_from_states(
    loss: am.Loss,
    states: States,
    top_k: am.TopK,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    chunk_rows: int | None = None,
    *,
    labels: torch.Tensor | None = None,
    label_weight: float = 1.0,
    ignore_index: int = -100,
) -> torch.Tensor:
    """``loss.sparse`` of the logits that the states make; no more than a chunk of them at a time.

    Gradients are made with the value, as by ``loss.linear``: logits are multiplied out once, and
    positions that the mask leaves out never. Hidden states and head are multiplied in the dtype of
    the hidden states, or autocast's; rows are computed in float32 (float64 for such states).

    Args:
        loss: any loss that has ``sparse``; array parameters have one value a position.
        states: the student's, hidden of shape (..., H).
        top_k: the teacher's lists, of shape (..., k), at the loss's temperature; those of positions
            that are left out are not looked at.
        mask: shape (...), boolean or 0/1; None keeps all.
        reduction: "mean", "sum" or "none".
        denominator: divides the sum instead of the number of positions kept, for "mean".
        chunk_rows: positions a chunk; by default as many as keep its logits within 96 MiB on a
            CPU, 512 MiB elsewhere.
        labels: shape (...); adds ``label_weight`` times the cross-entropy of the student's logits
            at temperature 1, as ``loss.linear`` does.
        label_weight: what the cross-entropy counts.
        ignore_index: marks positions without a label.

    Returns:
        A scalar, or shape (...) for "none", in float32 (float64 for such states).

    Raises:
        TypeError: as for ``loss.sparse`` and ``loss.linear``.
        ValueError: as for those two.

    Example:
        >>> import torch, amidmath as am
        >>> hidden, head = torch.randn(2, 3, 4), am.Head(torch.randn(9, 4))
        >>> teacher = am.top_k(torch.randn(2, 3, 9), k=2)
        >>> value = sparse_from_states(am.AMiD(), States(hidden, head, head), teacher)
        >>> bool(torch.allclose(value, am.AMiD().sparse(hidden @ head.weight.T, teacher)))
        True
    """
    temperature, block = _untempered(loss)
    hidden, head = states.hidden, states.head
    shape, width = hidden.shape[:-1], head.weight.shape[1]
    if hidden.ndim == 0 or hidden.shape[-1] != width:
        raise ValueError(
            f"states.hidden must have a last axis of the head's size, {width}, got shape "
            f"{tuple(hidden.shape)}"
        )
    # What there is to check of masks and parameters is checked as for logits, here of one token.
    _, _, operands, keep = loss._operands(hidden[..., :1], hidden[..., :1], mask)
    rows = hidden.reshape(-1, width)
    at = None if keep is None else torch.nonzero(keep)[:, 0]
    top = _kept_lists(top_k, shape, at)
    scale = _loss._scale(reduction, denominator, (rows, top.log_probs), keep, xp)
    arrays = {"student_hidden": rows, **_head_arrays(head)}
    arrays |= dict(zip(loss.knobs, operands[2:], strict=True))
    if labels is not None:
        vocabulary = head.projection.vocabulary
        arrays["labels"] = _labels(labels, hidden, keep, vocabulary, ignore_index, xp)
    kind = hidden.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    wanted = tuple(name for name, array in arrays.items() if array.requires_grad)
    form = _Form(
        block,
        temperature,
        tuple(loss.knobs),
        head.projection,
        _checks.number("label_weight", label_weight),
        ignore_index,
        _chunk_rows(chunk_rows, rows, rows, head.projection.vocabulary, xp),
    )
    late = TorchLibrary(autocast).multiplying_dtype(rows) == torch.float16
    reduced = reduction != "none"
    call = _Call(
        form,
        tuple(arrays),
        wanted if torch.is_grad_enabled() else (),
        reduced,
        autocast,
        late,
        top,
        at,
    )
    if scale is not None:
        dtype = computing_dtype(xp, rows, top.log_probs)
        scale = torch.as_tensor(scale, dtype=dtype, device=hidden.device).detach()
    if call.wanted:
        result = _Linear.apply(call, scale, *arrays.values())[0]
    else:
        values, _ = call.run(tuple(arrays.values()), (), None)
        result = _dispatch.scaled_sum(values, scale, xp) if reduced else values
    found: torch.Tensor = result if reduced else result.reshape(shape)
    return found


def _kept_lists(top: am.TopK, shape: torch.Size, at: torch.Tensor | None) -> am.TopK:
    """The lists of the positions that are kept, (P, k)."""
    if not isinstance(top, am.TopK):
        raise TypeError(
            f"top_k must be an am.TopK(log_probs, indices), got {type(top).__name__}: "
            f"{_checks.shortened(top)}"
        )
    lists = tuple(top.indices.shape)
    if lists[:-1] != tuple(shape) or tuple(top.log_probs.shape) != lists:
        raise ValueError(
            f"top_k must have log_probs and indices of the positions of states, {tuple(shape)}, "
            f"and a last axis of k tokens, got {tuple(top.log_probs.shape)} and {lists}"
        )
    flat = (array.reshape(-1, lists[-1]) for array in top)
    return am.TopK(*(array if at is None else array[at] for array in flat))


def _head_arrays(head: am.Head) -> dict[str, torch.Tensor]:
    """The head's arrays as plain tensors, by the names that the layer knows."""
    return {
        name: _gathered(name, array) if hasattr(array, "placements") else array
        for name, array in head.arrays("student").items()
    }


@dataclass(frozen=True)
class _Form:
    """What is computed, without the arrays."""

    block: Block
    temperature: float
    knobs: tuple[str, ...]
    student: Projection
    label_weight: float
    ignore_index: int
    chunk_rows: int

    def rows(
        self,
        outputs: torch.Tensor,
        top: am.TopK,
        small: Mapping[str, torch.Tensor],
        scale: torch.Tensor | None,
        wanted: frozenset[str],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Values (n,) and gradients, by the layer's "outputs" and by knobs, of some rows."""
        dtype = computing_dtype(xp, outputs, top.log_probs)
        outputs = outputs.to(dtype)
        logits = self.student.logits(outputs, xp)
        top = checked(top, logits, None, xp)
        form = SparseForm(self.block, self.temperature, len(self.knobs), scaled=scale is not None)
        extras = () if scale is None else (scale,)
        need = "outputs" in wanted
        needs = (need, False, False, *(k in wanted for k in self.knobs), *(False for _ in extras))
        knobs = (small[k] for k in self.knobs)
        values, partials = _dispatch.value_and_partials(form, needs, logits, *top, *knobs, *extras)
        grads = {k: p for k, p in zip(self.knobs, partials[3:], strict=False) if p is not None}
        grad = partials[0]
        if "labels" in small:
            value, by_label = cross_entropy(
                logits, small["labels"], self.ignore_index, need=need, xp=xp
            )
            values = values + self.label_weight * value
            if by_label is not None:
                weight = self.label_weight if scale is None else self.label_weight * scale[:, None]
                grad = grad + weight * by_label
        if grad is not None:
            grads["outputs"] = self.student.pulled_back(grad, outputs, xp)
        return values, grads


@dataclass(frozen=True)
class _Call:
    """What of a call is not differentiated by; in the place of a :class:`torch_linear.Call`.

    Args:
        form: what is computed.
        names: of the arrays, in order.
        wanted: by which of them to differentiate.
        reduced: whether values are summed.
        autocast: the dtype of multiplications under autocast, None outside.
        late: whether the sum's gradients are scaled when complete; float16 would underflow before.
        top: the lists of the positions that are kept, (P, k).
        at: which positions those are; None for all.
    """

    form: _Form
    names: tuple[str, ...]
    wanted: tuple[str, ...]
    reduced: bool
    autocast: torch.dtype | None
    late: bool
    top: am.TopK
    at: torch.Tensor | None

    def run(
        self,
        arrays: Sequence[torch.Tensor],
        wanted: Sequence[str],
        scale: torch.Tensor | None,
    ) -> Sums:
        """Values (N,) and gradients, outside of autograd and autocast."""
        device = arrays[0].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return self._run(dict(zip(self.names, arrays, strict=True)), wanted, scale)

    def _run(
        self,
        arrays: Mapping[str, torch.Tensor],
        wanted: Sequence[str],
        scale: torch.Tensor | None,
    ) -> Sums:
        library, form = TorchLibrary(self.autocast), self.form
        layer = _Layer("student", form.student, arrays, library)
        values, grads = self._zeros(arrays, wanted, layer.dtype)
        by_outputs = any(name.startswith("student_") for name in wanted)
        parts = frozenset(name for name in wanted if name in form.knobs)
        parts |= {"outputs"} if by_outputs else frozenset()
        small = {k: arrays[k] for k in (*form.knobs, "labels") if k in arrays}
        count, vocabulary = self.top.indices.shape[0], form.student.vocabulary
        step = max(1, min(form.chunk_rows, count))
        buffer = library.buffer((step, vocabulary), layer.dtype, layer.hidden)
        block = max(1, _BLOCK_BYTES // (4 * vocabulary))
        for start in range(0, count, step):
            stop = min(start + step, count)
            hidden = layer.states(self._at(start, stop), None)
            u = layer.outputs(hidden, None if buffer is None else buffer[: stop - start])
            for first in range(start, stop, block):
                last = min(first + block, stop)
                at, here = self._at(first, last), slice(first - start, last - start)
                value, partials = form.rows(
                    u[here],
                    am.TopK(*(array[first:last] for array in self.top)),
                    {name: array[at] for name, array in small.items()},
                    None if scale is None else scale[at],
                    parts,
                )
                values[at] = value
                if by_outputs:
                    u[here] = partials.pop("outputs").to(u.dtype)
                for name, partial in partials.items():
                    grads[name][at] = partial.to(grads[name].dtype)
            if by_outputs:
                grads = layer.pulled_back(grads, u, hidden, self._at(start, stop))
        return values, grads

    def _at(self, start: int, stop: int) -> Any:
        """Which positions the kept ones from ``start`` to ``stop`` are."""
        return slice(start, stop) if self.at is None else self.at[start:stop]

    def _zeros(
        self, arrays: Mapping[str, torch.Tensor], wanted: Sequence[str], dtype: torch.dtype
    ) -> Sums:
        """Values and gradients to add to: sums over rows in float32 for half precision."""
        hidden = arrays["student_hidden"]
        values = hidden.new_zeros(
            hidden.shape[0], dtype=computing_dtype(xp, hidden, self.top.log_probs)
        )
        grads = {}
        for name in wanted:
            array = arrays[name]
            summed = name.startswith("student_") and name != "student_hidden"
            wide = torch.float64 if dtype == torch.float64 else computing_dtype(xp, array)
            grads[name] = torch.zeros_like(array, dtype=wide if summed else array.dtype)
        return values, grads
