"""States of a batch: what a model's logits are made of, and which positions count."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

import amidmath as am
from amidmath.integrations.common.rows.batches import counted, targets
from amidmath.integrations.jax_loop.models.decoder import Decoder

Array = jax.Array


def held(states: am.Hidden) -> am.Hidden:
    """The same states and head, without gradients."""
    constant: am.Hidden = jax.tree.map(jax.lax.stop_gradient, states)
    return constant


def cooled(states: am.Hidden, temperature: Array) -> am.Hidden:
    """States whose logits are divided by a temperature; not with a soft cap."""
    head = states.head
    if head.bias is not None:
        head = replace(head, bias=head.bias / temperature)
    return am.Hidden(states.states / temperature, head, states.vocab, states.chunk_rows)


Reference = am.Hidden | am.TopK
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
    return held(states_of(nnx.merge(graph, parameters), batch))


def positions_of(batch: Batch) -> Positions:
    """The positions of a batch (B, L) that count."""
    return Positions(counted(batch), targets(batch), batch.get("source"))


def states_of(model: Decoder, batch: Batch) -> am.Hidden:
    """A model's states for a batch (B, L)."""
    hidden = model.states(batch["input_ids"], batch["segments"], batch["positions"])
    return am.Hidden(hidden, model.head())
