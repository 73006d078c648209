"""The data term J(x) = 1/2 r^T Gamma(x)^-1 r, r = f - K(x) u_m, and its gradient."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from ..backend.batch import dots
from ..backend.device import attribute_on, device_of, to_host
from ..backend.operators import field_operator
from ..backend.stopwatch import Stopwatch
from ..boundary import check_support
from ..forward.solve import check_on_failure, check_rtol, for_members, forward_state, take_moduli
from ..measurement import Measurement
from .covariance import NoiseCovariance
from .curvature import DataCurvature
from .elimination import OpenDofs
from .noise import noise_of

__all__ = ["Evaluation", "Fidelity"]

GRADIENTS = ("exact", "frozen")
# Relative residual of the solve that continues prescribed displacements into the body. Its solution is only the field
# from which a difference is computed, so its error has no influence on results. Not studied.
CONTINUATION_RTOL = 1e-6
# Tolerance of the solves above which the value is corrected by their residuals. Below it the correction, which is of
# the order of the tolerance times J, is not worth a product with K. Not studied.
CORRECTED_RTOL = 1e-7
# An open dof that was not measured moves as in a homogeneous body, up to a standard deviation of this many times the
# size of the displacement field. Without any such knowledge, a stretch of the body along a component that is not
# measured would be determined by noise alone, and Gauss-Newton runs end in maps without contrast.
UNSEEN_SIZE = 1.0


class Evaluation(NamedTuple):
    """The data term at moduli of shape (..., N): its value, its gradient and what was computed on the way to them.

    Attributes
    ----------
    value : numpy.ndarray, shape (...)
        J, on the host.
    gradient : array, shape (..., N)
        -D(u)^T z with u the linearisation point: dJ/dx, or the paper's approximation of it; per pascal.
    displacement : array, shape (..., d, N)
        The denoised displacement u_hat = u_m + S_n K^T z, in metres.
    multiplier : array, shape (..., d, N)
        z = Gamma^-1 r, the Lagrange multiplier of K(x) u = f; per newton.
    linearization_point : array, shape (..., d, N) or (d, N)
        The displacement u at which the operator D(u), D(u) x = K(x) u, of the gradient and of the Gauss-Newton Hessian
        is taken: u_hat for the exact gradient, u_m for the frozen one.
    weighting : callable
        A fixed symmetric approximation of Gamma^-1 for Hessian products; takes and gives fields (..., d, N).
    open_dofs : OpenDofs or None
        Where the displacements of open dofs are unknowns beside the modulus.
    weighting_with_open : callable or None
        Then takes the changes of the force residual (..., d, N) and of these displacements (..., open dofs) and gives
        what the same approximation makes of them: the change of z and of the gradient by the displacements.
    energy : callable
        Half of r^T Gamma^-1 r for any force residual r (..., d, N), with Gamma as it is here; on the host.
    frozen, frozen_gradient : callable
        J and the gradient -D(u_m)^T Gamma^-1 r at other moduli (..., N), with Gamma as it is at the present ones.
    response : callable or None
        Takes a change r of the force residual and a pull p on the displacements (or None), fields (..., d, N), and
        gives the changes du and dz of the denoised displacement and of the multiplier that follow: with the precision P
        of the measured displacements and the covariance S_w of the forces,
        P du - K dz = p on the dofs with noise, K du + S_w dz = r on the equations. Without a pull du is None.
    """

    value: np.ndarray
    gradient: Any
    displacement: Any
    multiplier: Any
    linearization_point: Any
    weighting: Callable[[Any], Any]
    energy: Callable[[Any], np.ndarray]
    frozen: Callable[[Any], np.ndarray]
    frozen_gradient: Callable[[Any], Any]
    open_dofs: OpenDofs | None = None
    weighting_with_open: Callable[[Any, Any], tuple[Any, Any]] | None = None
    response: Callable[[Any, Any], tuple[Any, Any]] | None = None


class _Last(threading.local):
    """The solutions of the last evaluation of each thread, from which its next one starts."""

    primal: Any = None
    multiplier: Any = None


class _Solution(NamedTuple):
    """What one of the two ways to apply Gamma^-1 gives at moduli (..., N)."""

    value: Any  # J as `dots` gives it
    displacement: Any
    multiplier: Any
    weighting: Callable[[Any], Any]
    frozen_value: Callable[[Any], Any]  # J of another force residual with the same Gamma, as `dots` gives it
    frozen_multiplier: Callable[[Any], Any]  # Gamma^-1 times another force residual
    response: Callable[[Any, Any], tuple[Any, Any]]  # see `Evaluation`
    weighting_with_open: Callable[[Any, Any], tuple[Any, Any]] | None = None


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
    on_failure : {"raise", "inf"}
        What is done about a modulus that cannot be solved, because it is not positive and finite or too wild for the
        solver: raise, or answer with an infinite value and a gradient of zeros, so that samplers and line searches can
        go on.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or the body is free to move.

    Notes
    -----
    The work is done where the measured displacement was given, on a GPU or not, and x must live there.

    At the true modulus 2 J is chi-square distributed with ``n_data`` degrees of freedom. Consecutive
    calls start their solves from the last solution of the same thread, so that threads may share one object.

    Examples
    --------
    >>> J, g = ef.Fidelity(m)(x)  # doctest: +SKIP
    """

    takes_batches: ClassVar[bool] = True  # of moduli for one measurement, on a device
    frames = 1  # measurements of each modulus

    def __init__(
        self, measurement: Measurement, gradient: str = "exact", rtol: float = 1e-8, *, on_failure: str = "raise"
    ) -> None:
        if not isinstance(measurement, Measurement):
            raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        check_rtol(rtol)
        if not measurement.noise_known:
            raise ValueError(
                "the measurement's displacement_std was not given: state it, or estimate it with "
                "estimate_noise(measurement).applied(measurement)"
            )
        check_on_failure(on_failure)
        check_support(measurement.geometry, measurement.load)
        if measurement.load.n_equations == 0:
            raise ValueError("the measurement's load has no loaded dof, so there is no equation to fit")
        with measurement.device.activated():
            self._set_up([measurement], gradient, rtol, on_failure)

    @classmethod
    def of_batch(cls, measurements: Sequence[Measurement], gradient: str, rtol: float) -> Self:
        """One data term for several measurements, whose loads must have the same loaded, fixed and open dofs.

        Moduli, values and gradients then have a leading axis, one entry for each measurement. Nothing is checked.
        """
        self = cls.__new__(cls)
        self._set_up(measurements, gradient, rtol)
        return self

    def __reduce__(self):
        return _rebuilt, (self._measurements, self.kind, self.rtol, self.on_failure)

    def _set_up(self, measurements, gradient, rtol, on_failure="raise"):
        self._measurements, self.on_failure = measurements, on_failure
        m = self.measurement = measurements[0]
        self.kind, self.rtol, self.device = gradient, rtol, m.device.native
        xp = self.device.xp
        d, n = m.geometry.dim, m.geometry.n_nodes

        def stacked(found):
            return xp.stack(found) if len(found) > 1 else found[0]

        def fields(owners, name):
            return stacked([attribute_on(self.device, owner, name).reshape(d, n) for owner in owners])

        loads = [one.load for one in measurements]
        self._force_std = fields(measurements, "force_std")
        self._prescribed, self._force = (fields(loads, name) for name in ("displacement", "force"))
        self.equations, self._open, fixed = (fields([m.load], name) for name in ("loaded", "open", "fixed"))
        self._active = m.load.loaded.reshape(d, n)  # on the host, where solvers are laid out
        self.make_solver: Callable[[Any], Any] = self._solver_maker()  # for K(x), from x
        observed = fields(measurements, "observed")
        self._known = None if bool((observed | fixed).all()) else observed | fixed
        self.measured, self._motion = fields(measurements, "displacement"), None
        std, data = xp.where(observed | fixed, fields(measurements, "displacement_std"), np.inf), observed
        if m.load.open.any():
            self._motion, self.measured = (fields(measurements, name) for name in ("motion", "still"))
            if bool((self._open & ~observed).any()):
                self.measured = stacked([self._expected(one) for one in measurements])
            # what is known of an open dof that was not measured: that it moves about as far as the others
            sizes = xp.asarray([UNSEEN_SIZE * one.size for one in measurements]).reshape(-1, 1, 1)
            std = xp.where(self._open & ~observed, sizes if len(measurements) > 1 else sizes[0], std)
            data = observed | self._open
        self._std = std
        self._noise = noise_of(self.device, std, data, m.geometry, m.displacement_correlation)
        # one equation for each loaded dof, less those spent on displacements in them that nobody measured
        contained = self._contained()
        self.n_data = m.load.n_equations - np.asarray(to_host((contained & ~fixed & ~observed).sum(axis=(-2, -1))))[()]
        if self._noise.lost:  # and less those that only repeat what their neighbours say
            self.n_data = self.n_data - self._noise.lost
        if (self.n_data <= 0).any():
            raise ValueError("fewer displacements were measured than there are unknown ones")
        self._forces = any(one.force_std[m.load.loaded].any() for one in measurements)
        self._open_dofs = None
        if m.load.open.any() and not self._forces:
            unknown = self._open & (contained if m.displacement_correlation is None else contained | observed)
            self._open_dofs = OpenDofs(m.form, self.device, self.equations, unknown, self._noise)
            self._prescribed = xp.where(self._open, self.measured, self._prescribed)
        if not self._forces and bool(self._prescribed.any()):
            self._prescribed = self._continued()
        self._last = _Last()
        self.watch = Stopwatch()  # of evaluations and of products with the Gauss-Newton Hessian

    def _solver_maker(self):
        return partial(self.measurement.form.solver, active=self._active)

    def _contained(self):
        """The dofs (d, N) whose displacement some equation contains."""
        form, xp = self.measurement.form, self.device.xp
        if not self.measurement.load.open.any():
            return xp.ones(self.equations.shape, bool)
        # the forces of a random displacement of the equations' dofs vanish exactly on all dofs that share no cell
        u = xp.asarray(np.random.default_rng(0).standard_normal(self.equations.shape))
        return form.force(xp.ones(u.shape[-1]), xp.where(self.equations, u, 0.0)) != 0

    def _expected(self, m):
        """The measured field (d, N) with what a homogeneous body without forces does on open dofs not measured.

        The displacements that were measured there are prescribed and the forces on the others are zero.
        """
        d, n = m.geometry.dim, m.geometry.n_nodes
        still, observed, prescribed = (
            attribute_on(self.device, owner, name).reshape(d, n)
            for owner, name in ((m, "still"), (m, "observed"), (m.load, "displacement"))
        )
        seen, open_ = m.observed.reshape(d, n), m.load.open.reshape(d, n)
        active = m.load.loaded.reshape(d, n) | (open_ & ~seen)
        for own, kept in zip(active, ~active, strict=True):
            if not kept.any():  # nothing holds this component: one dof has to
                own[np.argmax(own)] = False
        form, xp = m.form, self.device.xp
        ones, known = xp.ones(n), xp.where(observed & self._open, still, prescribed)
        solver = form.solver(ones, active)
        u = forward_state(form, ones, known, xp.zeros_like(known), solver, rtol=CONTINUATION_RTOL)
        return xp.where(self._open & ~observed, u, still)

    def _continued(self):
        """The prescribed displacements, continued from the boundary into the body by a solve with a constant modulus.

        The solver finds the difference from this field. That is only as large as the effect of the modulus' variation,
        so the tolerance, which is relative to the right-hand side, is relative to this effect too. The
        continuation by zero instead jumps within one layer of cells, and the forces of the jump, to which the
        tolerance would refer, are larger by the number of cells along an axis.
        """
        form, xp = self.measurement.form, self.device.xp
        ones = xp.ones((*self._prescribed.shape[:-2], self._prescribed.shape[-1]))
        solver = form.solver(ones, self._active)
        return forward_state(
            form, ones, self._prescribed, xp.zeros_like(self._prescribed), solver, rtol=CONTINUATION_RTOL
        )

    def __call__(self, x: Any) -> tuple[Any, Any]:
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
            If x does not fit.
        ModulusError (a ValueError)
            If x is not positive and finite.
        SolveError (a RuntimeError)
            If a linear solve does not converge.
        """
        device_of(displacement=self.measured, x=x)
        device = device_of(x=x)
        with device.activated():
            own, xp = device.asarray(x), device.xp
            moduli, batch, sound = take_moduli(own, self.measurement.form, self.on_failure)
            value, gradient = np.full(len(moduli), np.inf), xp.zeros_like(moduli)

            def evaluate(members):
                found = self.evaluate(moduli[members])
                value[members], gradient[members] = found.value, found.gradient

            for_members(evaluate, sound, self.on_failure, together=device.is_gpu and self.takes_batches)
            value, gradient = value.reshape(batch), gradient.reshape(np.shape(own))
            return (device.export(xp.asarray(value)) if batch else float(value)), device.export(gradient)

    def hessian_operator(self, x: Any, exact: bool = False) -> Any:
        """The Hessian of J at one modulus, as an operator on changes of it.

        Parameters
        ----------
        x : array_like, shape node_shape or (N,)
            Modulus in pascals.
        exact : bool
            The second derivatives of J, which may be indefinite far from a minimum; by default the Gauss-Newton Hessian
            D(u_hat)^T Gamma^-1 D(u_hat), which is positive semidefinite and whose inverse is the posterior covariance
            of a linearised problem with a flat prior.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator (on a GPU that of cupyx), shape (N, N)
            Symmetric up to the tolerance of the solves; per pascal^2. A product takes two solves with K without force
            noise and open dofs, else one with Gamma.

        Raises
        ------
        TypeError, ValueError
            If x does not fit.
        ValueError
            In products of the exact Hessian, for force noise together with displacements that were not measured.
        ModulusError, SolveError
            If x is not positive and finite, or a solve does not converge.
        """
        device_of(displacement=self.measured, x=x)
        device, form = device_of(x=x), self.measurement.form
        recipe = type(self).hessian_operator, (self, x, exact)
        with device.activated():
            x, batch, _ = take_moduli(device.asarray(x), form, "raise")
            form._single(batch, "x", form.node_shape)
            now = self.evaluate(x[0])

        def product(changes):
            return self.device.xp.stack([self.hessian_product(now, dx, exact)[0] for dx in changes])

        nodes = (form.geometry.n_nodes,)
        return field_operator(device.native, nodes, nodes, product, recipe=recipe)

    def hessian_product(self, now: Evaluation, dx: Any, exact: bool = True) -> tuple[Any, Any, Any]:
        """The Hessian of J times changes dx (..., N) of the moduli of an `Evaluation`, for the exact gradient.

        Also the changes of the denoised displacement (None for the Gauss-Newton Hessian) and of the multiplier.
        """
        form, u, z = self.measurement.form, now.linearization_point, now.multiplier
        assert now.response is not None
        residual = self.device.xp.where(self.equations, -form.force(dx, u), 0.0)
        if not exact:
            du, dz = now.response(residual, None)
            return -form.sensitivity(u, dz), None, dz
        du, dz = now.response(residual, form.force(dx, z))
        return -form.sensitivity(du, z) - form.sensitivity(u, dz), du, dz

    def evaluate(self, x: Any, rtol: float | None = None) -> Evaluation:
        """The data term at a checked modulus (N,) or (1, N), on a device also at a batch (B, N).

        A tolerance ``rtol`` much larger than that of the constructor is allowed: the dual solution corrects the value,
        whose error is then of second order in the errors of the solves.
        """
        with self.watch:
            if self._forces:
                solve = self._solve_general
            else:
                solve = self._solve_square if self._open_dofs is None else self._solve_open
            found = solve(x, rtol or self.rtol)
            self._last.multiplier = found.multiplier
            form = self.measurement.form
            point = found.displacement
            if self.kind == "frozen":
                point = self.measured
                if self._known is not None:
                    point = self.device.xp.where(self._known, self.measured, found.displacement)
            displacement = found.displacement if self._motion is None else found.displacement + self._motion

            def energy(residual):
                return self._values(found.frozen_value(residual))

            def frozen(other):
                return energy(self._residual(other, point))

            def frozen_gradient(other):
                return -form.sensitivity(point, found.frozen_multiplier(self._residual(other, point)))

            gradient = -form.sensitivity(point, found.multiplier)
            return Evaluation(
                self._values(found.value),
                gradient,
                displacement,
                found.multiplier,
                point,
                found.weighting,
                energy,
                frozen,
                frozen_gradient,
                self._open_dofs,
                found.weighting_with_open,
                found.response,
            )

    def _solve_square(self, x, rtol) -> _Solution:
        """Without force noise and open dofs K is square: Gamma^-1 = K^-T S_n^-1 K^-1 takes a forward and an adjoint
        solve.

        This is the inverse by two solves of `NoiseCovariance`, except that an unmeasured displacement has precision
        zero; it is written out here because u is needed as well as z.
        """
        form, xp = self.measurement.form, self.device.xp
        solver = self.make_solver(x)
        u = forward_state(form, x, self._prescribed, self._force, solver, _guess(self._last.primal, x), rtol)
        self._last.primal = u - self._prescribed
        deviation = xp.where(self.equations, u - self.measured, 0.0)
        weighted = self._noise.precision(deviation)
        z = solver.solve(weighted, _guess(self._last.multiplier, x), rtol).value
        value = 0.5 * dots(deviation, weighted, 2)
        if rtol > CORRECTED_RTOL:  # add the first-order effect of the forward solve's residual (dual weighted residual)
            value = value + dots(z, self._force - form.force(x, u), 2)

        def weighting(r):
            return solver.precondition(self._noise.precision(solver.precondition(r)))

        def frozen_value(residual):
            e = solver.solve(residual, rtol=rtol).value
            return 0.5 * dots(e, self._noise.precision(e), 2)

        def frozen_multiplier(residual):
            e = solver.solve(residual, rtol=rtol).value
            return solver.solve(self._noise.precision(e), rtol=rtol).value

        def response(residual, pull):
            du = solver.solve(residual, rtol=rtol).value
            pulled = self._noise.precision(du)
            if pull is not None:
                pulled = xp.where(self.equations, pulled - pull, 0.0)
            return du, solver.solve(pulled, rtol=rtol).value

        return _Solution(value, u, z, weighting, frozen_value, frozen_multiplier, response)

    def _solve_open(self, x, rtol) -> _Solution:
        """Without force noise, with open dofs: their displacements are found first, see `elimination`."""
        form, xp, open_dofs = self.measurement.form, self.device.xp, self._open_dofs
        assert open_dofs is not None
        solver = self.make_solver(x)
        last = _guess(self._last.primal, x)
        base = self._prescribed if last is None else xp.where(self._open, last, self._prescribed)
        guess = None if last is None else xp.where(self.equations, last - self._prescribed, 0.0)
        u = forward_state(form, x, base, self._force, solver, guess, rtol)
        found = open_dofs.nearest(x, solver, u, self.measured, _guess(self._last.multiplier, x), rtol)
        u, z = found.displacement, found.multiplier
        self._last.primal = u
        value = 0.5 * dots(found.deviation, found.weighted, 2)
        if rtol > CORRECTED_RTOL:
            value = value + dots(z, self._residual(x, u), 2)

        def weighting(r):
            return solver.precondition(self._noise.precision(solver.precondition(r)))

        def weighting_with_open(residual, values):
            """With e = p - K^-1 (residual + K p): minus K^-1 P e, and (P e - K K^-1 P e) on the open dofs."""
            p = open_dofs.field(values, residual)
            e = p - solver.precondition(xp.where(self.equations, residual + form.force(x, p), 0.0))
            pull = self._noise.precision(e)
            w = solver.precondition(xp.where(self.equations, pull, 0.0))
            return -w, open_dofs.values(pull - form.force(x, w))

        def frozen(residual, measured=0.0):
            change = solver.solve(residual, rtol=rtol).value
            return open_dofs.nearest(x, solver, change, xp.zeros_like(change) + measured, None, rtol, remember=False)

        def frozen_value(residual):
            nearest = frozen(residual)
            return 0.5 * dots(nearest.deviation, nearest.weighted, 2)

        def response(residual, pull):
            """A pull on the equations is balanced by forces K y, which leave one on the open dofs. That one is what
            other measured values there cause.
            """
            if pull is None:
                return None, frozen(residual).multiplier
            y = solver.solve(xp.where(self.equations, pull, 0.0), rtol=rtol).value
            rest = xp.where(self._open, pull - form.force(x, y), 0.0)
            found = frozen(residual, self._noise.covariance(rest))
            return found.displacement, found.multiplier - y

        return _Solution(
            value,
            u,
            z,
            weighting,
            frozen_value,
            lambda residual: frozen(residual).multiplier,
            response,
            weighting_with_open,
        )

    def _solve_general(self, x, rtol) -> _Solution:
        """A solve with Gamma for z. The value is the dual function z^T r - z^T Gamma z / 2, whose error is of second
        order in that of z.
        """
        gamma = self._covariance(x)
        r = self._residual(x, self.measured)
        z = gamma.find(r, rtol, _guess(self._last.multiplier, x))
        value = dots(z, r, 2) - 0.5 * dots(z, gamma.product(z), 2)
        form, xp = self.measurement.form, self.device.xp
        u = self.measured + self._noise.covariance(form.force(x, z))
        if self._known is not None:  # the rest follows from the equilibrium under the forces without their noise
            force = self._force - self._force_std**2 * z
            base = xp.where(self.equations, self.measured, u)
            u = forward_state(form, x, base, force, self.make_solver(x), u - base, rtol)

        def response(residual, pull):
            if pull is None:
                return None, gamma.find(residual, rtol)
            if self._known is not None:
                raise ValueError(
                    "second derivatives are not implemented for force noise together with displacements that were not "
                    "measured: set force_std to zero, or take the Gauss-Newton Hessian"
                )
            own = self._noise.covariance(pull)
            dz = gamma.find(xp.where(self.equations, residual - form.force(x, own), 0.0), rtol)
            return own + self._noise.covariance(form.force(x, dz)), dz

        return _Solution(
            value,
            u,
            z,
            gamma.precondition,
            lambda residual: 0.5 * dots(residual, gamma.find(residual, rtol), 2),
            lambda residual: gamma.find(residual, rtol),
            response,
        )

    def _covariance(self, x):
        return NoiseCovariance._of(
            self.measurement.form, x, self.measurement.load, self._std, self._force_std, self._noise
        )

    @staticmethod
    def _values(sums):
        """Results of `dots` over dof fields (..., 1, 1) as an array (...) on the host."""
        return np.asarray(to_host(sums))[..., 0, 0]

    def _residual(self, x, u):
        """Force residual f - K(x) u on the equations."""
        return self.device.xp.where(self.equations, self._force - self.measurement.form.force(x, u), 0.0)

    def curvature(self, x: Any, now: Evaluation) -> DataCurvature:
        """The Gauss-Newton Hessian in log x at moduli x (..., N), where the data term is ``now``."""
        return DataCurvature(self, x, now)

    def homogeneous_compliance(self) -> tuple[float, float]:
        """1 / x of the homogeneous body that fits the displacement best, and its standard deviation, per pascal.

        The displacement of a homogeneous body is a + b / x, with a from the prescribed displacements and b from the
        forces, so that J is quadratic in 1 / x. The open dofs take the values that suit best. Force noise is not
        regarded. For one measurement with a known force.
        """
        form, xp = self.measurement.form, self.device.xp
        ones = xp.ones(form.geometry.n_nodes)
        solver = form.solver(ones, self._active)
        b = solver.solve(self._force, rtol=CONTINUATION_RTOL).value
        a = self._prescribed
        if self._forces and bool(a.any()):
            a = self._continued()
        deviation = xp.where(self.equations, a - self.measured, 0.0)
        if self._open_dofs is not None:
            nearest = self._open_dofs.nearest
            deviation = nearest(ones, solver, a, self.measured, None, CONTINUATION_RTOL).deviation
            b = nearest(ones, solver, b, xp.zeros_like(b), None, CONTINUATION_RTOL).deviation
        weighted = self._noise.precision(b)
        energy = float((weighted * b).sum())
        along = -float((weighted * deviation).sum())
        return along / energy, energy**-0.5

    def noise_gradient(self, x: Any, now: Evaluation, rng: np.random.Generator, rtol: float, draws: int = 1) -> Any:
        """A random gradient in x, (..., N), of the kind that noise alone causes: its covariance is D^T Gamma^-1 D.

        D is taken at the linearisation point of the `Evaluation`. All members of a batch get the same white noise, each
        scaled by its own standard deviations; with ``draws`` above one, so many runs of consecutive members get noise
        of their own.
        """
        form, xp = self.measurement.form, self.device.xp
        shape = (*x.shape[:-1], *self.measured.shape[-2:])

        def normal():
            if draws == 1:
                return xp.asarray(rng.standard_normal(shape[-2:]))
            own = rng.standard_normal((draws, *shape[-2:]))
            return xp.asarray(np.repeat(own, shape[0] // draws, axis=0))

        if self._forces:
            force = form.force(x, self._noise.draw(normal()))
            force += self._force_std * normal()
            z = self._covariance(x).find(xp.where(self.equations, force, 0.0), rtol)
        elif self._open_dofs is not None:
            noise = xp.broadcast_to(self._noise.draw(normal()), shape)
            solver = self.make_solver(x)
            z = self._open_dofs.nearest(x, solver, xp.zeros(shape), noise, None, rtol, remember=False).multiplier
        else:
            xi = xp.broadcast_to(xp.where(self.equations, self._noise.draw_weighted(normal()), 0.0), shape)
            z = self.make_solver(x).solve(xi, rtol=rtol).value
        return form.sensitivity(now.linearization_point, z)

    def noise_gradients(self, x: Any, now: Any, rng: np.random.Generator, rtol: float) -> list[Any]:
        """Independent random gradients (..., N) whose covariances add up to D^T Gamma^-1 D: here one."""
        return [self.noise_gradient(x, now, rng, rtol)]


def _rebuilt(measurements, *arguments):
    """A copy of a data term, which begins without earlier solutions; for pickling."""
    fidelity = Fidelity.__new__(Fidelity)
    with measurements[0].device.activated():
        fidelity._set_up(measurements, *arguments)
    return fidelity


def _guess(last, x):
    """The last solution as an initial guess for moduli x (..., N); None if it is for another number of moduli."""
    return last if last is not None and last.shape[:-2] == x.shape[:-1] else None
