"""The forward problem: displacement of a body of known modulus under a known load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import attribute_on, device_of, namespace, to_host
from ..backend.processors import side_by_side, threads
from ..boundary import Boundary, check_support
from ..errors import SolveError
from .form import ElasticForm, as_float, check_modulus
from .protocol import Solver

__all__ = ["solve_forward"]


ON_FAILURE = ("raise", "inf")  # what is done about moduli that cannot be solved


def solve_forward(form: ElasticForm, x: Any, load: Boundary, rtol: float = 1e-8, *, on_failure: str = "raise") -> Any:
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
    on_failure : {"raise", "inf"}
        What is done about a modulus that cannot be solved, because it is not positive and finite or too wild for the
        solver: raise, or answer with an infinite displacement, so that samplers and line searches can go on.

    Returns
    -------
    array, shape (..., d, *node_shape) or (..., d, N)
        Displacement in metres, in the dtype of x.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, the load leaves a rigid motion free or has open dofs, or rtol is not in (0, 1).
    ModulusError (a ValueError)
        If x is not positive and finite.
    SolveError (a RuntimeError)
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
    check_problem(form, load, rtol)
    check_on_failure(on_failure)
    device = device_of(x=x)
    with device.activated():
        own = device.asarray(x)
        moduli, batch, sound = take_moduli(own, form, on_failure)
        n, d = form.geometry.n_nodes, form.geometry.dim
        prescribed = attribute_on(device.native, load, "displacement").reshape(d, n)
        force = attribute_on(device.native, load, "force").reshape(d, n)
        u = device.xp.full((len(moduli), d, n), np.inf)

        def solve(members):
            some = moduli[members]
            u[members] = forward_state(form, some, prescribed, force, form.solver(some, load.loaded), rtol=rtol)

        for_members(solve, sound, on_failure, device.is_gpu, threads(n, len(moduli)))
        flat = np.shape(own)[-1:] == (n,) and len(form.node_shape) > 1 and np.shape(own)[-2:] != form.node_shape
        u = u.reshape(*batch, d, *((n,) if flat else form.node_shape))
        return device.export(u.astype(as_float(own, "x").dtype, copy=False))


def check_problem(form: ElasticForm, load: Boundary, rtol: float) -> None:
    """Raise TypeError or ValueError unless a load poses a forward problem for a form."""
    if not isinstance(form, ElasticForm):
        raise TypeError(f"form must be an ElasticForm, got {type(form).__name__}")
    check_rtol(rtol)
    check_support(form.geometry, load)
    if load.open.any():
        raise ValueError(
            f"load has {int(load.open.sum())} open dofs, whose force is unknown: there is no forward problem. "
            "Fix them to the measured displacement instead"
        )


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


def take_moduli(x: Any, form: ElasticForm, on_failure: str) -> tuple[Any, tuple[int, ...], np.ndarray]:
    """Moduli as float64 (B, N), their batch shape, and which of the B are positive and finite.

    With ``on_failure="raise"`` they all have to be.
    """
    if on_failure == "raise":
        moduli, batch = check_modulus(x, form)
        moduli = moduli.reshape(-1, moduli.shape[-1])
        return moduli, batch, np.ones(len(moduli), bool)
    moduli, batch, _ = form._field(x, "x", 0)
    moduli = moduli.reshape(-1, moduli.shape[-1]).astype(np.float64, copy=False)
    xp = namespace(moduli)
    return moduli, batch, np.asarray(to_host((xp.isfinite(moduli) & (moduli > 0)).all(axis=-1)))


def for_members(
    work: Callable[[Any], None], sound: np.ndarray, on_failure: str, together: bool, workers: int = 1
) -> None:
    """Do work for the sound members of a batch, by an index or a slice of them: all at once, or one by one, several of
    which ``workers`` threads may work on.

    With ``on_failure="inf"`` a `SolveError` only ends the work for the member that causes it.
    """
    members: list[Any] = np.flatnonzero(sound).tolist()
    if together and on_failure == "raise":
        members = [slice(None)]

    def attempt(member):
        try:
            work(slice(member, member + 1) if together and not isinstance(member, slice) else member)
        except SolveError:
            if on_failure == "raise":
                raise

    side_by_side(attempt, members, 1 if together else workers)


def check_on_failure(on_failure: str) -> None:
    """Raise ValueError unless the argument says what is to be done about moduli that cannot be solved."""
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {', '.join(map(repr, ON_FAILURE))}, got {on_failure!r}")


def check_rtol(rtol: float) -> None:
    """Raise ValueError unless the argument can be a relative tolerance."""
    if not (isinstance(rtol, int | float | np.floating) and 0 < rtol < 1):
        raise ValueError(f"rtol must be a number between 0 and 1, got {rtol!r}")
