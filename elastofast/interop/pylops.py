"""Linear maps of the library as PyLops operators, which know the shapes of the fields that go in and come out.

They work on flat vectors and on fields, have adjoints, and combine with those of PyLops. Linearised about a modulus x
with displacement u, a change dx of the modulus changes the displacement by ``-compliance(...) @ contraction(...)``.
"""

from __future__ import annotations

from typing import Any

from pylops import LinearOperator

from ..backend.device import attribute_on, device_of
from ..backend.operators import field_operator
from ..boundary import Boundary
from ..forward.form import ElasticForm, check_modulus
from ..forward.solve import check_problem
from ..misfit.covariance import NoiseCovariance
from ..misfit.fidelity import Fidelity

__all__ = ["compliance", "contraction", "covariance", "hessian", "precision", "stiffness"]


def stiffness(form: ElasticForm, x: Any) -> LinearOperator:
    """K(x), from displacements to forces; symmetric.

    Parameters
    ----------
    form : ElasticForm
    x : array_like, shape node_shape or (N,)
        Modulus in pascals.

    Returns
    -------
    pylops.LinearOperator
        From fields (d, *node_shape) to such fields.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """
    return LinearOperator(form.stiffness_operator(x), dims=form.dof_shape, dimsd=form.dof_shape)


def contraction(form: ElasticForm, u: Any) -> LinearOperator:
    """D(u), from moduli to the forces D(u) x = K(x) u.

    With the measured displacement as u, equilibrium D(u) x = f is linear in the modulus: the direct inversion of
    elastography.

    Parameters
    ----------
    form : ElasticForm
    u : array_like, shape (d, *node_shape) or (d, N)
        Displacement in metres.

    Returns
    -------
    pylops.LinearOperator
        From fields node_shape to fields (d, *node_shape).

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """
    return LinearOperator(form.contraction_operator(u), dims=form.node_shape, dimsd=form.dof_shape)


def compliance(form: ElasticForm, x: Any, load: Boundary, rtol: float = 1e-10) -> LinearOperator:
    """K(x)^-1 on the loaded dofs and zero on the others: from forces to displacements; symmetric.

    Parameters
    ----------
    form : ElasticForm
    x : array_like, shape node_shape or (N,)
        Modulus in pascals, positive.
    load : Boundary
        Its fixed and loaded dofs are used, not its values; no dof may be open.
    rtol : float
        Relative tolerance of the solves, to which the operator is symmetric.

    Returns
    -------
    pylops.LinearOperator
        From fields (d, *node_shape) to such fields.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    SolveError (a RuntimeError)
        In a product, if the solve does not converge.
    """
    return LinearOperator(_inverse(form, x, load, rtol), dims=form.dof_shape, dimsd=form.dof_shape)


def _inverse(form, x, load, rtol):
    check_problem(form, load, rtol)
    device = device_of(x=x)
    with device.activated():
        modulus, _ = check_modulus(device.asarray(x), form)
        dofs = form.geometry.dim, form.geometry.n_nodes
        loaded = attribute_on(device.native, load, "loaded").reshape(dofs)
        solver, xp = form.solver(modulus.reshape(-1), load.loaded), device.xp

        def solve(forces):
            return xp.stack([solver.solve(xp.where(loaded, one, 0.0), rtol=rtol).value for one in forces])

        return field_operator(device.native, dofs, dofs, solve, recipe=(_inverse, (form, x, load, rtol)))


def covariance(gamma: NoiseCovariance) -> LinearOperator:
    """Gamma, the covariance of the force residual that noise causes; between fields (d, *node_shape)."""
    shape = gamma.form.dof_shape
    return LinearOperator(gamma.as_operator(), dims=shape, dimsd=shape)


def precision(gamma: NoiseCovariance, rtol: float = 1e-10) -> LinearOperator:
    """Gamma^-1, to the relative tolerance of its solves; between fields (d, *node_shape)."""
    shape = gamma.form.dof_shape
    return LinearOperator(gamma.inverse(rtol), dims=shape, dimsd=shape)


def hessian(fidelity: Fidelity, x: Any, exact: bool = False) -> LinearOperator:
    """The Hessian of the data term at a modulus, between fields node_shape.

    Parameters
    ----------
    fidelity : Fidelity
        With the exact gradient.
    x : array_like, shape node_shape or (N,)
        Modulus in pascals, positive.
    exact : bool
        All second derivatives, in place of the Gauss-Newton Hessian, which is positive semidefinite.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    SolveError (a RuntimeError)
        If a solve does not converge.
    """
    shape = fidelity.measurement.geometry.node_shape
    return LinearOperator(fidelity.hessian_operator(x, exact), dims=shape, dimsd=shape)
