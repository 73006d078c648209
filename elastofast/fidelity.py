"""The data term J(x) = 1/2 r^T Gamma(x)^-1 r, r = f - K(x) u_m, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import home_of, on
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
    The work is done where the measured displacement was given, on a GPU or not, and x must live there.

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
        self.home = m.home.own
        with m.home.working():
            self._set_up()

    def _set_up(self):
        m, xp = self.measurement, self.home.xp
        d, n = m.geometry.dim, m.geometry.n_nodes
        self._std, self._force_std, self.measured = (
            on(self.home, m, name).reshape(d, n) for name in ("displacement_std", "force_std", "displacement")
        )
        self._prescribed, self._force, self.equations, fixed = (
            on(self.home, m.load, name).reshape(d, n) for name in ("displacement", "force", "loaded", "fixed")
        )
        self._active = m.load.loaded.reshape(d, n)  # on the host, where solvers are laid out
        noisy = ~fixed
        self._variance = xp.where(noisy, finite_std(self._std, noisy) ** 2, 0.0)
        observed = noisy & xp.isfinite(self._std)
        self._precision = xp.where(observed, 1 / xp.where(observed, self._std, 1.0) ** 2, 0.0)
        self._square = not m.load.open.any() and not bool(self._force_std[self.equations].any())
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
        home_of(displacement=self.measured, x=x)
        home = home_of(x=x)
        with home.working():
            own = home.take(x)
            moduli, batch = check_modulus(own, self.measurement.form)
            found = [self.evaluate(one) for one in moduli.reshape(-1, moduli.shape[-1])]
            gradient = home.xp.stack([e.gradient for e in found]).reshape(np.shape(own))
            if not batch:
                return found[0].value, home.give(gradient)
            value = home.xp.asarray([e.value for e in found]).reshape(batch)
            return home.give(value), home.give(gradient)

    def evaluate(self, x, rtol=None) -> Evaluation:
        """The data term at one checked modulus (N,).

        A loose ``rtol`` is allowed: the value is corrected by the dual solution, so that its error is of second
        order in that of the solves.
        """
        return (self._evaluate_square if self._square else self._evaluate_general)(x, rtol or self.rtol)

    def _evaluate_square(self, x, rtol):
        """No force noise, no open dof: Gamma^-1 = K^-T S_n^-1 K^-1, so z takes a forward and an adjoint solve."""
        form, load = self.measurement.form, self.measurement.load
        solver = form.solver(x, self._active)
        xp = self.home.xp
        u = state(form, x, load, solver, self._guess[0], rtol)
        self._guess[0] = u - self._prescribed
        misfit = xp.where(self.equations, u - self.measured, 0.0)
        weighted = self._precision * misfit
        z = solver.solve(weighted, self._guess[1], rtol).value
        self._guess[1] = z
        value = 0.5 * inner(misfit, weighted)
        if rtol > 1e-7:  # sum over the dual-weighted residual of the forward solve
            value += inner(z, self._force - form.force(x, u))
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
        return self.home.xp.where(self.equations, self._force - self.measurement.form.force(x, self.measured), 0.0)

    def noise_gradient(self, x, now, rng, rtol):
        """Gradient in x that noise alone would cause at an `Evaluation`: its covariance is D^T Gamma^-1 D."""
        form, xp = self.measurement.form, self.home.xp
        through = now.displacement if self.kind == "exact" else self.measured

        def normal():
            return xp.asarray(rng.standard_normal(self.measured.shape))

        if self._square:
            xi = xp.sqrt(self._precision) * normal()
            z = form.solver(x, self._active).solve(xp.where(self.equations, xi, 0.0), rtol=rtol).value
        else:
            force = form.force(x, xp.sqrt(self._variance) * normal())
            force += self._force_std * normal()
            gamma = NoiseCovariance._of(form, x, self.measurement.load, self._std, self._force_std)
            z = gamma.solve(xp.where(self.equations, force, 0.0), rtol).value
        return form.sensitivity(through, z)
