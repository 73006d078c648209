"""The forward model and the data term as functions of JAX, with reverse-mode derivatives.

The work is done by elastofast in host memory (``jax.pure_callback``), in float64 but for `force` and `sensitivity`,
which keep float32; results have the dtype of the arguments. The functions work under ``jit``, ``grad``, ``vjp``,
``jacrev`` and ``vmap``, which hands a whole batch to one call. `force`, `sensitivity` and `solve_forward` can be
differentiated any number of times, because each one's derivatives are the other ones; `misfit` once. Forward mode
(``jvp``, ``jacfwd``, ``hessian``) is not available for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..backend.processors import side_by_side, threads
from ..boundary import Boundary
from ..forward import solve as forward
from ..forward.form import ElasticForm
from ..misfit.fidelity import Fidelity

__all__ = ["force", "misfit", "sensitivity", "solve_forward"]

_one_at_a_time = Lock()  # a Fidelity belongs to one thread, but compiled code may call it from several


def force(form: ElasticForm, x: Any, u: Any) -> jax.Array:
    """K(x) u.

    Parameters
    ----------
    form : ElasticForm
    x : array_like, shape (..., *node_shape)
        Modulus in pascals.
    u : array_like, shape (..., d, *node_shape)
        Displacement in metres. Batch axes of the arguments broadcast.

    Returns
    -------
    jax.Array, shape (..., d, *node_shape)
        Newtons (2-D: per metre of thickness).

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit.
    """
    x, u = _broadcast(form, x=x, u=u)
    return _force(form, x, u)


def sensitivity(form: ElasticForm, u: Any, v: Any) -> jax.Array:
    """D(u)^T v, shape (..., *node_shape): the derivative of v^T K(x) u by the modulus; arguments as of `force`."""
    u, v = _broadcast(form, u=u, v=v)
    return _sensitivity(form, u, v)


def solve_forward(
    form: ElasticForm,
    x: Any,
    load: Boundary,
    *,
    force: Any = None,
    rtol: float = 1e-8,
    on_failure: str = "raise",
) -> jax.Array:
    """Displacement u with K(x) u = f on the loaded dofs and u as given on the fixed ones.

    As `elastofast.solve_forward`. Each derivative costs one more solve.

    Parameters
    ----------
    form : ElasticForm
    x : array_like, shape (..., *node_shape)
        Modulus in pascals, positive.
    load : Boundary
        Fixed and loaded dofs, without open ones.
    force : array_like, shape (..., d, *node_shape), optional
        Forces on the loaded dofs in place of those of the load; other entries are ignored.
    rtol : float
        Relative tolerance of the solves. Derivatives are as accurate.
    on_failure : {"raise", "inf"}
        As of `elastofast.solve_forward`. An error inside of compiled code reaches the caller as a
        ``jax.errors.JaxRuntimeError`` with our message.

    Returns
    -------
    jax.Array, shape (..., d, *node_shape)

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """
    forward.check_problem(form, load, rtol)
    forward.check_on_failure(on_failure)
    x, f = _broadcast(form, x=x, force=load.force if force is None else force)
    return _solve(_Problem(form, load, rtol, on_failure), x, f)


def misfit(fidelity: Fidelity, x: Any) -> jax.Array:
    """The data term J(x) = 1/2 r^T Gamma^-1 r of `elastofast.Fidelity`; differentiable once.

    Parameters
    ----------
    fidelity : Fidelity
        Of a measurement in host memory, with the exact gradient. With ``on_failure="inf"`` it answers a modulus that
        cannot be solved with an infinite value and a gradient of zeros, so that line searches and samplers go on.
    x : array_like, shape (..., *node_shape)
        Modulus in pascals, positive.

    Returns
    -------
    jax.Array, shape (...)

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> fidelity = ef.Fidelity(m, on_failure="inf")  # doctest: +SKIP
    >>> slope = jax.grad(lambda z: misfit(fidelity, jnp.exp(z)))(z)  # doctest: +SKIP
    """
    if not isinstance(fidelity, Fidelity):
        raise TypeError(f"fidelity must be a Fidelity, such as ef.Fidelity(m), got {type(fidelity).__name__}")
    if fidelity.kind != "exact":
        raise ValueError("fidelity has the gradient 'frozen', which is no derivative: use 'exact'")
    (x,) = _broadcast(fidelity.measurement.form, x=x)
    return _misfit(fidelity, x)


def _broadcast(form: ElasticForm, **fields: Any) -> list[jax.Array]:
    """Fields of one floating dtype, with one batch shape; ``x`` is a node field, the others are dof fields."""
    if not isinstance(form, ElasticForm):
        raise TypeError(f"form must be an ElasticForm, got {type(form).__name__}")
    arrays = {name: jnp.asarray(field) for name, field in fields.items()}
    dtype = jnp.result_type(*arrays.values(), jnp.float32)
    tails = {name: form.node_shape if name == "x" else form.dof_shape for name in arrays}
    batches = []
    for name, a in arrays.items():
        if a.shape[max(a.ndim - len(tails[name]), 0) :] != tails[name]:
            raise ValueError(f"{name} must have shape (..., {', '.join(map(str, tails[name]))}), got {a.shape}")
        batches.append(a.shape[: a.ndim - len(tails[name])])
    batch = jnp.broadcast_shapes(*batches)
    return [jnp.broadcast_to(a.astype(dtype), batch + tails[name]) for name, a in arrays.items()]


@dataclass(frozen=True)
class _Host:
    """Work in NumPy as a callback. Callbacks with the same work for the same objects are equal and compiled once."""

    work: Callable[..., Any]
    owner: Any
    dtype: Any

    def __call__(self, *fields):
        found = self.work(self.owner, *(np.asarray(a) for a in fields))
        return jax.tree.map(lambda a: np.asarray(a, self.dtype), found)


def _on_host(work: Callable[..., Any], owner: Any, shapes: list[tuple[int, ...]], *fields: jax.Array) -> Any:
    """Results of NumPy work, with the dtype of the fields. Under vmap all fields have the same leading axes."""
    dtype = fields[0].dtype
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.pure_callback(_Host(work, owner, dtype), results, *fields, vmap_method="broadcast_all")


# ------------------------------------------------------------------------------------------------------ the three maps


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _force(form, x, u):
    return _on_host(_forces, form, [u.shape], x, u)[0]


def _forces(form, x, u):
    return [form.force(x, u)]


def _force_forth(form, x, u):
    return _force(form, x, u), (x, u)


def _force_back(form, saved, g):
    x, u = saved
    return _sensitivity(form, u, g), _force(form, x, g)


_force.defvjp(_force_forth, _force_back)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sensitivity(form, u, v):
    return _on_host(_sensitivities, form, [_batch(u, form.dof_shape) + form.node_shape], u, v)[0]


def _sensitivities(form, u, v):
    return [form.sensitivity(u, v)]


def _sensitivity_forth(form, u, v):
    return _sensitivity(form, u, v), (u, v)


def _sensitivity_back(form, saved, g):
    u, v = saved
    return _force(form, g, v), _force(form, g, u)


_sensitivity.defvjp(_sensitivity_forth, _sensitivity_back)


class _Problem(NamedTuple):
    """A forward problem but for its modulus and forces; ``still``: fixed dofs do not move, whatever the load says."""

    form: ElasticForm
    load: Boundary
    rtol: float
    on_failure: str
    still: bool = False


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solve(problem, x, f):
    return _on_host(_displacements, problem, [f.shape], x, f)[0]


def _displacements(problem, x, f):
    form, load, rtol, on_failure, still = problem
    moduli = x.reshape(-1, *form.node_shape).astype(np.float64)
    forces = np.where(load.loaded, f.reshape(-1, *form.dof_shape).astype(np.float64), 0.0)

    def solve(k):
        own = Boundary(load.fixed, None if still else load.displacement, forces[k])
        return forward.solve_forward(form, moduli[k], own, rtol, on_failure=on_failure)

    found = side_by_side(solve, range(len(moduli)), threads(form.geometry.n_nodes, len(moduli)))
    return [np.stack(found).reshape(f.shape)]


def _solve_forth(problem, x, f):
    u = _solve(problem, x, f)
    return u, (x, u)


def _solve_back(problem, saved, g):
    """With z = K^-1 g: -D(u)^T z by the modulus, and z by the forces; zero where there is no solution."""
    x, u = saved
    solved = jnp.isfinite(u)
    z = _solve(problem._replace(still=True), x, jnp.where(solved, g, 0.0))
    u, z = (jnp.where(solved, a, 0.0) for a in (u, z))
    return -_sensitivity(problem.form, u, z), z


_solve.defvjp(_solve_forth, _solve_back)


# ----------------------------------------------------------------------------------------------------------- data term


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _misfit(fidelity, x):
    return _misfit_forth(fidelity, x)[0]


def _misfit_forth(fidelity, x):
    return _on_host(_misfits, fidelity, [_batch(x, fidelity.measurement.geometry.node_shape), x.shape], x)


def _misfits(fidelity, x):
    with _one_at_a_time:
        return list(fidelity(x.astype(np.float64)))


def _misfit_back(fidelity, gradient, g):
    return (g.reshape(g.shape + (1,) * (gradient.ndim - g.ndim)) * gradient,)


_misfit.defvjp(_misfit_forth, _misfit_back)


def _batch(field, tail):
    return field.shape[: field.ndim - len(tail)]
