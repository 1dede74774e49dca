"""Row programs as the source of Triton kernels.

A row is computed by one program, whose sweeps are loops over blocks of tokens; or, where there are
few rows, by several that share its tokens. Those wait for each other between sweeps by being
launched anew: a launch leaves each program's part of the reductions in a scratch array, and the
next one begins by putting the parts together, always in the same order.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from amidmath.compiler.program import RowProgram
from amidmath.compiler.text import Language, Lines, Listing, Loop, indented, listed, number

_COMPARISONS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_OPERATIONS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    # Triton's interpreter takes a bare comparison for a float where it spreads one of the row.
    **{op: f"tl.where({{}} {sign} {{}}, True, False)" for op, sign in _COMPARISONS.items()},
    "and": "{} & {}",
    "or": "{} | {}",
    "not": "{} == 0",
    "select": "tl.where({}, {}, {})",
    **{op: f"tl.{op}({{}})" for op in ("exp", "log", "sqrt", "abs")},
    **{op: f"{op}({{}})" for op in ("expm1", "log1p", "asin")},
    "log1p_near": "log1p({})",
}
_NEVER = 'float("-inf")'  # the logit of a token that a row does not have


def _read(which: int, position: str) -> str:
    if position == "i":
        return f"tl.load(input{which} + i, mask=i < V, other={_NEVER}).to(REAL)"
    return f"tl.load(input{which} + {position}).to(REAL)"


LANGUAGE = Language(
    "Triton",
    {op: f"({text})" for op, text in _OPERATIONS.items()},
    lambda value: number(value, 'float("inf")', "True", "False"),
    _read,
    "i",
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
    bodies = _Shared(listing).kernels() if split else [_Whole(listing).lines()]
    if masked:
        otherwise = [*([[]] * (len(bodies) - 1)), _left_out(listing, split)]
        bodies = [_masked(b, o) for b, o in zip(bodies, otherwise, strict=True)]
    lines: list[str] = []
    for j, body in enumerate(bodies):
        lines += [f"def rows{j}({', '.join(head)}):", *indented([*start, *body]), ""]
    passed = () if double else tuple(listing.params)
    slots = len(_slots(listing)) if split else 0
    return Source("\n".join(lines), len(bodies), arrays, passed, slots)


def _masked(body: list[str], otherwise: list[str]) -> list[str]:
    """What is done of a row that the mask keeps, and of one that it leaves out."""
    lines = ["if tl.load(keep_at + row * keep_stride) != 0:", *indented(body)]
    return [*lines, "else:", *indented(otherwise)] if otherwise else lines


def _once(name: str) -> bool:
    """Whether the array is read once a row."""
    return name.startswith("knob") or name in ("scale", "keep")


def _assigned(lines: Lines) -> list[str]:
    return [f"{name} = {expression}" for name, expression in lines]


def _row_numbers(listing: Listing) -> list[str]:
    names = [name for name in listing.arrays if _once(name)]
    return [f"{name} = tl.load({name}_at + row * {name}_stride).to(REAL)" for name in names]


def _over_tokens(lines: Iterable[str], first: str = "0", last: str = "V") -> list[str]:
    loop = [f"for start in range({first}, {last}, BLOCK):", "    i = start + tl.arange(0, BLOCK)"]
    return [*loop, *indented(lines)]


def _same_everywhere(which: int, value: str) -> str:
    return f"tl.store(partial{which} + i, tl.full((BLOCK,), 0.0, REAL) + {value}, mask=i < V)"


def _left_out(listing: Listing, split: bool) -> list[str]:
    """Zeros, for a row that the mask leaves out."""
    zeros = [f"tl.store({name}, 0.0)" for name in ("value", *_partials(listing))]
    lines = _by_the_first(zeros) if split else zeros
    stores = [_same_everywhere(j, "0.0") for j in listing.logits]
    span = _SHARE if split else ()
    return [*lines, *(_over_tokens(stores, *span) if stores else [])]


def _partials(listing: Listing) -> list[str]:
    return [f"partial{j}" for j, _ in listing.knobs]


def _results(listing: Listing) -> list[str]:
    """The numbers of a row, written."""
    return [
        f"tl.store(value, {listing.value})",
        *(f"tl.store(partial{j}, {name})" for j, name in listing.knobs),
    ]


def _spread(listing: Listing, *span: str) -> list[str]:
    """Derivatives that are the same for all tokens, written."""
    stores = [_same_everywhere(j, name) for j, name in listing.uniform]
    return _over_tokens(stores, *span) if stores else []


def _sweep(loop: Loop, *span: str) -> list[str]:
    """The loop over the tokens; reductions are left in a block's accumulators."""
    lines = []
    for kind, name, _ in loop.reductions:
        lowest = "0.0" if kind == "sum" else _NEVER
        lines += [f"{name}_all = tl.full((BLOCK,), {lowest}, REAL)"]
        if kind == "argmax":
            lines += [f"{name}_place = tl.zeros((BLOCK,), tl.int32)"]
    body = _assigned(loop.lines)
    for kind, name, token in loop.reductions:
        if kind == "sum":
            body += [f"{name}_all += {token}"]
            continue
        body += [f"above = {token} > {name}_all"]  # a NaN shows in the sums
        body += [f"{name}_all = tl.where(above, {token}, {name}_all)"]
        if kind == "argmax":
            body += [f"{name}_place = tl.where(above, i, {name}_place)"]
    body += [f"tl.store(partial{j} + i, {token}, mask=i < V)" for j, token in loop.outputs]
    # Where a gradient is written over its logits, no thread may still be looking for one of them.
    barrier = ["tl.debug_barrier()"] if loop.outputs else []
    return [*lines, *barrier, *_over_tokens(body, *span)]


def _reduced(kind: str, name: str, one: str, places: str) -> list[str]:
    """A number of the row from several; of equal maxima the first."""
    if kind == "sum":
        return [f"{name} = tl.sum({one}, axis=0)"]
    if kind == "max":
        return [f"{name} = tl.max({one}, axis=0)"]
    best = f"{one} == tl.max({one}, axis=0)"
    return [f"{name} = tl.min(tl.where({best}, {places}, V), axis=0)"]


@dataclass(frozen=True)
class _Whole:
    """A row to a program."""

    listing: Listing

    def lines(self) -> list[str]:
        """The function's body."""
        lines = _row_numbers(self.listing)
        for before, loop in self.listing.steps:
            lines += _assigned(before)
            if loop is not None:
                lines += _sweep(loop)
                for kind, name, _ in loop.reductions:
                    lines += _reduced(kind, name, f"{name}_all", f"{name}_place")
        return [*lines, *_results(self.listing), *_spread(self.listing)]


_SHARE = ("first", "last")


def _slots(listing: Listing) -> dict[str, int]:
    """Where the parts of each reduction lie in the scratch array, an argmax with its maximum."""
    names: list[str] = []
    for _, loop in listing.steps:
        for kind, name, _ in loop.reductions if loop is not None else ():
            names += [name, f"{name}_place"] if kind == "argmax" else [name]
    return {name: j for j, name in enumerate(names)}


def _by_the_first(lines: list[str]) -> list[str]:
    return ["if part == 0:", *indented(lines)]


class _Shared:
    """A row to several programs, a sweep to a launch."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.slots = _slots(listing)

    def kernels(self) -> list[list[str]]:
        """The functions' bodies."""
        sweeps = [loop for _, loop in self.listing.steps if loop is not None]
        bodies = [[*self._known(j), *self._swept(loop)] for j, loop in enumerate(sweeps)]
        end = [*_by_the_first(_results(self.listing)), *_spread(self.listing, *_SHARE)]
        after = _assigned(self.listing.steps[-1][0])
        if sweeps[-1].reductions:
            return [*bodies, [*self._known(len(sweeps)), *end]]
        return [*bodies[:-1], [*bodies[-1], *after, *end]]

    def _known(self, at: int) -> list[str]:
        """The numbers of the row that are known before a step, from those before it."""
        lines = [f"scratch = scratch_at + row * {len(self.slots)} * SPLITS"]
        lines += _row_numbers(self.listing)
        lines += ["parts = tl.arange(0, SPLITS)"] if at else []
        for before, loop in self.listing.steps[:at]:
            lines += _assigned(before)
            for kind, name, _ in loop.reductions if loop is not None else ():
                places = f"{self._part(f'{name}_place')}.to(tl.int32)" if kind == "argmax" else ""
                lines += [f"{name}_all = {self._part(name)}"]
                lines += _reduced(kind, name, f"{name}_all", places)
        return lines + _assigned(self.listing.steps[at][0])

    def _part(self, name: str) -> str:
        return f"tl.load(scratch + {self.slots[name]} * SPLITS + parts)"

    def _swept(self, loop: Loop) -> list[str]:
        lines = _sweep(loop, *_SHARE)
        for kind, name, _ in loop.reductions:
            lines += _reduced(kind, name, f"{name}_all", f"{name}_place")
            if kind == "argmax":
                lines += self._left(f"{name}_place", name)
                lines += [f"{name} = tl.max({name}_all, axis=0)"]
            lines += self._left(name, name)
        return lines

    def _left(self, slot: str, value: str) -> list[str]:
        """Positions too are left as real numbers, which single precision has exactly to 2²⁴."""
        return [f"tl.store(scratch + {self.slots[slot]} * SPLITS + part, {value})"]
