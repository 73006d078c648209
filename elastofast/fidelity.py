"""The data term J(x) = 1/2 r^T Gamma(x)^-1 r, r = f - K(x) u_m, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .boundary import check_support
from .covariance import NoiseCovariance, finite_std
from .form import check_modulus, inner
from .measurement import Measurement
from .solve import check_rtol, state
from .stopwatch import Stopwatch

__all__ = ["Evaluation", "Fidelity"]

GRADIENTS = ("exact", "frozen")


class Evaluation(NamedTuple):
    """Everything the data term knows at one modulus; node fields (N,), dof fields (d, N).

    Attributes
    ----------
    value : float
        J.
    gradient : array, shape (N,)
        dJ/dx, per pascal.
    displacement : array, shape (d, N)
        The denoised displacement u_hat = u_m + S_n K^T z, in metres.
    dual : array, shape (d, N)
        z = Gamma^-1 r, per newton.
    weighting : callable
        About Gamma^-1 as one fixed symmetric operator on (d, N), for Hessian products.
    frozen, frozen_gradient : callable
        J and the gradient -D(u_m)^T Gamma^-1 r at another modulus (N,) with this one's Gamma.
    """

    value: float
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
    At the true modulus 2 J is chi-square distributed with ``n_data`` degrees of freedom. Consecutive calls
    start their solves from the last solution, so one object belongs to one thread.

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
        m = measurement
        check_support(m.geometry, m.load)
        if m.load.n_equations == 0:
            raise ValueError("the measurement's load has no loaded dof, so there is no equation to fit")
        self.measurement, self.kind, self.rtol = m, gradient, rtol
        d, n = m.geometry.dim, m.geometry.n_nodes
        self._std, self._force_std = m.displacement_std.reshape(d, n), m.force_std.reshape(d, n)
        self.measured = m.displacement.reshape(d, n)
        self.equations = m.load.loaded.reshape(d, n)
        noisy = ~m.load.fixed.reshape(d, n)
        self._variance = np.where(noisy, finite_std(self._std, noisy) ** 2, 0.0)
        observed = noisy & np.isfinite(self._std)
        self._precision = np.where(observed, 1 / np.where(observed, self._std, 1.0) ** 2, 0.0)
        self._square = not m.load.open.any() and not self._force_std[self.equations].any()
        # one equation for each loaded dof, less those spent on displacements that nobody measured
        self.n_data = int(self.equations.sum() - (noisy & ~observed).sum())
        if self.n_data <= 0:
            raise ValueError("fewer displacements were measured than there are unknown ones")
        self._guess = [None, None]
        self.watch = Stopwatch()  # of everything that the data term computes
        self.evaluate = self.watch.wrap(self.evaluate)

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
        moduli, batch = check_modulus(x, self.measurement.form)
        found = [self.evaluate(one) for one in moduli.reshape(-1, moduli.shape[-1])]
        value = np.array([e.value for e in found]).reshape(batch)
        gradient = np.stack([e.gradient for e in found]).reshape(np.shape(x))
        return (value if batch else float(value)), gradient

    def evaluate(self, x, rtol=None) -> Evaluation:
        """The data term at one checked modulus (N,).

        A loose ``rtol`` is allowed: the value is corrected by the dual solution, so that its error is of second
        order in that of the solves.
        """
        return (self._evaluate_square if self._square else self._evaluate_general)(x, rtol or self.rtol)

    def _evaluate_square(self, x, rtol):
        """No force noise, no open dof: Gamma^-1 = K^-T S_n^-1 K^-1, so z takes a forward and an adjoint solve."""
        form, load = self.measurement.form, self.measurement.load
        solver = form.solver(x, self.equations)
        fixed = load.displacement.reshape(self.measured.shape)
        u = state(form, x, load, solver, self._guess[0], rtol)
        self._guess[0] = u - fixed
        misfit = np.where(self.equations, u - self.measured, 0.0)
        weighted = self._precision * misfit
        z = solver.solve(weighted, self._guess[1], rtol).value
        self._guess[1] = z
        value = 0.5 * inner(misfit, weighted)
        if rtol > 1e-7:  # sum over the dual-weighted residual of the forward solve
            value += inner(z, load.force.reshape(z.shape) - form.force(x, u))
        through = u if self.kind == "exact" else self.measured

        def weighting(r):
            return solver.precondition(self._precision * solver.precondition(r))

        def frozen(other):
            e = solver.solve(self._residual(other), rtol=rtol).value
            return 0.5 * inner(e, self._precision * e)

        def frozen_gradient(other):
            e = solver.solve(self._residual(other), rtol=rtol).value
            return -form.sensitivity(self.measured, solver.solve(self._precision * e, rtol=rtol).value)

        gradient = -form.sensitivity(through, z)
        return Evaluation(value, gradient, u, z, weighting, frozen, frozen_gradient)

    def _evaluate_general(self, x, rtol):
        """Gamma-weighted solve; the dual function z^T r - z^T Gamma z / 2 is second order in the error of z."""
        form, load = self.measurement.form, self.measurement.load
        gamma = NoiseCovariance._of(form, x, load, self._std, self._force_std)
        r = self._residual(x)
        z = gamma.solve(r, rtol, self._guess[1]).value
        self._guess[1] = z
        value = inner(z, r) - 0.5 * inner(z, gamma._apply(z))
        u = self.measured + self._variance * form.force(x, z)
        through = u if self.kind == "exact" else self.measured

        def frozen(other):
            r = self._residual(other)
            return 0.5 * inner(r, gamma.solve(r, rtol).value)

        def frozen_gradient(other):
            return -form.sensitivity(self.measured, gamma.solve(self._residual(other), rtol).value)

        gradient = -form.sensitivity(through, z)
        return Evaluation(value, gradient, u, z, gamma.precondition, frozen, frozen_gradient)

    def _residual(self, x):
        """Force residual f - K(x) u_m on the equations."""
        force = self.measurement.load.force.reshape(self.measured.shape)
        return np.where(self.equations, force - self.measurement.form.force(x, self.measured), 0.0)

    def noise_gradient(self, x, now, rng, rtol):
        """Gradient in x that noise alone would cause at an `Evaluation`: its covariance is D^T Gamma^-1 D."""
        form, shape = self.measurement.form, self.measured.shape
        through = now.displacement if self.kind == "exact" else self.measured
        if self._square:
            xi = np.sqrt(self._precision) * rng.standard_normal(shape)
            z = form.solver(x, self.equations).solve(np.where(self.equations, xi, 0.0), rtol=rtol).value
        else:
            force = form.force(x, np.sqrt(self._variance) * rng.standard_normal(shape))
            force += self._force_std * rng.standard_normal(shape)
            gamma = NoiseCovariance._of(form, x, self.measurement.load, self._std, self._force_std)
            z = gamma.solve(np.where(self.equations, force, 0.0), rtol).value
        return form.sensitivity(through, z)
