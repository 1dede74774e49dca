"""Counted loops in LLVM's form."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

Carried = tuple[Any, ...]


def counted(
    builder: ir.IRBuilder,
    start: Any,
    stop: Any,
    step: int,
    body: Callable[..., Carried | None],
    carried: Carried = (),
) -> Carried:
    """A loop from ``start`` up to ``stop``; what it carries at its end.

    Args:
        builder: where instructions go; afterwards it is behind the loop.
        start: the first index.
        stop: the index that is not reached.
        step: from one index to the next.
        body: called once with the index and what is carried; gives what the next turn carries.
        carried: what the first turn gets.
    """
    b, function = builder, builder.function
    before = b.block
    head = function.append_basic_block("head")
    inside = function.append_basic_block("body")
    after = function.append_basic_block("after")
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(start.type)
    index.add_incoming(start, before)
    phis = tuple(b.phi(value.type) for value in carried)
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", index, stop), inside, after)
    b.position_at_end(inside)
    new = body(index, *phis) or ()
    following = b.add(index, ir.Constant(start.type, step))
    index.add_incoming(following, b.block)
    for phi, value in zip(phis, new, strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return phis
