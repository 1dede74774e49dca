"""Every way of running a loss in JAX: transformations, loops, programs that are kept, devices.

A way takes f(x, rows), the sum over the rows. It gives the sum, or None, and its gradient by x, or
what it changes by along :func:`jax_kinds.directions`; of several, those of each.
"""

from __future__ import annotations

import contextlib
import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax_kinds import directions


def eager(f, x, rows):
    return f(x, rows), jax.grad(f)(x, rows)


def jitted(f, x, rows):
    return jax.jit(jax.value_and_grad(f))(x, rows)


def grad_of_jit(f, x, rows):
    return jax.value_and_grad(jax.jit(f))(x, rows)


def vjp(f, x, rows):
    value, pull = jax.vjp(lambda x: f(x, rows), x)
    return value, pull(jnp.ones_like(value))[0]


def jvp(f, x, rows):
    def along(d, x, rows):
        return jax.jvp(lambda x: f(x, rows), (x,), (d,))

    return jax.jit(jax.vmap(along, in_axes=(0, None, None)))(directions(x), x, rows)


def linearize(f, x, rows):
    value, along = jax.linearize(lambda x: f(x, rows), x)
    return value, jnp.stack([along(d) for d in directions(x)])


def jacobian(transform):
    def way(f, x, rows):
        def moved(by, x, rows, d):
            return f(jnp.where(jnp.isfinite(x), x + jnp.tensordot(by, d, 1), x), rows)

        return None, jax.jit(transform(moved))(jnp.zeros(2), x, rows, directions(x))

    return way


def both(x, rows):
    """The rows as they are, and from the last to the first."""
    return jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), (x, rows))


def vmap(f, x, rows):
    return jax.vmap(f)(*both(x, rows)), None


def vmap_of_grad(f, x, rows):
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(f)))(*both(x, rows))
    return values, (grads[0] + grads[1][::-1]) / 2


def grad_of_vmap(f, x, rows):
    def whole(x, rows):
        return jnp.mean(jax.vmap(f)(x, rows))

    value, grads = jax.jit(jax.value_and_grad(whole))(*both(x, rows))
    return value, grads[0] + grads[1][::-1]


def vmap_of_jvp_over_one_argument(f, x, rows):
    twice = jnp.stack([x, x])
    return jax.jit(jax.vmap(jax.value_and_grad(f), in_axes=(0, None)))(twice, rows)


def checkpoint(f, x, rows):
    return jax.jit(jax.value_and_grad(jax.checkpoint(f)))(x, rows)


def scan(f, x, rows):
    def whole(x, rows):
        step = lambda total, row: (total + f(*row), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(()), both(x, rows))[0] / 2

    return jax.jit(jax.value_and_grad(whole))(x, rows)


def lax_map(f, x, rows):
    return jax.lax.map(lambda row: jax.value_and_grad(f)(*row)[0], both(x, rows)), None


def cond(f, x, rows):
    def branch(x, rows, there):
        return jax.lax.cond(there, f, lambda x, rows: jnp.sum(x[:, 0]), x, rows)

    return jax.jit(jax.value_and_grad(branch))(x, rows, True)


def while_loop(f, x, rows):
    def looped(n, x, rows):
        nothing = jnp.zeros(()), jnp.zeros_like(x)
        return jax.lax.fori_loop(0, n, lambda i, _: jax.value_and_grad(f)(x, rows), nothing)

    return jax.jit(looped)(2, x, rows)


def custom_vjp(f, x, rows):
    around = jax.custom_vjp(f)

    def forward(x, rows):
        value, grad = jax.value_and_grad(f)(x, rows)
        return value, grad

    around.defvjp(forward, lambda grad, cotangent: (cotangent * grad, None))
    return jax.value_and_grad(around)(x, rows)


def export(f, x, rows):
    exported = jax.export.export(jax.jit(jax.value_and_grad(f)))(x, rows)
    return reloaded(exported, derivatives=0).call(x, rows)


def grad_of_export(f, x, rows):
    exported = jax.export.export(jax.jit(f))(x, rows)
    return jax.value_and_grad(reloaded(exported, derivatives=1).call)(x, rows)


def reloaded(exported, derivatives):
    """As from a file, where there is what JAX writes one with."""
    if importlib.util.find_spec("flatbuffers") is None:
        return exported  # whose program is in its last form already
    return jax.export.deserialize(exported.serialize(vjp_order=derivatives))


def donated(f, x, rows):
    here = jnp.array(x, copy=True)
    return jax.jit(jax.value_and_grad(f), donate_argnums=0)(here, rows)


def abstract(f, x, rows):
    g = jax.value_and_grad(f)
    shapes = jax.eval_shape(g, x, rows)
    assert [(a.shape, a.dtype) for a in shapes] == [((), x.dtype), (x.shape, x.dtype)]
    traced = jax.make_jaxpr(g)(x, rows)
    return jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *jax.tree.leaves((x, rows)))


def without_jit(f, x, rows):
    with jax.disable_jit():
        return jitted(f, x, rows)


def mesh_of(devices):
    return jax.make_mesh((devices,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))


def sharded_within(f, x, rows, *, devices=1, checked=True):
    """The gradient of every device's own rows."""

    def part(x, rows):
        value, grad = jax.value_and_grad(f)(x, rows)
        return jax.lax.psum(value, "rows"), grad

    options = {"mesh": mesh_of(devices), "out_specs": (P(), P("rows")), "check_vma": checked}
    return jax.jit(jax.shard_map(part, in_specs=P("rows"), **options))(x, rows)


def sharded_around(f, x, rows, *, devices=1, checked=True):
    """The gradient of the sum over the devices."""

    def part(x, rows):
        return jax.lax.psum(f(x, rows), "rows")

    options = {"mesh": mesh_of(devices), "out_specs": P(), "check_vma": checked}
    whole = jax.shard_map(part, in_specs=P("rows"), **options)
    return jax.jit(jax.value_and_grad(whole))(x, rows)


def sharded_forward(f, x, rows, *, devices=1, checked=True):
    def part(x, rows):
        return jax.lax.psum(f(x, rows), "rows")

    options = {"mesh": mesh_of(devices), "out_specs": P(), "check_vma": checked}
    whole = jax.shard_map(part, in_specs=P("rows"), **options)
    along = lambda x, rows, d: jax.jvp(lambda x: whole(x, rows), (x,), (d,))  # noqa: E731
    return jax.jit(along)(x, rows, directions(x)[0])


def on_mesh(f, x, rows, *, devices=1, jit=True, explicit=False):
    """Arrays whose rows are spread over devices, without shard_map."""
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((devices,), ("rows",), axis_types=(kind,))
    spread = jax.NamedSharding(mesh, P("rows"))
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        x, rows = jax.device_put((x, rows), spread)
        g = jax.value_and_grad(f)
        return (jax.jit(g) if jit else g)(x, rows)


def pmapped(f, x, rows, *, devices=1):
    x, rows = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), (x, rows))
    values, grads = jax.pmap(jax.value_and_grad(f))(x, rows)
    return values.sum(), grads.reshape(-1, grads.shape[-1])


WAYS = {
    **{way.__name__: way for way in (eager, jitted, grad_of_jit, vjp, jvp, linearize)},
    "jacfwd": jacobian(jax.jacfwd),
    "jacrev": jacobian(jax.jacrev),
    **{way.__name__: way for way in (vmap, vmap_of_grad, grad_of_vmap)},
    "vmap, rows shared": vmap_of_jvp_over_one_argument,
    **{way.__name__: way for way in (checkpoint, scan, lax_map, cond, while_loop, custom_vjp)},
    **{way.__name__: way for way in (export, grad_of_export, donated, abstract, without_jit)},
}

SHARDED = {
    "within": sharded_within,
    "within, unchecked": partial(sharded_within, checked=False),
    "around": sharded_around,
    "around, unchecked": partial(sharded_around, checked=False),
    "forward": sharded_forward,
    "on a mesh": on_mesh,
    "on a mesh, eager": partial(on_mesh, jit=False),
    "on an explicit mesh": partial(on_mesh, explicit=True),
    "pmap": pmapped,
}
