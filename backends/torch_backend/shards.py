"""torch: the ranks of a process group, each with a part of the vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.torch_backend import closed_forms
from amidmath.pairs.sharded import ShardedRows


def ranks(group: Any) -> "GroupRanks":
    """The ranks of a process group, or of a one-dimensional device mesh.

    Raises:
        TypeError: neither of them, or torch without torch.distributed.
        ValueError: a mesh of more dimensions, or a group that this process is not in.
    """
    if not dist.is_available():
        raise TypeError("ranks need torch.distributed, which this build of torch lacks")
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(
                f"ranks must be a one-dimensional DeviceMesh, such as mesh['tensor'], got {group!r}"
            )
        group = group.get_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("ranks must be a group that this process belongs to, got another's")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "ranks must be a torch.distributed ProcessGroup or a one-dimensional DeviceMesh for "
            f"torch tensors, got {type(group).__name__}: {group!r}"
        )
    return GroupRanks(group)


@dataclass(frozen=True)
class GroupRanks:
    """See :class:`amidmath.pairs.sharded.Ranks`."""

    group: dist.ProcessGroup

    @property
    def index(self) -> int:
        """The rank of this process in the group."""
        return dist.get_rank(self.group)

    def total(self, x: Array) -> Array:
        """Summed in place."""
        dist.all_reduce(x, dist.ReduceOp.SUM, group=self.group)
        return x

    def largest(self, x: Array) -> Array:
        """The maximum, in place."""
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x

    def gathered(self, x: Array) -> Array:
        """One after the other, in the order of the ranks."""
        out = x.new_empty((dist.get_world_size(self.group), *x.shape))
        dist.all_gather(list(out.unbind()), x, group=self.group)
        return out

    def shard(self, name: str, array: Array) -> Array:
        """The local part of a DTensor that is sharded over its last axis, or the part itself."""
        return self._local(name, array, array.ndim - 1)

    def replica(self, name: str, array: Array) -> Array:
        """A replicated DTensor as a plain tensor, or that tensor itself."""
        return self._local(name, array, None)

    def _local(self, name: str, array: Array, axis: int | None) -> Array:
        """This rank's part of a DTensor.

        Raises:
            ValueError: a DTensor on other ranks, or placed otherwise.
        """
        if not _is_dtensor(array):
            return array
        from torch.distributed.tensor import Replicate, Shard

        here, mesh = dist.get_process_group_ranks(self.group), array.device_mesh
        if mesh.ndim != 1 or mesh.mesh.tolist() != here:
            raise ValueError(
                f"{name} must be a DTensor on the one-dimensional mesh of the ranks {here} of the "
                f"group, or its local part, got one on {mesh!r}"
            )
        wanted = Replicate() if axis is None else Shard(axis)
        if array.placements != (wanted,):
            raise ValueError(
                f"{name} must have the placement {wanted!r} as a DTensor, got {array.placements!r}"
            )
        return array.to_local()

    def whole(self, shard: Array, like: Array) -> Array:
        """A DTensor of the kind of a DTensor."""
        if not _is_dtensor(like):
            return shard
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )

    def values(self, form: ShardedRows, operands: tuple[Array, ...]) -> Array:
        """Under autograd: each rank scales the partial derivatives that it has."""
        return closed_forms.differentiable(form, -1, operands)

    def partials(
        self, form: ShardedRows, operands: tuple[Array, ...], needs: tuple[bool, ...]
    ) -> tuple[Array, Partials]:
        """Outside of autograd."""
        return closed_forms.run(form, operands, needs)


def _is_dtensor(array: Array) -> bool:
    """Whether it is a DTensor; that module takes its time to import, and theirs is imported."""
    if not hasattr(array, "placements"):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(array, DTensor)
