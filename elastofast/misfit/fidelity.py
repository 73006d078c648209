"""The data term J(x) = 1/2 r^T Gamma(x)^-1 r, r = f - K(x) u_m, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..backend.batch import dots
from ..backend.device import device_of, on, to_host
from ..backend.stopwatch import Stopwatch
from ..boundary import check_support
from ..forward.form import check_modulus
from ..forward.solve import check_rtol, state
from ..measurement import Measurement
from .covariance import NoiseCovariance, finite_std

__all__ = ["Evaluation", "Fidelity"]

GRADIENTS = ("exact", "frozen")
CONTINUED = 1e-6  # relative residual of prescribed displacements continued into the body


class Evaluation(NamedTuple):
    """Everything the data term knows at moduli (..., N); node fields (..., N), dof fields (..., d, N).

    Attributes
    ----------
    value : numpy.ndarray, shape (...)
        J, on the host.
    gradient : array, shape (..., N)
        dJ/dx, per pascal.
    displacement : array, shape (..., d, N)
        The denoised displacement u_hat = u_m + S_n K^T z, in metres.
    dual : array, shape (..., d, N)
        z = Gamma^-1 r, per newton.
    weighting : callable
        About Gamma^-1 as one fixed symmetric operator on (..., d, N), for Hessian products.
    frozen, frozen_gradient : callable
        J and the gradient -D(u_m)^T Gamma^-1 r at other moduli (..., N) with these ones' Gamma.
    """

    value: np.ndarray
    gradient: np.ndarray
    displacement: np.ndarray
    dual: np.ndarray
    weighting: object
    frozen: object
    frozen_gradient: object


class Fidelity:
    """Negative log-likelihood of a measurement as a function of the modulus, up to a constant.

    J(x) = 1/2 r^T Gamma^-1 r is the minimum over all displacements u and forces of their deviations from what
    was measured, each in its own standard deviations, under K(x) u = f. Hence (envelope theorem) the exact
    gradient is -D(u_hat)^T z with z = Gamma^-1 r and u_hat = u_m + S_n K^T z. The paper's gradient
    -D(u_m)^T z treats Gamma as a constant; it costs the same and is biased by the noise in u_m.

    Parameters
    ----------
    measurement : Measurement
        What was measured.
    gradient : {"exact", "frozen"}
        Which of the two gradients to return.
    rtol : float
        Relative tolerance of the linear solves.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or the body is free to move.

    Notes
    -----
    The work is done where the measured displacement was given, on a GPU or not, and x must live there.

    At the true modulus 2 J is chi-square distributed with ``n_data`` degrees of freedom, a whole number. Consecutive
    calls start their solves from the last solution, so one object belongs to one thread.

    Examples
    --------
    >>> J, g = ef.Fidelity(m)(x)  # doctest: +SKIP
    """

    def __init__(self, measurement, gradient="exact", rtol=1e-8):
        if not isinstance(measurement, Measurement):
            raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        check_rtol(rtol)
        check_support(measurement.geometry, measurement.load)
        if measurement.load.n_equations == 0:
            raise ValueError("the measurement's load has no loaded dof, so there is no equation to fit")
        with measurement.device.working():
            self._set_up([measurement], gradient, rtol)

    @classmethod
    def of_batch(cls, measurements, gradient, rtol):
        """The data terms of checked measurements with the same dofs loaded, fixed and open, as one.

        Moduli then have a leading axis for the measurements.
        """
        self = cls.__new__(cls)
        self._set_up(measurements, gradient, rtol)
        return self

    def _set_up(self, measurements, gradient, rtol):
        m = self.measurement = measurements[0]
        self.kind, self.rtol, self.device = gradient, rtol, m.device.native
        xp = self.device.xp
        d, n = m.geometry.dim, m.geometry.n_nodes

        def fields(owners, name):
            found = [on(self.device, owner, name).reshape(d, n) for owner in owners]
            return xp.stack(found) if len(found) > 1 else found[0]

        self._std, self._force_std, self.measured = (
            fields(measurements, name) for name in ("displacement_std", "force_std", "displacement")
        )
        self._prescribed, self._force = (
            fields([m.load for m in measurements], name) for name in ("displacement", "force")
        )
        self.equations, fixed = (fields([m.load], name) for name in ("loaded", "fixed"))
        self._active = m.load.loaded.reshape(d, n)  # on the host, where solvers are laid out
        noisy = ~fixed
        self._variance = xp.where(noisy, finite_std(self._std, noisy) ** 2, 0.0)
        observed = noisy & xp.isfinite(self._std)
        self._precision = xp.where(observed, 1 / xp.where(observed, self._std, 1.0) ** 2, 0.0)
        self._square = not m.load.open.any() and not any(m.force_std[m.load.loaded].any() for m in measurements)
        # one equation for each loaded dof, less those spent on displacements that nobody measured
        self.n_data = m.load.n_equations - np.asarray(to_host((noisy & ~observed).sum(axis=(-2, -1))))[()]
        if (self.n_data <= 0).any():
            raise ValueError("fewer displacements were measured than there are unknown ones")
        if self._square and bool(self._prescribed.any()):
            self._prescribed = self._continued()
        self._guess = [None, None]
        self.watch = Stopwatch()  # of everything that the data term computes
        self.evaluate = self.watch.wrap(self.evaluate)

    def _continued(self):
        """The prescribed displacements continued into a homogeneous body.

        What is left to solve for is then as large as what the modulus changes, to which tolerances are relative. Forces
        about displacements that are zero next to the prescribed ones are larger by the number of cells along an axis.
        """
        form, xp = self.measurement.form, self.device.xp
        ones = xp.ones((*self._prescribed.shape[:-2], self._prescribed.shape[-1]))
        solver = form.solver(ones, self._active)
        return state(form, ones, self._prescribed, xp.zeros_like(self._prescribed), solver, rtol=CONTINUED)

    def __call__(self, x):
        """Value and gradient.

        Parameters
        ----------
        x : array_like, shape (..., *node_shape) or (..., N)
            Modulus in pascals, positive; leading axes are a batch.

        Returns
        -------
        J : float, or array of shape (...)
        g : array, shape of x
            Derivative per pascal.

        Raises
        ------
        TypeError, ValueError
            If x does not fit or is not positive.
        RuntimeError
            If a linear solve does not converge.
        """
        device_of(displacement=self.measured, x=x)
        device = device_of(x=x)
        with device.working():
            own, xp = device.asarray(x), device.xp
            moduli, batch = check_modulus(own, self.measurement.form)
            moduli = moduli.reshape(-1, moduli.shape[-1])
            found = [self.evaluate(moduli)] if device.is_gpu else [self.evaluate(one) for one in moduli]
            gradient = xp.concatenate([e.gradient.ravel() for e in found]).reshape(np.shape(own))
            value = np.concatenate([e.value.ravel() for e in found]).reshape(batch)
            return (device.export(xp.asarray(value)) if batch else float(value)), device.export(gradient)

    def evaluate(self, x, rtol=None) -> Evaluation:
        """The data term at a checked modulus (N,) or (1, N), on a device also at a batch (B, N).

        A loose ``rtol`` is allowed: the value is corrected by the dual solution, so that its error is of second
        order in that of the solves.
        """
        return (self._evaluate_square if self._square else self._evaluate_general)(x, rtol or self.rtol)

    def _evaluate_square(self, x, rtol):
        """No force noise, no open dof: Gamma^-1 = K^-T S_n^-1 K^-1, so z takes a forward and an adjoint solve."""
        form, xp = self.measurement.form, self.device.xp
        solver = form.solver(x, self._active)
        u = state(form, x, self._prescribed, self._force, solver, self._last(0, x), rtol)
        self._guess[0] = u - self._prescribed
        misfit = xp.where(self.equations, u - self.measured, 0.0)
        weighted = self._precision * misfit
        z = solver.solve(weighted, self._last(1, x), rtol).value
        self._guess[1] = z
        value = 0.5 * dots(misfit, weighted, 2)
        if rtol > 1e-7:  # sum over the dual-weighted residual of the forward solve
            value = value + dots(z, self._force - form.force(x, u), 2)
        through = u if self.kind == "exact" else self.measured

        def weighting(r):
            return solver.precondition(self._precision * solver.precondition(r))

        def frozen(other):
            e = solver.solve(self._residual(other), rtol=rtol).value
            return self._values(0.5 * dots(e, self._precision * e, 2))

        def frozen_gradient(other):
            e = solver.solve(self._residual(other), rtol=rtol).value
            return -form.sensitivity(self.measured, solver.solve(self._precision * e, rtol=rtol).value)

        gradient = -form.sensitivity(through, z)
        return Evaluation(self._values(value), gradient, u, z, weighting, frozen, frozen_gradient)

    def _evaluate_general(self, x, rtol):
        """Gamma-weighted solve; the dual function z^T r - z^T Gamma z / 2 is second order in the error of z."""
        form = self.measurement.form
        gamma = NoiseCovariance._of(form, x, self.measurement.load, self._std, self._force_std)
        r = self._residual(x)
        z = self._guess[1] = gamma.find(r, rtol, self._last(1, x))
        value = dots(z, r, 2) - 0.5 * dots(z, gamma.product(z), 2)
        u = self.measured + self._variance * form.force(x, z)
        through = u if self.kind == "exact" else self.measured

        def frozen(other):
            r = self._residual(other)
            return self._values(0.5 * dots(r, gamma.find(r, rtol), 2))

        def frozen_gradient(other):
            return -form.sensitivity(self.measured, gamma.find(self._residual(other), rtol))

        gradient = -form.sensitivity(through, z)
        return Evaluation(self._values(value), gradient, u, z, gamma.precondition, frozen, frozen_gradient)

    def _last(self, which, x):
        """The last solution, where to begin, if it is of as many moduli."""
        guess = self._guess[which]
        return guess if guess is not None and guess.shape[:-2] == x.shape[:-1] else None

    @staticmethod
    def _values(sums):
        """What `dots` gives for dof fields, on the host, without the axes of the fields."""
        return np.asarray(to_host(sums))[..., 0, 0]

    def _residual(self, x):
        """Force residual f - K(x) u_m on the equations."""
        return self.device.xp.where(self.equations, self._force - self.measurement.form.force(x, self.measured), 0.0)

    def noise_gradient(self, x, now, rng, rtol):
        """Gradient in x that noise alone would cause at an `Evaluation`: its covariance is D^T Gamma^-1 D.

        All members of a batch have the same noise, but for its size.
        """
        form, xp = self.measurement.form, self.device.xp
        through = now.displacement if self.kind == "exact" else self.measured
        shape = (*x.shape[:-1], *self.measured.shape[-2:])

        def normal():
            return xp.asarray(rng.standard_normal(shape[-2:]))

        if self._square:
            xi = xp.broadcast_to(xp.where(self.equations, xp.sqrt(self._precision) * normal(), 0.0), shape)
            z = form.solver(x, self._active).solve(xi, rtol=rtol).value
        else:
            force = form.force(x, xp.sqrt(self._variance) * normal())
            force += self._force_std * normal()
            gamma = NoiseCovariance._of(form, x, self.measurement.load, self._std, self._force_std)
            z = gamma.find(xp.where(self.equations, force, 0.0), rtol)
        return form.sensitivity(through, z)
