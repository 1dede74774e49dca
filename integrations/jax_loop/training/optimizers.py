"""Optax's optimisers and learning rates by the names that the arguments have."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from amidmath.integrations.jax_loop.settings.config import JaxConfig


def learning_rate(config: JaxConfig, total: int) -> optax.Schedule:
    """The learning rate at every optimiser step, counted from 0, of ``total``; as transformers'."""
    peak, asked = config.learning_rate, config.warmup_steps
    warmup = int(asked) if asked >= 1 else math.ceil(asked * total)
    rest = max(1, total - warmup)
    if config.lr_scheduler_type == "cosine":
        after = optax.cosine_decay_schedule(peak, rest)
    elif config.lr_scheduler_type == "linear":
        after = optax.linear_schedule(peak, 0.0, rest)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0 or config.lr_scheduler_type == "constant":
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def optimizer(
    config: JaxConfig, total: int, decays: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """The optimiser of a run, clipping included.

    Args:
        config: which, and its numbers.
        total: optimiser steps of the run.
        decays: of a tree of parameters, which of them weight decay applies to.
    """
    rate = learning_rate(config, total)
    betas = {"b1": config.adam_beta1, "b2": config.adam_beta2}
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": decays}
    if config.optim == "adamw":
        made = optax.adamw(rate, **betas, eps=config.adam_epsilon, **decay)
    elif config.optim == "lion":
        made = optax.lion(rate, **betas, **decay)
    elif config.optim == "adafactor":
        made = _shrinking(optax.adafactor(rate), rate, config.weight_decay, decays)
    else:
        made = optax.chain(
            optax.add_decayed_weights(config.weight_decay, decays), optax.sgd(rate, momentum=None)
        )
    if config.max_grad_norm:
        made = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), made)
    return made


def _shrinking(
    rule: optax.GradientTransformation,
    rate: optax.Schedule,
    weight_decay: float,
    decays: Callable[[Any], Any],
) -> optax.GradientTransformation:
    """A rule with decoupled weight decay, which is times the learning rate as everywhere else.

    Adafactor's own in Optax is not.
    """
    shrink = optax.chain(
        optax.set_to_zero(),
        optax.add_decayed_weights(weight_decay, decays),
        optax.scale_by_learning_rate(rate),
    )

    def init(params: Any) -> Any:
        return rule.init(params), shrink.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        steps, first = rule.update(updates, state[0], params)
        decay, second = shrink.update(updates, state[1], params)
        return jax.tree.map(jnp.add, steps, decay), (first, second)

    return optax.GradientTransformation(init, update)


def trained_parameters(config: JaxConfig) -> nnx.filterlib.Filter:
    """Which parameters train: the adapter, all, or all but embeddings (and a head tied to them)."""
    if config.use_peft:
        return nnx.LoRAParam
    if not config.freeze_embeddings:
        return nnx.Param
    return nnx.All(nnx.Param, nnx.Not(nnx.PathContains("embedding")))


def placed_like(rule: optax.GradientTransformation, trained: Any, mesh: Mesh) -> Any:
    """An optimiser's first state: what belongs to a parameter lies where that does."""
    everywhere = NamedSharding(mesh, P())

    def beside(leaf: jax.ShapeDtypeStruct, parameter: jax.Array) -> Any:
        return parameter.sharding if leaf.shape == parameter.shape else everywhere

    places = optax.tree.map_params(
        rule,
        beside,
        jax.eval_shape(rule.init, trained),
        trained,
        transform_non_params=lambda leaf: everywhere,
    )
    # Compiled, so that it is made where it lies, and no process waits for another one.
    return jax.jit(rule.init, out_shardings=places)(trained)


def decays(parameters: Any) -> Any:
    """Which parameters weight decay applies to: matrices, not biases and norms."""

    def is_matrix(parameter: nnx.Variable[Any]) -> bool:
        axes = [axis for axis in parameter.get_metadata("axes") if axis != "layer"]
        return len(axes) > 1

    return jax.tree.map(is_matrix, parameters, is_leaf=lambda x: isinstance(x, nnx.Variable))
