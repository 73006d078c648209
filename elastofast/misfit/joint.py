"""The data term of several frames of one body: the sum of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend.stopwatch import Stopwatch
from ..boundary import check_support
from ..forward.solve import check_on_failure, check_rtol
from ..joint import JointMeasurement
from ..measurement import Measurement
from .curvature import DataCurvature
from .fidelity import GRADIENTS, Evaluation, Fidelity

__all__ = ["JointCurvature", "JointEvaluation", "JointFidelity", "alike", "data_term"]

# Random vectors by which the trace of a Hessian is estimated, of several frames: the variance of the estimate falls
# with their number. Not studied.
MAX_PROBES = 4


def data_term(measurements: Sequence[Measurement | JointMeasurement], gradient: str, rtol: float) -> Fidelity:
    """The data term of a batch of moduli: one measurement for each, or one joint measurement, repeated for each.

    Nothing is checked.
    """
    first = measurements[0]
    if isinstance(first, JointMeasurement):
        return JointFidelity.of_members(first, len(measurements), gradient, rtol)
    return Fidelity.of_batch([m for m in measurements if isinstance(m, Measurement)], gradient, rtol)


def alike(one: Measurement, other: Measurement) -> bool:
    """Whether two measurements can be worked on as one batch of a `Fidelity`.

    On a device those can that share everything but their numbers. In host memory one solve keeps all cores busy, and
    several hierarchies would not fit into their caches.
    """
    if not one.device.is_gpu or one.displacement_correlation is not None or other.displacement_correlation is not None:
        return False

    def kind(m):
        return m.geometry, m.law, m.device, bool(m.force_std[m.load.loaded].any())

    return kind(one) == kind(other) and all(
        np.array_equal(getattr(one.load, name), getattr(other.load, name)) for name in ("fixed", "open")
    )


class JointEvaluation(NamedTuple):
    """The data term of all frames at moduli of shape (B, N), see `Evaluation`.

    Attributes
    ----------
    value : numpy.ndarray, shape (B,)
    gradient : array, shape (B, N)
    displacement, multiplier : array, shape (B, frames, d, N)
    frozen, frozen_gradient : callable
    frame_values : numpy.ndarray, shape (frames, B)
        The data term of each frame.
    parts : tuple of Evaluation
        Of the parts of the `JointFidelity`.
    """

    value: np.ndarray
    gradient: Any
    displacement: Any
    multiplier: Any
    frozen: Callable[[Any], np.ndarray]
    frozen_gradient: Callable[[Any], Any]
    frame_values: np.ndarray
    parts: tuple[Evaluation, ...]


class _Part:
    """Frames that one `Fidelity` evaluates as a batch: all members for the first frame, then for the next."""

    def __init__(self, fidelity: Fidelity, frames: list[int]) -> None:
        self.fidelity, self.frames = fidelity, frames

    def spread(self, v):
        """Fields (B, ...) of the members, for each frame once."""
        return v if len(self.frames) == 1 else self.fidelity.device.xp.concatenate([v] * len(self.frames))

    def by_frame(self, v):
        """The entries (frames, B, ...) of an array of the batch."""
        return v.reshape(len(self.frames), -1, *v.shape[1:])

    def total(self, v):
        """The sum (B, ...) over the frames of an array of the batch."""
        return v if len(self.frames) == 1 else self.by_frame(v).sum(axis=0)


class _SharedSolver:
    """Makes solvers for K(x), and gives the last one again for the same array x."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make, self._x, self._solver = make, None, None

    def __call__(self, x):
        if self._x is not x:
            self._x = self._solver = None  # whose memory the next one may need
            self._x, self._solver = x, self._make(x)
        return self._solver


class JointFidelity(Fidelity):
    """Negative log-likelihood of several frames of one body: the sum of theirs, see `Fidelity`.

    Gradient and Gauss-Newton Hessian are the sums, too: frames have independent noise, and what is unknown of each
    besides the modulus (its equilibrium, the displacements of its open dofs) is eliminated by itself.

    Parameters
    ----------
    measurement : JointMeasurement
    gradient : {"exact", "frozen"}
    rtol : float
        Relative tolerance of the linear solves.
    on_failure : {"raise", "inf"}
        See `Fidelity`.

    Attributes
    ----------
    n_data : float
        Degrees of freedom of all frames: at the true modulus 2 J is chi-square distributed with as many.
    frame_n_data : numpy.ndarray, shape (frames,)
        Those of each frame.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or the body is free to move in a frame.

    Examples
    --------
    >>> J, g = JointFidelity(ef.JointMeasurement([pressed, sheared]))(x)  # doctest: +SKIP
    """

    takes_batches = False

    def __init__(
        self, measurement: JointMeasurement, gradient: str = "exact", rtol: float = 1e-8, *, on_failure: str = "raise"
    ) -> None:
        if not isinstance(measurement, JointMeasurement):
            raise TypeError(f"measurement must be a JointMeasurement, got {type(measurement).__name__}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        check_rtol(rtol)
        check_on_failure(on_failure)
        for m in measurement.frames:
            check_support(m.geometry, m.load)
            if not m.noise_known:
                raise ValueError("displacement_std of a frame was not given: state it, or estimate it")
            if m.load.n_equations == 0:
                raise ValueError("the load of a frame has no loaded dof, so there is no equation to fit")
        with measurement.device.activated():
            self._join(measurement, 1, gradient, rtol)
        self.on_failure = on_failure

    @classmethod
    def of_members(cls, measurement: JointMeasurement, members: int, gradient: str, rtol: float) -> JointFidelity:
        """The same for several moduli at a time; in host memory for one. Nothing is checked."""
        self = cls.__new__(cls)
        self._join(measurement, members, gradient, rtol)
        return self

    def __reduce__(self):
        return JointFidelity.of_members, (self.measurement, self._members, self.kind, self.rtol)

    def _join(self, measurement, members, gradient, rtol):
        self._members, self.on_failure = members, "raise"
        self.measurement, self.kind, self.rtol = measurement, gradient, rtol  # type: ignore[assignment]
        self.device, self.watch = measurement.device.native, Stopwatch()
        self.frames = len(measurement.frames)
        groups: list[list[int]] = []
        for k, m in enumerate(measurement.frames):
            group = next((own for own in groups if alike(measurement.frames[own[0]], m)), None)
            if group is None:
                groups.append([k])
            else:
                group.append(k)
        self._parts = []
        for group in groups:
            batch = [measurement.frames[k] for k in group for _ in range(members)]
            self._parts.append(_Part(Fidelity.of_batch(batch, gradient, rtol), group))
        self._share_solvers()
        self._order = np.argsort([k for group in groups for k in group])
        degrees = [
            part.by_frame(np.broadcast_to(part.fidelity.n_data, len(part.frames) * members)) for part in self._parts
        ]
        self.frame_n_data = self._in_order(degrees)[:, 0]
        self.n_data = self.frame_n_data.sum()
        xp = self.device.xp
        measured = [
            part.by_frame(xp.broadcast_to(part.fidelity.measured, (len(part.frames) * members, *self._dofs)))
            for part in self._parts
        ]
        self.measured = self._as_members(measured)

    def _share_solvers(self):
        """Parts with one frame each and the same equations have the same K(x): one solver serves them all."""
        made: list[tuple[Any, _SharedSolver]] = []
        for part in self._parts:
            if len(part.frames) > 1:
                continue
            loaded = self.measurement.frames[part.frames[0]].load.loaded
            shared = next((own for other, own in made if np.array_equal(other, loaded)), None)
            if shared is None:
                shared = _SharedSolver(part.fidelity.make_solver)
                made.append((loaded, shared))
            part.fidelity.make_solver = shared

    @property
    def _dofs(self):
        geometry = self.measurement.geometry
        return geometry.dim, geometry.n_nodes

    def _in_order(self, by_part):
        """Arrays (frames of the part, ...) of all parts as one (frames, ...), in the order of the frames."""
        return np.concatenate(by_part)[self._order]

    def _as_members(self, by_part):
        """Arrays (frames of the part, B, ...) of all parts as one (B, frames, ...)."""
        xp = self.device.xp
        every = xp.concatenate(by_part) if len(by_part) > 1 else by_part[0]
        return xp.moveaxis(every[xp.asarray(self._order)], 0, 1)

    def evaluate(self, x: Any, rtol: float | None = None) -> JointEvaluation:  # type: ignore[override]
        """The data term at a checked modulus (N,) or moduli (B, N), see `Fidelity.evaluate`."""
        flat, x = x.ndim == 1, x.reshape(-1, x.shape[-1])
        parts, found = self._parts, []
        with self.watch:
            for part in parts:
                found.append(part.fidelity.evaluate(part.spread(x), rtol))

        def frozen(other):
            return sum(part.total(own.frozen(part.spread(other))) for part, own in zip(parts, found, strict=True))  # type: ignore[return-value]

        def frozen_gradient(other):
            return sum(
                part.total(own.frozen_gradient(part.spread(other))) for part, own in zip(parts, found, strict=True)
            )

        values = self._in_order([part.by_frame(own.value) for part, own in zip(parts, found, strict=True)])
        displacement, multiplier = (
            self._as_members([part.by_frame(getattr(own, name)) for part, own in zip(parts, found, strict=True)])
            for name in ("displacement", "multiplier")
        )
        gradient = sum(part.total(own.gradient) for part, own in zip(parts, found, strict=True))
        every = JointEvaluation(
            values.sum(axis=0), gradient, displacement, multiplier, frozen, frozen_gradient, values, tuple(found)
        )
        return every._replace(value=every.value[0], gradient=every.gradient[0]) if flat else every

    def hessian_product(self, now: Any, dx: Any, exact: bool = True) -> tuple[Any, Any, Any]:
        """The Hessian of J times changes dx (B, N) of the moduli of an evaluation; no changes of the fields."""
        dx = dx.reshape(-1, dx.shape[-1])
        products = (
            part.total(part.fidelity.hessian_product(own, part.spread(dx), exact)[0])
            for part, own in zip(self._parts, now.parts, strict=True)
        )
        return sum(products), None, None

    def curvature(self, x: Any, now: Any) -> JointCurvature:  # type: ignore[override]
        """The Gauss-Newton Hessian in log x at moduli x (B, N), where the data term is ``now``."""
        return JointCurvature(self, x, now)

    def noise_gradient(self, x: Any, now: Any, rng: np.random.Generator, rtol: float, draws: int = 1) -> Any:
        """A random gradient in x (B, N) of the kind that noise alone causes, with noise of its own for each frame."""
        return sum(self._noise_gradients(x, now, rng, rtol))

    def noise_gradients(self, x: Any, now: Any, rng: np.random.Generator, rtol: float) -> list[Any]:
        """Independent random gradients (B, N) whose covariances add up to the Hessian: of a frame or several each."""
        each = self._noise_gradients(x, now, rng, rtol)
        count = min(len(each), MAX_PROBES)
        return [sum(each[k] for k in range(first, len(each), count)) for first in range(count)]

    def _noise_gradients(self, x, now, rng, rtol):
        """Those of all frames, (frames, B, N)."""
        return self.device.xp.concatenate(
            [
                part.by_frame(part.fidelity.noise_gradient(part.spread(x), own, rng, rtol, draws=len(part.frames)))
                for part, own in zip(self._parts, now.parts, strict=True)
            ]
        )


class JointCurvature:
    """Gauss-Newton Hessian of the data term of all frames in z = log x: the sum of theirs, see `DataCurvature`.

    Where displacements of open dofs are unknown, those of each frame are unknowns of their own.
    """

    def __init__(self, fidelity: JointFidelity, x: Any, now: JointEvaluation) -> None:
        self._xp, self._watch = fidelity.device.xp, fidelity.watch
        self._parts = [
            (part, part.fidelity.curvature(part.spread(x), own))
            for part, own in zip(fidelity._parts, now.parts, strict=True)
        ]
        unknown = any(own.open_dofs is not None for _, own in self._parts)
        self.open_dofs = _JointOpenDofs(self._parts, self._xp) if unknown else None

    def __call__(self, v: Any) -> Any:
        """H v."""
        with self._watch:
            return sum(part.total(own(part.spread(v))) for part, own in self._parts)

    def with_open(self, v: Any, p: Any) -> tuple[Any, Any]:
        """The Hessian in all unknowns times (v, p), shapes (B, N) and (B, open dofs of all frames)."""
        assert self.open_dofs is not None
        total, at_open = 0.0, []
        with self._watch:
            for (part, own), values in zip(self._parts, self.open_dofs.split(p), strict=True):
                if values is None:
                    product = own(part.spread(v))
                else:
                    product, q = own.with_open(part.spread(v), values)
                    at_open.append(q)
                total = total + part.total(product)
            return total, self.open_dofs.joined(at_open)


class _JointOpenDofs:
    """The unknown displacements of the open dofs of all frames as one vector for each member, see `OpenDofs`."""

    def __init__(self, parts: list[tuple[_Part, DataCurvature]], xp: Any) -> None:
        self._parts, self._xp = parts, xp
        sizes = [0 if own.open_dofs is None else len(part.frames) * own.open_dofs.count for part, own in parts]
        self._ends = np.cumsum(sizes)
        self.count = int(self._ends[-1])

    def split(self, values):
        """Values (B, count) as those of each part's batch; None for parts without open dofs."""
        pieces: list[Any] = []
        for (part, own), end in zip(self._parts, self._ends, strict=True):
            if own.open_dofs is None:
                pieces.append(None)
                continue
            frames, count = len(part.frames), own.open_dofs.count
            piece = values[:, end - frames * count : end].reshape(-1, frames, count)
            pieces.append(self._xp.moveaxis(piece, 1, 0).reshape(-1, count))
        return pieces

    def joined(self, pieces):
        """The inverse of `split`, from the pieces that are not None."""
        some = [part for part, own in self._parts if own.open_dofs is not None]
        rows = [self._xp.moveaxis(part.by_frame(piece), 0, 1) for part, piece in zip(some, pieces, strict=True)]
        return self._xp.concatenate([row.reshape(len(row), -1) for row in rows], axis=-1)

    def precondition(self, r):
        """About S^-1 r, frame by frame."""
        found = []
        for (_, own), piece in zip(self._parts, self.split(r), strict=True):
            if own.open_dofs is not None:
                found.append(own.open_dofs.precondition(piece))
        return self.joined(found)
