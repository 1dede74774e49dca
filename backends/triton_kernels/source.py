"""Row programs as the source of Triton kernels.

A row is computed by one program, whose sweeps are loops over blocks of tokens; or, where there are
few rows, by several that share its tokens. Those wait for each other between sweeps by being
launched anew: a launch leaves each program's part of the reductions in a scratch array, and the
next one begins by putting the parts together, always in the same order.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from amidmath.compiler.program import RowProgram
from amidmath.compiler.text import (
    Language,
    Line,
    Listing,
    Loop,
    Results,
    indented,
    listed,
    number,
)

_NEVER = 'float("-inf")'  # the logit of a token that a row does not have

OPERATIONS = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "abs": "tl.abs({})",
    "exp": "tl.exp({})",
    "expm1": "expm1({})",
    "log": "tl.log({})",
    "log1p": "log1p({})",
    "log1p_near": "log1p({})",
    "sqrt": "tl.sqrt({})",
    "asin": "asin({})",
    # Triton's interpreter takes a bare comparison for a float where it spreads one of the row.
    "lt": "tl.where({} < {}, True, False)",
    "le": "tl.where({} <= {}, True, False)",
    "eq": "tl.where({} == {}, True, False)",
    "ne": "tl.where({} != {}, True, False)",
    "and": "({} & {})",
    "or": "({} | {})",
    "not": "({} == 0)",
    "select": "tl.where({}, {}, {})",
}
LANGUAGE = Language(
    operations=OPERATIONS,
    constant=lambda value: number(value, 'float("inf")', "True", "False"),
    logits=lambda which: f"tl.load(input{which} + i, mask=i < V, other={_NEVER}).to(REAL)",
    logit=lambda which, place: f"tl.load(input{which} + {place}).to(REAL)",
    positions="i",
)


@dataclass(frozen=True)
class Source:
    """Kernels to be launched one after the other.

    Args:
        text: functions ``rows0``, ``rows1``, …; their arguments are the address and the row stride
            of each array, the numbers, V, and, if rows are shared, the scratch array's address and
            how many tokens a program takes; then the constants REAL, BLOCK and, if rows are
            shared, SPLITS, by how many programs.
        kernels: how many functions there are.
        arrays: the names of the arrays.
        params: which of the program's numbers are passed.
        slots: how many numbers of a row each program leaves in the scratch array.
    """

    text: str
    kernels: int
    arrays: tuple[str, ...]
    params: tuple[int, ...]
    slots: int


def source(program: RowProgram, *, masked: bool, double: bool, split: bool) -> Source:
    """The kernels of a row program; raises :class:`UnsupportedError` where there are none.

    Args:
        program: what is computed.
        masked: whether there is an array "keep".
        double: whether numbers are literals, as those that are passed are in single precision.
        split: whether several programs share a row.
    """
    listing = listed(program.scheduled(keeping=False), LANGUAGE)
    arrays = (*listing.arrays, *(["keep"] if masked else []))
    head = [f"{name}_at, {name}_stride" for name in arrays]
    head += [] if double else [f"param{j}" for j in listing.params]
    head += ["V", *(["scratch_at", "share"] if split else [])]
    head += [f"{c}: tl.constexpr" for c in ("REAL", "BLOCK", *(["SPLITS"] if split else []))]
    start = ["row = tl.program_id(0).to(tl.int64)"]
    if split:
        start += ["part = tl.program_id(1)", "first = part * share"]
        start += ["last = tl.minimum(first + share, V)"]
    start += [f"{name} = {name}_at + row * {name}_stride" for name in arrays if not _once(name)]
    if double:
        numbers = [(j, program.numbers[j]) for j in listing.params]
        start += [f"param{j} = tl.full((), {value!r}, REAL)" for j, value in numbers]
    bodies = _Shared(listing).kernels() if split else [_whole(listing)]
    if masked:
        otherwise = [*([[]] * (len(bodies) - 1)), _written(listing.left_out, split)]
        bodies = [_masked(b, o) for b, o in zip(bodies, otherwise, strict=True)]
    lines: list[str] = []
    for j, body in enumerate(bodies):
        lines += [f"def rows{j}({', '.join(head)}):", *indented([*start, *body]), ""]
    passed = () if double else tuple(listing.params)
    slots = len(_slots(listing)) if split else 0
    return Source("\n".join(lines), len(bodies), arrays, passed, slots)


def _masked(body: list[str], otherwise: list[str]) -> list[str]:
    """A body for rows that the mask keeps, and one for those that it leaves out."""
    lines = ["if tl.load(keep_at + row * keep_stride) != 0:", *indented(body)]
    return [*lines, "else:", *indented(otherwise)] if otherwise else lines


def _once(name: str) -> bool:
    """Tell an array that is read once a row."""
    return name.startswith("knob") or name in ("scale", "keep")


def _assigned(lines: Iterable[Line]) -> list[str]:
    return [f"{line.name} = {line.expression}" for line in lines]


def _row_numbers(listing: Listing) -> list[str]:
    names = [name for name in listing.arrays if _once(name)]
    return [f"{name} = tl.load({name}_at + row * {name}_stride).to(REAL)" for name in names]


def _over_tokens(lines: Iterable[str], shared: bool) -> list[str]:
    """A loop over the tokens that the program takes."""
    span = "first, last" if shared else "0, V"
    loop = [f"for start in range({span}, BLOCK):", "    i = start + tl.arange(0, BLOCK)"]
    return [*loop, *indented(lines)]


def _written(results: Results, shared: bool) -> list[str]:
    """The numbers of a row, and derivatives that are the same for all tokens."""
    once = [f"tl.store({array}, {value})" for array, value in results.once]
    spread = [
        f"tl.store({array} + i, tl.full((BLOCK,), 0.0, REAL) + {value}, mask=i < V)"
        for array, value in results.spread
    ]
    lines = ["if part == 0:", *indented(once)] if shared else once
    return [*lines, *(_over_tokens(spread, shared) if spread else [])]


def _sweep(loop: Loop, shared: bool) -> list[str]:
    """The loop over the tokens; reductions are left in a block's accumulators."""
    lines = [f"{name}_all = tl.full((BLOCK,), 0.0, REAL)" for name, _ in loop.totals]
    for name, place, _ in loop.extremes:
        lines += [f"{name}_all = tl.full((BLOCK,), {_NEVER}, REAL)"]
        lines += [f"{place}_all = tl.zeros((BLOCK,), tl.int32)"] if place else []
    body = _assigned(loop.lines)
    body += [f"{name}_all += {of}" for name, of in loop.totals]
    for name, place, of in loop.extremes:
        body += [f"above = {of} > {name}_all"]  # a NaN shows in the sums
        body += [f"{name}_all = tl.where(above, {of}, {name}_all)"]
        body += [f"{place}_all = tl.where(above, i, {place}_all)"] if place else []
    body += [f"tl.store({array} + i, {value}, mask=i < V)" for array, value in loop.stores]
    # Where a gradient is written over its logits, no thread may still be looking for one of them.
    barrier = ["tl.debug_barrier()"] if loop.stores else []
    return [*lines, *barrier, *_over_tokens(body, shared)]


def _reduced(loop: Loop) -> list[str]:
    """The numbers of the row from their accumulators; of equal maxima the first."""
    lines = [f"{name} = tl.sum({name}_all, axis=0)" for name, _ in loop.totals]
    for name, place, _ in loop.extremes:
        lines += [f"{name} = tl.max({name}_all, axis=0)"]
        if place:
            places = f"tl.where({name}_all == {name}, {place}_all, V)"
            lines += [f"{place} = tl.min({places}, axis=0)"]
    return lines


def _whole(listing: Listing) -> list[str]:
    """The body of the function in which a program has a row for itself."""
    lines = _row_numbers(listing)
    for before, loop in listing.steps:
        lines += [*_assigned(before), *_sweep(loop, shared=False), *_reduced(loop)]
    return [*lines, *_assigned(listing.after), *_written(listing.results, shared=False)]


def _parts(loop: Loop) -> dict[str, str]:
    """The numbers that a program leaves of a sweep for the others, and the types to read them as.

    Positions too are left as real numbers, which single precision has exactly to 2²⁴.
    """
    parts = {total.name: "REAL" for total in loop.totals}
    for name, place, _ in loop.extremes:
        parts |= {name: "REAL"} | ({place: "tl.int32"} if place else {})
    return parts


def _slots(listing: Listing) -> dict[str, int]:
    """The places of the reductions' parts in the scratch array."""
    names = [name for step in listing.steps for name in _parts(step.loop)]
    return {name: slot for slot, name in enumerate(names)}


class _Shared:
    """A row to several programs, a sweep to a launch."""

    def __init__(self, listing: Listing) -> None:
        self.listing, self.slots = listing, _slots(listing)

    def kernels(self) -> list[list[str]]:
        """The functions' bodies."""
        steps = self.listing.steps
        bodies = [[*self._known(j), *self._swept(step.loop)] for j, step in enumerate(steps)]
        written = _written(self.listing.results, shared=True)
        if _parts(steps[-1].loop):
            return [*bodies, [*self._known(len(steps)), *written]]
        return [*bodies[:-1], [*bodies[-1], *_assigned(self.listing.after), *written]]

    def _known(self, at: int) -> list[str]:
        """The numbers of the row that are known before a step, from those before it."""
        lines = [f"scratch = scratch_at + row * {len(self.slots)} * SPLITS"]
        lines += _row_numbers(self.listing)
        lines += ["parts = tl.arange(0, SPLITS)"] if at else []
        for before, loop in self.listing.steps[:at]:
            lines += _assigned(before)
            for name, type_ in _parts(loop).items():
                lines += [f"{name}_all = tl.load({self._place(name)} + parts).to({type_})"]
            lines += _reduced(loop)
        following = [*(step.before for step in self.listing.steps), self.listing.after]
        return lines + _assigned(following[at])

    def _swept(self, loop: Loop) -> list[str]:
        left = [f"tl.store({self._place(name)} + part, {name})" for name in _parts(loop)]
        return [*_sweep(loop, shared=True), *_reduced(loop), *left]

    def _place(self, name: str) -> str:
        return f"scratch + {self.slots[name]} * SPLITS"
