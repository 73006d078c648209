"""The covariance of the force residual f - K(x) u_m that displacement and force noise cause."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend.batch import dots, numbers
from ..backend.device import attribute_on, device_of, namespace
from ..backend.operators import field_operator
from ..boundary import Boundary, check_support
from ..errors import SolveError
from ..forward.form import ElasticForm, as_float, check_modulus
from ..forward.krylov import restarted_conjugate_gradients
from ..forward.solve import check_rtol
from ..measurement import check_displacement_std, check_force_std, correlation_tables
from .elimination import OpenDofs
from .noise import noise_of

__all__ = ["CovarianceSolution", "NoiseCovariance"]

# Where rounding keeps the true residual above rtol, a solve ends once the residual in the preconditioner's norm is
# below this fraction of rtol. That norm is only about the relative error of K z, hence the margin. Not studied.
ENERGY_MARGIN = 0.03
# With force noise, an unmeasured displacement of an open dof counts as this many times noisier than the noisiest
# measured one: large enough to have next to no influence, small enough for the preconditioner. Not studied.
UNMEASURED_FACTOR = 1e3
# Relative accuracy of A^-1 in the preconditioner: this much, or the given fraction of the ratio of the smallest to the
# largest standard deviation, because an error of A^-1 mixes dofs of unlike noise. Not studied.
INVERSE_ACCURACY = 0.01
INVERSE_ACCURACY_PER_RATIO = 0.1
INVERSE_ACCURACY_UNMEASURED = 1e-7  # where K^T z has to vanish on unmeasured displacements


class CovarianceSolution(NamedTuple):
    """Outcome of ``gamma.solve(r)``.

    Attributes
    ----------
    value : array
        z = Gamma^-1 r, zero off the equations.
    iterations : int
        Iterations with Gamma; 0 where Gamma is a product of invertible matrices and two solves with K suffice.
    residual : float
        True relative residual ||r - Gamma z|| / ||r||; with force noise and unmeasured displacements, for which Gamma
        is infinite, the same as ``stage_residual``. Without force noise it cannot fall below about
        eps cond(K)^2.
    stage_residual : float
        The residual that the solver brings below ``rtol`` where rounding keeps ``residual`` above: of two solves with
        K, the larger true relative residual; otherwise the residual in the preconditioner's norm, which is about the
        relative error of K z.
    """

    value: np.ndarray
    iterations: int
    residual: float
    stage_residual: float


class NoiseCovariance:
    """Gamma = S_w + K S_n K^T on the equations of a load (the paper's equations 3-5).

    S_w is diagonal, and so is S_n unless ``displacement_correlation`` is given. Rows of K are the loaded dofs;
    columns are the loaded and the open ones, since a fixed displacement has no noise.

    Parameters
    ----------
    form : ElasticForm
        Body and material law.
    x : array_like, shape node_shape or (N,)
        Modulus in pascals, positive. It decides where the work is done; fields must live in the same place.
    load : Boundary
        Which dofs are equations.
    displacement_std : float or array_like, shape (), (d,), node_shape or (d, *node_shape)
        Standard deviation of the displacement noise in metres; ``inf`` marks what was not measured. Only beside force
        noise, and on open dofs, it counts as a thousand times the largest finite one.
    force_std : float or array_like, shape () or (d, *node_shape), optional
        Standard deviation of the force noise in newtons (2-D: per metre of thickness).
    displacement_correlation : float or sequence, optional
        Correlation of the displacement noise, see `Measurement`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or values.

    Notes
    -----
    Without force noise and open dofs Gamma^-1 = K^-T S_n^-1 K^-1. Without force noise, the displacements of open dofs
    are found first, see `elimination`. With force noise, conjugate gradients are preconditioned by A S_n A with
    A = K + diag(s_w / s_n) on the equations: for a constant ratio the spectrum lies in [1/2, 1] whatever mesh, contrast
    and noise (matching; Pearson and Wathen, Numer. Linear Algebra Appl. 19, 2012). A^-1 is approximated by a few
    multigrid cycles with Chebyshev acceleration. This is one fixed symmetric operator, so that the preconditioner is
    positive definite whatever the noise.
    """

    def __init__(
        self,
        form: ElasticForm,
        x: Any,
        load: Boundary,
        displacement_std: Any,
        force_std: Any = 0.0,
        displacement_correlation: Any = None,
    ) -> None:
        if not isinstance(form, ElasticForm):
            raise TypeError(f"form must be an ElasticForm, got {type(form).__name__}")
        device = device_of(x=x)
        with device.activated():
            x, batch = check_modulus(device.asarray(x), form)
            form._single(batch, "x", form.node_shape)
            check_support(form.geometry, load)
            if load.n_equations == 0:
                raise ValueError("load has no loaded dof, so there is no equation")
            self.form, self.load = form, load
            d, n = form.geometry.dim, form.geometry.n_nodes
            std = check_displacement_std(displacement_std, form.dof_shape, load.fixed).reshape(d, n)
            force_std = check_force_std(force_std, form.dof_shape).reshape(d, n)
            correlations = correlation_tables(displacement_correlation, form.geometry)
            self._given = form, x, load, std.reshape(form.dof_shape), force_std.reshape(form.dof_shape), correlations
            std, force_std = (device.upload_broadcast(field) for field in (std, force_std))
            self._assemble(x.reshape(n), std, force_std, correlations=correlations)

    @classmethod
    def _of(cls, form, x, load, std, force_std, noise):
        """A covariance from arrays that have been checked: x (..., N), standard deviations (..., d, N)."""
        self = cls.__new__(cls)
        self.form, self.load = form, load
        self._assemble(x, std, force_std, noise)
        return self

    def __reduce__(self):
        return NoiseCovariance, self._given

    def _assemble(self, x, std, force_std, noise=None, correlations=None):
        d, n = self.form.geometry.dim, self.form.geometry.n_nodes
        self._x, self._device = x, device_of(x=x)
        xp = self._device.xp
        self._equations = attribute_on(self._device, self.load, "loaded").reshape(d, n)
        noisy = ~attribute_on(self._device, self.load, "fixed").reshape(d, n)
        self._observed = noisy & xp.isfinite(std)
        self._unmeasured = not bool((self._observed | ~noisy).all())
        self._force_variance = xp.where(self._equations, force_std**2, 0.0)
        self._forces = bool(self._force_variance.any())
        data = self._observed
        if self._forces:
            # An unmeasured displacement inside the body has no precision, and solutions z have K^T z = 0 there, so that
            # its variance does not matter. That of an open one does.
            data = data | (noisy & ~self._equations)
            std = xp.where(noisy & self._equations & ~self._observed, np.inf, fill_unmeasured_std(std, noisy))
        self._noise = noise or noise_of(self._device, std, data, self.form.geometry, correlations)
        shift = xp.sqrt(self._force_variance) / std if self._forces else None
        self._open_dofs = None
        if not self._forces and self.load.open.any():
            open_ = attribute_on(self._device, self.load, "open").reshape(d, n)
            self._open_dofs = OpenDofs(self.form, self._device, self._equations, open_, self._noise)
        least, most = (
            choose(xp.where(self._equations & xp.isfinite(std), std, other), axis=(-2, -1))
            for choose, other in ((np.min, np.inf), (np.max, 0.0))
        )
        self._accuracy = min(INVERSE_ACCURACY, INVERSE_ACCURACY_PER_RATIO * float((least / most).min()))
        if bool((self._equations & ~self._observed).any()):
            self._accuracy = min(self._accuracy, INVERSE_ACCURACY_UNMEASURED)
        self._solver = self.form.solver(x, self.load.loaded.reshape(d, n), shift)

    def apply(self, v: Any) -> Any:
        """Gamma v.

        Parameters
        ----------
        v : array_like, shape (..., d, *node_shape) or (..., d, N)
            Force-like dof field; entries off the equations are ignored.

        Returns
        -------
        array
            Same shape, zero off the equations.

        Raises
        ------
        ValueError
            If v does not fit, or some displacement was not measured.
        """
        if self._unmeasured:
            raise ValueError(
                "displacement_std is infinite where nothing was measured, and so is Gamma: it has no product with v. "
                "Its inverse is well defined, see solve"
            )
        device = self._on_device_of(v=v)
        with device.activated():
            v, batch, flat = self.form._field(device.asarray(v), "v", 1)
            out = self.product(self._on_equations("v", v))
            out = out.reshape(*batch, self.form.geometry.dim, *self.form._tail(flat)).astype(v.dtype, copy=False)
            return device.export(out)

    def solve(self, r: Any, rtol: float = 1e-8, x0: Any = None, maxiter: int = 300) -> CovarianceSolution:
        """Solve Gamma z = r.

        Parameters
        ----------
        r : array_like, shape (d, *node_shape) or (d, N)
            Force residual in newtons; entries off the equations are ignored.
        rtol : float
            Relative tolerance; see `CovarianceSolution` for what is measured.
        x0 : array_like, same shape as r, optional
            Initial guess; of use where there is force noise.
        maxiter : int
            Limit on the iterations with Gamma, where there is force noise.

        Returns
        -------
        CovarianceSolution

        Raises
        ------
        ValueError
            If r does not fit or is not finite.
        RuntimeError
            If the tolerance is not reached.
        """
        check_rtol(rtol)
        device = self._on_device_of(r=r, x0=x0)
        with device.activated():
            return self._solve(device, device.asarray(r), rtol, device.asarray(x0), maxiter)

    def _solve(self, device, r, rtol, x0, maxiter):
        field, batch, flat = self.form._field(as_float(r, "r"), "r", 1)
        self.form._single(batch, "r", self.form.dof_shape)
        d, n = self.form.geometry.dim, self.form.geometry.n_nodes
        if x0 is not None:
            x0 = self._on_equations("x0", self.form._field(x0, "x0", 1)[0].reshape(d, n))
        z, iterations, *residuals = self._find(self._on_equations("r", field.reshape(d, n)), rtol, x0, maxiter)
        residual, stage = (float(numbers(value)[0]) for value in residuals)
        return CovarianceSolution(
            device.export(z.reshape(*batch, d, *self.form._tail(flat))), iterations, residual, stage
        )

    def as_operator(self) -> Any:
        """Gamma as a scipy.sparse.linalg.LinearOperator (on a GPU that of cupyx), shape (d N, d N).

        Symmetric and positive semidefinite: rows and columns off the equations are zero.

        Raises
        ------
        ValueError
            In products, if some displacement was not measured, see `apply`.
        """
        dofs = (self.form.geometry.dim, self.form.geometry.n_nodes)
        return field_operator(self._device, dofs, dofs, self.apply, recipe=(NoiseCovariance.as_operator, (self,)))

    def inverse(self, rtol: float = 1e-8) -> Any:
        """Gamma^-1, zero off the equations, as a LinearOperator of the same kind; every product is a `solve`.

        Parameters
        ----------
        rtol : float
            Relative tolerance of the solves, and with it of the operator's symmetry.

        Raises
        ------
        ValueError
            If rtol is not between 0 and 1.
        SolveError
            In products, if the tolerance is not reached.
        """
        check_rtol(rtol)
        dofs = (self.form.geometry.dim, self.form.geometry.n_nodes)

        def product(fields):
            return self._device.xp.stack([self.solve(r, rtol).value for r in fields])

        return field_operator(self._device, dofs, dofs, product, recipe=(NoiseCovariance.inverse, (self, rtol)))

    def find(self, r: Any, rtol: float, x0: Any = None) -> Any:
        """Gamma^-1 r for checked fields (..., d, N), one for each modulus and zero off the equations."""
        return self._find(r, rtol, x0)[0]

    def _find(self, b, rtol, x0, maxiter=300):
        """Solution, iterations, true and stage residual."""
        if not self._forces:
            return self._solve_by_stages(b, rtol)
        z, iterations, stage, residual = restarted_conjugate_gradients(
            self.product,
            self._matching,
            b,
            x0,
            maxiter=maxiter,
            rtol=rtol,
            preconditioned_rtol=ENERGY_MARGIN * rtol,
            axes=2,
        )
        if self._unmeasured:  # Gamma is infinite, and so is the true residual, unless z is exact
            residual = stage
        if not bool(((residual <= rtol) | (stage <= rtol)).all()):
            raise SolveError(
                f"gamma.solve stopped after {iterations} iterations at a relative residual of "
                f"{float(residual.max()):.1e} ({float(stage.max()):.1e} in the preconditioner's norm), {rtol:.1e} was "
                "asked for. Try a larger rtol or maxiter; standard deviations that jump by orders of magnitude between "
                "neighbours are hard"
            )
        return z, iterations, residual, stage

    def _solve_by_stages(self, b, rtol):
        """Without force noise: e with K e = b and the least e^T P e, then z with K^T z = P e.

        Without open dofs, e = K^-1 b is the only one.
        """
        xp = self._device.xp
        first = self._solver.solve(b, rtol=rtol)
        if self._open_dofs is None:
            second = self._solver.solve(self._noise.precision(first.value), rtol=rtol)
            e, z, iterations, stage = first.value, second.value, 0, max(first.residual, second.residual)
        else:
            found = self._open_dofs.nearest(self._x, self._solver, first.value, xp.zeros_like(b), None, rtol)
            e, z, iterations, stage = found.deviation, found.multiplier, found.iterations, first.residual
        size = dots(b, b, 2)
        # S_n K^T z is the deviation e; where nothing was measured S_n is infinite and K^T z zero
        e = xp.where(self._observed, self._noise.covariance(self.form.force(self._x, z)), e)
        rest = xp.where(self._equations, b - self.form.force(self._x, e), 0.0)
        residual = xp.sqrt(dots(rest, rest, 2)) / xp.where(size > 0, xp.sqrt(size), 1.0)
        return z, iterations, residual, xp.zeros_like(size) + stage

    def precondition(self, r: Any) -> Any:
        """About Gamma^-1 r for r (..., d, N), one fixed symmetric operator: A^-1 S_n^-1 A^-1 by a cycle or two each.

        For use inside a computation: r is an array of the modulus' own library, on its current stream.
        """
        return self._solver.precondition(self._weighted(self._solver.precondition(r)))

    def _on_equations(self, name, field):
        """A new float64 field (..., d, N), zero off the equations and finite on them."""
        xp = self._device.xp
        own = xp.where(self._equations, field, 0.0).astype(np.float64, copy=False)
        if not xp.isfinite(own).all():
            raise ValueError(f"{name} must be finite on the equations")
        return own

    def _on_device_of(self, **fields):
        """Where fields are, which must be where the modulus is."""
        device_of(modulus=self._x, **fields)
        return device_of(**fields)

    def product(self, v: Any) -> Any:
        """Gamma v for checked fields (..., d, N)."""
        xp = self._device.xp
        v = xp.where(self._equations, v, 0.0).astype(np.float64, copy=False)
        t = self.form.force(self._x, v)
        out = self.form.force(self._x, self._noise.covariance(t))
        out += self._force_variance * v
        return xp.where(self._equations, out, 0.0)

    def _weighted(self, e):
        """S_n^-1 e on the equations."""
        return self._device.xp.where(self._equations, self._noise.precision(e), 0.0)

    def _matching(self, r):
        """The matching preconditioner A^-1 S_n^-1 A^-1 r, with A^-1 to the accuracy that the noise asks for."""
        inverse = self._solver.approximate_inverse
        return inverse(self._weighted(inverse(r, self._accuracy)), self._accuracy)


def fill_unmeasured_std(std, noisy):
    """Standard deviations (..., d, N) with a large finite value where nothing was measured, 1 on dofs without noise."""
    xp = namespace(std)
    finite = noisy & xp.isfinite(std)
    largest = xp.where(finite, std, 0.0).max(axis=(-2, -1), keepdims=True)
    return xp.where(noisy, xp.where(finite, std, UNMEASURED_FACTOR * largest), 1.0)
