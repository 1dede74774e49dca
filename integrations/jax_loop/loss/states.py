"""States of a batch: what a model's logits are made of, and which positions count."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import amidmath as am
from amidmath.integrations.common.recipe.measures import (
    first_tokens,
)
from amidmath.integrations.common.rows.batches import counted, targets
from amidmath.integrations.jax_loop.models.decoder import Decoder

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class States:
    """Hidden states (B, L, H) after the last norm, and the head that makes logits of them.

    Args:
        hidden: the states.
        weight: the head's, (V, H); bias, softcap and scale as of :class:`amidmath.Head`.
    """

    hidden: Array
    weight: Array
    bias: Array | None = None
    softcap: float | None = field(default=None, metadata={"static": True})
    scale: float = field(default=1.0, metadata={"static": True})

    @classmethod
    def of(cls, hidden: Array, head: am.Head) -> "States":
        """From a head without a low-rank part."""
        return cls(hidden, head.weight, head.bias, head.softcap, head.scale)

    @property
    def head(self) -> am.Head:
        """The head."""
        return am.Head(self.weight, bias=self.bias, softcap=self.softcap, scale=self.scale)

    def first(self, tokens: int | None) -> "States":
        """States of logits for the first so many tokens alone; None for all."""
        return States.of(self.hidden, first_tokens(self.head, tokens))

    def logits(self, hidden: Array) -> Array:
        """The logits (…, V) of some hidden states (…, H), whole, in float32."""
        outputs = jnp.matmul(hidden, self.weight.T.astype(hidden.dtype))
        outputs = outputs.astype(jnp.float32)
        if self.bias is not None:
            outputs += self.bias.astype(jnp.float32)
        logits: Array = self.head.projection.logits(outputs, jnp)
        return logits

    def held(self) -> "States":
        """The same, without gradients."""
        constant: States = jax.tree.map(jax.lax.stop_gradient, self)
        return constant

    def cooled(self, temperature: Array) -> "States":
        """States whose logits are divided by a temperature; not with a soft cap."""
        bias = None if self.bias is None else self.bias / temperature
        return replace(self, hidden=self.hidden / temperature, bias=bias)


Reference = States | am.TopK
"""A teacher's word on a batch: hidden states with a head, or its most probable tokens."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions:
    """The parts of a batch that the loss needs beside states.

    Args:
        mask: (B, L), which positions count.
        targets: (B, L), the token that each predicts, -100 for none.
        source: (B,), who wrote a row (``STUDENT_ROWS``); None for anyone.
    """

    mask: Array
    targets: Array
    source: Array | None = None


Batch = Mapping[str, Array]


def reference_of(graph: Any, parameters: Any, batch: Batch) -> Reference | None:
    """The teacher's reference for a batch (B, L): its states, the batch's lists, or nothing."""
    if graph is None:
        has_lists = "top_indices" in batch
        return am.TopK(batch["top_log_probs"], batch["top_indices"]) if has_lists else None
    return states_of(nnx.merge(graph, parameters), batch).held()


def positions_of(batch: Batch) -> Positions:
    """The positions of a batch (B, L) that count."""
    return Positions(counted(batch), targets(batch), batch.get("source"))


def states_of(model: Decoder, batch: Batch) -> States:
    """A model's states for a batch (B, L)."""
    hidden = model.states(batch["input_ids"], batch["segments"], batch["positions"])
    return States.of(hidden, model.head())
