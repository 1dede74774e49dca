"""Traffic of row programs between the processor and the memory, and gradients over logits."""

from dataclasses import dataclass

from amidmath.compiler.graph import reachable
from amidmath.compiler.operations import TOKEN
from amidmath.compiler.schedule import Program, Sweep, computed


@dataclass(frozen=True)
class Traffic:
    """Numbers of a row that are read and written, in rows of logits: 1 is all V of them.

    Args:
        sweeps: for each sweep, the inputs that it reads and the derivatives that it writes.
        inputs: the inputs that the program reads at all.
        outputs: the derivatives by logits that it writes.
    """

    sweeps: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def uncached(self, *itemsizes: int) -> int:
        """Bytes a token if every sweep went to the memory.

        Args:
            *itemsizes: bytes of a student's and of a teacher's logit.
        """
        return sum(itemsizes[j] for read, written in self.sweeps for j in (*read, *written))

    def compulsory(self, *itemsizes: int) -> int:
        """Bytes a token if each number is read once and written once, as for ``uncached``."""
        return sum(itemsizes[j] for j in (*self.inputs, *self.outputs))


def traffic(program: Program) -> Traffic:
    """The traffic of a program that keeps nothing in buffers, as on GPUs."""
    moved = [(_inputs(sweep), tuple(j for j, _ in sweep.outputs)) for sweep in program.sweeps]
    partials = list(enumerate(program.partials))
    uniform = [j for j, p in partials[:2] if p is not None and p.kind != TOKEN]
    moved += [((), (j,)) for j in uniform]
    inputs = sorted({j for read, _ in moved for j in read})
    outputs = sorted(j for _, written in moved for j in written)
    return Traffic(tuple(moved), tuple(inputs), tuple(outputs))


def _inputs(sweep: Sweep) -> tuple[int, ...]:
    """The inputs that a sweep reads, for each token."""
    nodes, _ = computed(sweep.roots, {}, 0)
    return tuple(sorted(node.value for node in nodes if node.op == "input"))


def overwritable(program: Program, which: int) -> bool:
    """Tell whether a derivative by logits may be written where the logits are.

    It may if it is written in the last sweep, where each number is read before it is written over,
    and no single logit is read after that.

    Args:
        program: what is computed.
        which: 0 for the student's logits, 1 for the teacher's.
    """
    if not program.sweeps or which not in {j for j, _ in program.sweeps[-1].outputs}:
        return False
    before = set(reachable([root for sweep in program.sweeps for root in sweep.roots]))
    late = [node for node in reachable(program.roots) if node.op == "at" and node not in before]
    return not any(n.op == "input" and n.value == which for n in reachable(late))
