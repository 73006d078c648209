"""The forward problem: displacement of a body of known modulus under a known load."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import attribute_on, device_of, namespace
from ..boundary import Boundary, check_support
from .form import ElasticForm, as_float, check_modulus
from .protocol import Solver

__all__ = ["solve_forward"]


def solve_forward(form: ElasticForm, x: Any, load: Boundary, rtol: float = 1e-8) -> Any:
    """Displacement u with K(x) u = f on the loaded dofs and u as given on the fixed ones.

    Conjugate gradients with one geometric multigrid cycle as preconditioner on a `Grid` and on large meshes; a sparse
    direct factorisation on a small `Mesh`. Moduli on a GPU are solved there, a batch at once.

    Parameters
    ----------
    form : ElasticForm
        Body and material law.
    x : array_like, shape (..., *node_shape) or (..., N)
        Modulus in pascals, positive; leading axes are a batch.
    load : Boundary
        Fixed and loaded dofs; no dof may be open, because the force there is unknown.
    rtol : float
        Bound for the true relative residual ||f - K u|| / ||f|| on the loaded dofs.

    Returns
    -------
    array, shape (..., d, *node_shape) or (..., d, N)
        Displacement in metres, in the dtype of x.

    Raises
    ------
    TypeError, ValueError
        If x is not positive and finite, shapes do not fit, the load leaves a rigid motion free or has open
        dofs, or rtol is not in (0, 1).
    RuntimeError
        If the residual is not reached; the message says what was.

    Examples
    --------
    >>> import numpy as np, elastofast as ef
    >>> grid = ef.Grid((65, 65), (5e-4, 5e-4))
    >>> form, load = ef.ElasticForm(grid, ef.PlaneStress(0.495)), ef.compression(grid, pressure=100.0)
    >>> u = ef.solve_forward(form, np.full(grid.shape, 1e4), load)
    >>> round(float(u[0, 0, 0]) / 32e-3, 6)  # axial strain is pressure / modulus
    0.01
    """
    if not isinstance(form, ElasticForm):
        raise TypeError(f"form must be an ElasticForm, got {type(form).__name__}")
    check_rtol(rtol)
    device = device_of(x=x)
    with device.activated():
        own = device.asarray(x)
        moduli, batch = check_modulus(own, form)
        check_support(form.geometry, load)
        if load.open.any():
            raise ValueError(
                f"load has {int(load.open.sum())} open dofs, whose force is unknown: there is no forward problem. "
                "Fix them to the measured displacement instead"
            )
        n, d = form.geometry.n_nodes, form.geometry.dim
        moduli = moduli.reshape(-1, n)
        prescribed = attribute_on(device.native, load, "displacement").reshape(d, n)
        force = attribute_on(device.native, load, "force").reshape(d, n)
        if device.is_gpu:
            u = forward_state(form, moduli, prescribed, force, form.solver(moduli, load.loaded), rtol=rtol)
        else:
            u = np.empty((len(moduli), d, n))
            for one, out in zip(moduli, u, strict=True):
                out[...] = forward_state(form, one, prescribed, force, form.solver(one, load.loaded), rtol=rtol)
        flat = np.shape(own)[-1:] == (n,) and len(form.node_shape) > 1 and np.shape(own)[-2:] != form.node_shape
        u = u.reshape(*batch, d, *((n,) if flat else form.node_shape))
        return device.export(u.astype(as_float(own, "x").dtype, copy=False))


def forward_state(
    form: ElasticForm, x: Any, prescribed: Any, force: Any, solver: Solver, guess: Any = None, rtol: float = 1e-8
) -> Any:
    """Displacement (..., d, N) of moduli (..., N), by a solver for K(x) on the loaded dofs.

    ``prescribed`` (..., d, N) has the given values on the fixed dofs; on the loaded ones it may be anything, since what
    is solved for, and what ``guess`` is a guess of, is the difference from it.
    """
    rhs = force - form.force(x, prescribed) if prescribed.any() else force
    rhs = namespace(x).broadcast_to(rhs, (*x.shape[:-1], *force.shape[-2:]))
    return prescribed + solver.solve(rhs, x0=guess, rtol=rtol).value


def check_rtol(rtol: float) -> None:
    """Raise ValueError unless the argument can be a relative tolerance."""
    if not (isinstance(rtol, int | float | np.floating) and 0 < rtol < 1):
        raise ValueError(f"rtol must be a number between 0 and 1, got {rtol!r}")
