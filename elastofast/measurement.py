"""What was measured: the displacements, their noise levels, and how the body was loaded."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_dilation

from .backend.device import Device, device_of, to_host
from .boundary import Boundary, rigid_motion
from .errors import DataError, refuse_masked
from .forward.form import check_body
from .geometry import Grid, Mesh
from .io.measurements import measurement_arguments, save_measurement
from .io.strain import LARGEST_STRAIN, SMALLEST_STRAIN
from .laws import Law
from .thumbnail import shown

if TYPE_CHECKING:
    from .forward.form import ElasticForm
    from .io.sidecar import Sidecar

__all__ = ["Measurement", "load_frames", "load_measurement"]

# A displacement whose stated standard deviation exceeds this many times the size of the whole field (its root mean
# square, weighted by the precision), and MUCH_NOISIER times that of the best one, says nothing that the body's
# equilibrium does not say better. It counts as not measured, so that chi2 is not diluted by data that cannot be wrong.
# Not studied: any number well above one does.
UNINFORMATIVE = 3.0
MUCH_NOISIER = 30.0
# A measured value on a fixed dof that differs by more than this many standard deviations contradicts the load.
CONTRADICTION = 5.0
# A resultant force of no more than this many standard deviations is one that its own noise could have made.
NOISY_RESULTANT = 3.0
# Strains by the range of a component (between two percentiles, which outliers do not move) over the extent along it.
LARGE_STRAIN = 0.2
STRAIN_PERCENTILES = 1.0, 99.0
PROVISIONAL = 0.01  # noise over the size of the field, for as long as nobody has stated or estimated it
MANY_ZEROS = 9  # exact zeros in a component above which they are looked at


class Measurement:
    """A measured displacement field with its noise level, the load and the material law.

    Parameters
    ----------
    geometry : Grid or Mesh
        Where the nodes are.
    law : Law
        `PlaneStress`, `PlaneStrain` or `Solid`, of the geometry's dimension.
    load : Boundary
        Which dofs are fixed, loaded or open, see `Boundary` and `compression`.
    displacement : array_like of float, shape (d, *geometry.node_shape)
        Measured displacement in metres, component i along coordinate i. Masked entries of a `numpy.ma` array were not
        measured. If it is a CuPy array or a CUDA tensor of
        torch, all later work is done on its GPU (grids only). On fixed dofs it is replaced by the known displacement of
        the load. Where ``displacement_std`` is infinite, or not given, it may be NaN, and is stored as 0.
    displacement_std : float or array_like, scalar, (d,), node_shape or (d, *node_shape), optional
        Standard deviation of the displacement noise in metres, positive except on fixed dofs, where it has no
        meaning. ``numpy.inf`` marks a value that was not measured. A simulated field without noise needs one too,
        namely its rounding or discretisation error. Where it is not known, `reconstruct` estimates it and says so;
        until then (see `noise_known`) it only tells what was measured, which is what is finite.
    force_std : float or array_like, scalar or (d, *node_shape), optional
        Standard deviation of the force noise in newtons (2-D: per metre of thickness), zero or more.
    reference : array_like of float, shape node_shape, optional
        The true modulus in pascals where it is known. It is for evaluation only; no reconstruction reads it.
    displacement_correlation : float, sequence of d floats, or sequence of d arrays, optional
        Correlation of the displacement noise from node to node, on grids; none by default. A length in metres, for all
        axes or for each, is the distance at which the correlation exp(-(distance / length)^2) has fallen to 1 / e; zero
        means none. An array for each axis has the correlation at a distance of 0, 1, 2, ... nodes, the first being 1
        and those beyond its end zero. The correlation of two nodes is the product over the axes, and three thousandths
        of the variance count as independent. Windows of a tracker that overlap correlate its noise.
    device : Device, optional
        Where later work is done; by default where the displacement is.

    Attributes
    ----------
    displacement, displacement_std, force_std : numpy.ndarray, float64, shape (d, *node_shape)
        The arguments, checked, broadcast and read-only.
    reference : numpy.ndarray, float64, shape node_shape, or None
    displacement_correlation : tuple of d arrays, or None
        The correlation along each axis by the distance in nodes.
    noise_known : bool
        False if ``displacement_std`` was not given.
    device : Device
        Where the work is done; moduli are arrays of its kind.

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong type, shape or values that no measurement can have, such as a strain above 100 %.

    Warns
    -----
    UserWarning
        If many values are exactly zero beside others that are not, which is how missing data are often written; if the
        displacement suggests a strain above 20 %, for which linear elasticity is no model, or below 1e-8; if
        it differs by more than five standard deviations from the known displacement of a fixed dof; or if the known
        forces or the total force are no larger than their noise.

    Examples
    --------
    >>> import elastofast as ef
    >>> grid = ef.Grid(shape=(64, 64), spacing=(6e-4, 6e-4))
    >>> load = ef.compression(grid, pressure=100.0)
    >>> m = ef.Measurement(grid, ef.PlaneStress(0.495), load, u, displacement_std=2e-7)  # doctest: +SKIP
    """

    def __init__(
        self,
        geometry: Grid | Mesh,
        law: Law,
        load: Boundary,
        displacement: Any,
        displacement_std: ArrayLike | None = None,
        force_std: ArrayLike = 0.0,
        reference: ArrayLike | None = None,
        *,
        displacement_correlation: Any = None,
        device: Device | None = None,
    ) -> None:
        self.noise_known = displacement_std is not None
        if displacement_std is None:
            displacement, displacement_std = _provisional(displacement)
        given = self._set(geometry, law, load, displacement, displacement_std, force_std, reference, device)
        self.displacement_correlation = correlation_tables(displacement_correlation, geometry)
        _warn_of_fixed(self, given)
        _warn_of_forces(self)
        _check_strain(self)
        _warn_of_zeros(self)

    def derived(self, **changes: Any) -> Measurement:
        """The same with other arguments and without reference; raises no warnings, which the user has seen already."""
        names = "geometry", "law", "load", "displacement", "displacement_std", "force_std", "displacement_correlation"
        arguments = {name: getattr(self, name) for name in names} | changes
        other = Measurement.__new__(Measurement)
        other.displacement_correlation = arguments.pop("displacement_correlation")
        other.noise_known = self.noise_known or "displacement_std" in changes
        other._set(**arguments, reference=None, device=self.device)
        return other

    def _set(self, geometry, law, load, displacement, displacement_std, force_std, reference, device):
        """Check the arguments and take them over; returns the displacement as it was given."""
        check_body(geometry, law)
        if not isinstance(load, Boundary):
            raise TypeError(f"load must be a Boundary, for example from compression(), got {type(load).__name__}")
        load.check(geometry)
        self.geometry, self.law, self.load = geometry, law, load

        shape = (geometry.dim, *geometry.node_shape)
        self.device = device or device_of(displacement=displacement)
        displacement, displacement_std = _unmasked(displacement, displacement_std, geometry.dim)
        u = _real(displacement, "displacement").copy()
        if u.shape == (geometry.dim, geometry.n_nodes):
            u = u.reshape(shape)
        if u.shape != shape:
            raise DataError(f"displacement must have shape {shape}, components first, got {u.shape}{_hint(u, shape)}")
        std = check_displacement_std(displacement_std, shape, load.fixed).copy()
        given = u.copy()
        u[load.fixed] = load.displacement[load.fixed]
        u[np.isinf(std) & ~load.fixed] = 0.0
        if not np.isfinite(u).all():
            raise DataError(
                f"displacement must be finite (metres), {_first_bad(~np.isfinite(u), u)}; "
                "set displacement_std to inf where nothing was measured"
            )
        force = check_force_std(force_std, shape).copy()

        if reference is not None:
            reference = _real(reference, "reference").copy()
            if reference.shape != geometry.node_shape:
                raise DataError(
                    f"reference must have one modulus per node, shape {geometry.node_shape}, got {reference.shape}"
                )
            bad = ~(np.isfinite(reference) & (reference > 0))
            if bad.any():
                raise DataError(f"reference must be positive and finite (pascals), {_first_bad(bad, reference)}")
            reference.setflags(write=False)

        self.displacement, self.displacement_std, self.force_std, self.reference = u, std, force, reference
        for a in (u, std, force):
            a.setflags(write=False)
        return given

    def __setstate__(self, state):
        self.__dict__.update(state)
        for a in state.values():
            if isinstance(a, np.ndarray):  # which unpickled arrays are not
                a.setflags(write=False)

    def __repr__(self):
        fixed, open_ = int(self.load.fixed.sum()), int(self.load.open.sum())
        return (
            f"Measurement({self.geometry!r}, {self.law!r}, {self.load.n_equations} equations, "
            f"{fixed} fixed and {open_} open dofs{', with reference' if self.reference is not None else ''}"
            f"{'' if self.noise_known else ', noise not known'})"
        )

    def _repr_html_(self):
        axial = self.displacement[self.geometry.axial]
        noisy = 1e6 * self.displacement_std[self.observed]
        noise = f"{noisy.min():.3g} to {noisy.max():.3g} micrometres" if self.noise_known else "not known"
        facts = {
            "geometry": repr(self.geometry),
            "law": repr(self.law),
            "load": repr(self.load),
            "axial displacement": f"{axial.min() * 1e6:.3g} to {axial.max() * 1e6:.3g} micrometres",
            "noise": f"{noise}, {noisy.size} values",
        }
        return shown("Measurement", facts, axial, self.geometry)

    @property
    def frames(self) -> tuple[Measurement, ...]:
        """The measurement itself: a `JointMeasurement` has several."""
        return (self,)

    @cached_property
    def form(self) -> ElasticForm:
        """The `ElasticForm` of this geometry and law."""
        from .forward.form import ElasticForm

        return ElasticForm(self.geometry, self.law)

    @property
    def checksum(self) -> str:
        """SHA-256 of all that a reconstruction reads, by which a measurement is known again."""
        m, load, geometry = self, self.load, self.geometry
        found = hashlib.sha256(f"{geometry!r} {self.law!r} {self.noise_known}".encode())
        places = [np.array(geometry.spacing)] if isinstance(geometry, Grid) else [geometry.points, geometry.cells]
        loads = [load.fixed, load.displacement, load.force, load.open, *map(np.asarray, load.total_force or ())]
        noise = [m.displacement_std, m.force_std, *(m.displacement_correlation or ())]
        poisson = np.asarray(self.law.poisson)  # which may be a map
        for own in (*places, poisson, *loads, m.displacement, *noise):
            found.update(np.ascontiguousarray(own).data)
        return found.hexdigest()

    @cached_property
    def motion(self) -> np.ndarray:
        """The rigid motion in the measured displacement that the fixed dofs allow, shape (d, *node_shape), metres."""
        motion = rigid_motion(self.geometry, self.load.fixed, self.displacement, self._reliability)
        motion.setflags(write=False)
        return motion

    @cached_property
    def still(self) -> np.ndarray:
        """The measured displacement without `motion`, zero where nothing was measured; metres."""
        known = self.load.fixed | np.isfinite(self.displacement_std)
        still = np.where(known, self.displacement - self.motion, 0.0)
        still.setflags(write=False)
        return still

    @cached_property
    def level(self) -> float:
        """Typical standard deviation of the best measured component: the least median of all components, in metres."""
        std, measured = self.displacement_std, np.isfinite(self.displacement_std) & ~self.load.fixed
        medians = [np.median(own[seen]) for own, seen in zip(std, measured, strict=True) if seen.any()]
        return float(min(medians))

    @cached_property
    def size(self) -> float:
        """Root mean square of `still` in metres, in which noisy values count less; at least `level`."""
        weight = self._reliability
        return max(float(np.sqrt((weight * self.still**2).sum() / weight.sum())), self.level)

    @cached_property
    def observed(self) -> np.ndarray:
        """Displacements that count as measured, a mask of shape (d, *node_shape).

        All with noise but those whose standard deviation is infinite, or so large, beside others and beside the whole
        field, that the values say nothing.
        """
        std = self.displacement_std
        observed = ~self.load.fixed & np.isfinite(std)
        if std[observed].max() > MUCH_NOISIER * self.level:
            observed &= (std <= MUCH_NOISIER * self.level) | (std <= UNINFORMATIVE * self.size)
        observed.setflags(write=False)
        return observed

    @property
    def _reliability(self):
        """Weights between zero, where nothing was measured, and one, where the noise is below `level`."""
        std, measured = self.displacement_std, np.isfinite(self.displacement_std) & ~self.load.fixed
        return np.where(measured, 1 / (1 + (np.where(measured, std, 0.0) / self.level) ** 2), 0.0)

    def diagnose(self) -> Any:
        """What this measurement can say about the modulus; the same as `elastofast.diagnose`."""
        # by its public name: inversion stands behind this module, and imports it
        return import_module(__package__).diagnose(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write to an HDF5 (.h5, .hdf5), NumPy (.npz) or MATLAB v5 (.mat) file, chosen by the suffix.

        Parameters
        ----------
        path : path-like
            The file; an existing one is replaced only once the new one is complete. Layout: docs/files.md.

        Raises
        ------
        ValueError
            If the suffix is none of these.
        OSError
            If the file cannot be written (no such folder, full disk); no incomplete file is left behind.
        """
        save_measurement(path, self)


def load_measurement(
    path: str | os.PathLike, sidecar: str | os.PathLike | Mapping[str, Any] | Sidecar | None = None, **overrides: Any
) -> Measurement:
    """Read a `Measurement` from a file.

    With a sidecar, the file may be of any program: HDF5, NPZ, MATLAB (v5 or v7.3), a table of text, NIfTI, PNG or TIFF
    (docs/files.md). Without one, two layouts are understood: elastofast's own (docs/files.md) and that of the published
    comp-elast data, which has ``vertices`` (N, 2) in metres, lateral then axial; ``triangles``, counted from zero;
    ``uxy`` and optionally ``fxy``, x and y for each node in turn, in metres and newtons per metre; and optionally ``E``
    (Pa), which becomes the reference. Files of that layout state neither law nor support nor noise level. The law is
    plane strain with a Poisson ratio of 0.495 unless it is given. The support is the published one: the bottom edge,
    where the axial coordinate is smallest, is fixed axially, and its node nearest to the middle is also fixed
    laterally; the values of ``fxy`` there are reactions and are not used. Where neither the file nor an argument states
    the noise level, the measurement has none, and `reconstruct` estimates it.

    Parameters
    ----------
    path : path-like
        The file. Its format is recognised by its content.
    sidecar : path-like or dict, optional
        What the variables of somebody else's file are, in which units: a TOML file that ``elastofast inspect`` has
        proposed, a modulus file that was reconstructed with one, or the same as a dict of sections.
    **overrides
        Any argument of `Measurement`, which is used in place of what the file says: ``geometry``, ``law``, ``load``,
        ``displacement``, ``displacement_std`` (metres; None to have it estimated), ``force_std`` (newtons),
        ``reference`` (pascals). With a sidecar, ``displacement_std`` is one number, for all values that were measured.

    Returns
    -------
    Measurement

    Raises
    ------
    OSError
        If the file is missing or cannot be opened.
    ValueError
        If the file is empty, damaged, of another kind, or lacks something that a measurement needs, or the sidecar
        does not fit it or leaves something to be stated.
    TypeError
        If an override is not an argument of `Measurement`.

    Examples
    --------
    >>> m = load_measurement("Data3.mat", displacement_std=1e-8)  # doctest: +SKIP
    >>> m = load_measurement("vic2d.csv", sidecar="vic2d.toml")  # doctest: +SKIP
    """
    frames = load_frames(path, sidecar, **overrides)
    if len(frames) > 1:
        raise ValueError(
            f"{path}: the file holds {len(frames)} frames, not one measurement: read them with load_frames, or "
            "reconstruct one map from all by elastofast reconstruct --joint"
        )
    return frames[0]


def load_frames(
    path: str | os.PathLike, sidecar: str | os.PathLike | Mapping[str, Any] | Sidecar | None = None, **overrides: Any
) -> list[Measurement]:
    """Read all measurements of one body in a file, such as the frames of a compression sequence.

    In elastofast's own layout, the displacement of several frames has a leading axis, (frames, d, nodes), and so has
    everything else that differs between them. A sidecar states their number as ``files.frames`` and has ``{frame}`` in
    names.

    Parameters
    ----------
    path, sidecar, **overrides
        As for `load_measurement`; overrides are those of every frame.

    Returns
    -------
    list of Measurement

    Raises
    ------
    OSError, ValueError, TypeError
        As `load_measurement`.

    Examples
    --------
    >>> result = ef.reconstruct(load_frames("sequence.h5"), joint=True)  # doctest: +SKIP
    """
    with measurement_arguments(path, sidecar, overrides) as frames:
        return [Measurement(**values) for values in frames]


def check_displacement_std(value, shape, fixed) -> np.ndarray:
    """Standard deviations (d, *node_shape) in metres, positive except on fixed dofs; infinite means not measured.

    They are a read-only view of what was given, so that a single number takes no memory.
    """
    d, nodes = shape[0], shape[1:]
    std = _real(value, "displacement_std")
    if std.shape == (d,):
        std = std.reshape(d, *[1] * len(nodes))
    elif std.shape == (d, np.prod(nodes)):
        std = std.reshape(shape)
    elif std.shape not in ((), nodes, shape):
        raise DataError(f"displacement_std must be a scalar or have shape {(d,)}, {nodes} or {shape}, got {std.shape}")
    some_bad, some_infinite = not (std > 0).all(), np.isinf(std).any()
    std = np.broadcast_to(std, shape)
    if some_bad and (bad := ~((std > 0) | (fixed & (std == 0)))).any():
        raise DataError(
            f"displacement_std must be positive (metres), {_first_bad(bad, std)}; use inf where nothing was measured"
        )
    if fixed.all():
        raise DataError("load fixes every dof: there is nothing to measure")
    if some_infinite and np.isinf(std[~fixed]).all():
        raise DataError("displacement_std is infinite everywhere: nothing was measured")
    return std


def check_force_std(value, shape) -> np.ndarray:
    """Standard deviations (d, *node_shape) of the force noise in newtons, zero or more, as a read-only view."""
    std = _real(value, "force_std")
    if std.shape == (shape[0], np.prod(shape[1:])):
        std = std.reshape(shape)
    if std.shape not in ((), shape):
        raise DataError(f"force_std must be a scalar or have shape {shape}, got shape {std.shape}")
    good = np.isfinite(std) & (std >= 0)
    std = np.broadcast_to(std, shape)
    if not good.all():
        bad = np.broadcast_to(~good, shape)
        raise DataError(f"force_std must be finite and not negative (newtons), {_first_bad(bad, std)}")
    return std


def correlation_tables(value: Any, geometry: Grid | Mesh) -> tuple[np.ndarray, ...] | None:
    """The correlation of the noise along each axis by the distance in nodes; None if it is independent.

    Parameters
    ----------
    value : float, sequence of d floats, sequence of d arrays, or None
        The argument ``displacement_correlation``.
    geometry : Grid or Mesh

    Raises
    ------
    ValueError, TypeError
        If the value does not fit; the message names it.
    """
    if value is None:
        return None
    name = "displacement_correlation"
    if not isinstance(geometry, Grid):
        raise DataError(f"{name} needs a Grid, got {geometry!r}: leave it out on a Mesh")
    d = geometry.dim
    if d == 3:
        raise DataError(f"{name} is not there yet for grids of three axes: leave it out")
    each = list(value) if isinstance(value, list | tuple | np.ndarray) and np.shape(value[:1]) else [value] * d
    if len(each) != d:
        raise DataError(f"{name} must be one length, or one length or array for each of {d} axes, got {len(each)}")
    tables = []
    for own, n, h in zip(each, geometry.shape, geometry.spacing, strict=True):
        own = _real(own, name)
        if own.ndim == 0:
            if not (0 <= own < np.inf):
                raise DataError(f"{name} must be finite lengths (metres), zero or more, got {own:g}")
            if own > n * h:
                raise DataError(f"{name} is {own:g} m, longer than the grid ({n * h:g} m): lengths are in metres")
            distance = np.arange(n) * h
            tables.append(np.exp(-((distance / own) ** 2)) if own > 0 else (distance == 0).astype(float))
            continue
        if own.ndim != 1 or not len(own) or own[0] != 1 or not (np.abs(own) <= 1).all():
            raise DataError(f"{name} along an axis must be an array of values from -1 to 1 that begins with 1")
        tables.append(np.concatenate([own, np.zeros(max(n - len(own), 0))])[:n])
    if not any(own[1:].any() for own in tables):
        return None
    for own in tables:
        own.setflags(write=False)
    return tuple(tables)


def _unmasked(displacement, std, dim):
    """Masked entries of a displacement as NaN and as an infinite standard deviation."""
    if not isinstance(displacement, np.ma.MaskedArray) and not isinstance(std, np.ma.MaskedArray):
        return displacement, std
    masked = np.ma.getmaskarray(displacement) | np.zeros(np.shape(displacement), bool)
    sigma: np.ndarray = np.ma.filled(np.ma.asarray(std, dtype=float), np.inf)
    if sigma.shape == (dim,):
        sigma = sigma.reshape(dim, *[1] * (masked.ndim - 1))
    u = np.where(masked, np.nan, np.ma.getdata(displacement))
    return u, np.where(masked, np.inf, sigma) if masked.any() else sigma


def _provisional(displacement):
    """A displacement, and numbers in place of standard deviations that nobody knows: infinite where it is NaN."""
    if isinstance(displacement, np.ma.MaskedArray):
        displacement = np.ma.filled(displacement.astype(float), np.nan)
    u = _real(displacement, "displacement")
    missing = np.isnan(u)
    size = float(np.std(u[np.isfinite(u)])) if np.isfinite(u).any() else 0.0
    return displacement, np.where(missing, np.inf, PROVISIONAL * size or 1.0)


def _warn_of_fixed(m, given):
    """Warn if measured values on fixed dofs contradict the known displacement there."""
    fixed, std = m.load.fixed & np.isfinite(given), m.displacement_std
    if not fixed.any() or not m.noise_known:
        return
    # on fixed dofs the stated level may be missing
    scale = np.where(np.isfinite(std), np.maximum(std, m.level), m.level)
    off = np.where(fixed, np.abs(given - m.load.displacement), 0.0) / scale
    count = int((off > CONTRADICTION).sum())
    if count:
        warnings.warn(
            f"displacement was measured on {int(fixed.sum())} fixed dofs and differs on {count} of them from that of "
            f"the load, by up to {off.max():.3g} standard deviations; that of the load is used. The support may have "
            "moved, or the body as a whole: give the measured values as the displacement of the load, mark these dofs "
            "as open, or set NaN there if they mean nothing",
            stacklevel=3,
        )


def _warn_of_forces(m):
    """Warn of a load that its own noise could have made: it hardly fixes the scale of the modulus."""
    cure = (
        "Check the units of the force and of its standard deviation, add up more samples of it, or do without: with "
        "open dofs in place of forces the modulus is relative, and known moduli of some region fix its scale too"
    )
    total = m.load.total_force
    if total is not None and abs(total.value) <= NOISY_RESULTANT * total.std:
        warnings.warn(
            f"load.total_force is {total.value:.3g} N with a standard deviation of {total.std:.3g} N: noise alone "
            f"could have made it, and the scale of the modulus is as uncertain. {cure}",
            stacklevel=3,
        )
    force, applied = m.load.force, m.load.force != 0
    std = m.force_std[applied]
    if not applied.any() or not std.all():
        return
    resultants = np.array([own.sum() for own in force])
    noise = np.array([np.sqrt((own[there] ** 2).sum()) for own, there in zip(m.force_std, applied, strict=True)])
    # forces that cancel out, such as those of two plates, are seen by their sum of squares
    squares, n = float(((force[applied] / std) ** 2).sum()), len(std)
    if (np.abs(resultants) <= NOISY_RESULTANT * noise).all() and squares <= n + NOISY_RESULTANT * np.sqrt(2 * n):
        k = int(np.argmax(np.abs(resultants) / np.where(noise > 0, noise, np.inf)))
        warnings.warn(
            f"the known forces add up to {resultants[k]:.3g} N along axis {k}, with a standard deviation of "
            f"{noise[k]:.3g} N by force_std: noise alone could have made them, and the scale of the modulus is as "
            f"uncertain. {cure}",
            stacklevel=3,
        )


def _warn_of_zeros(m):
    """Warn of values that are exactly zero where their neighbours are far from it, and of components that are zero."""
    for k, (u, seen) in enumerate(zip(m.displacement, m.observed, strict=True)):
        zero = seen & (u == 0)
        if zero.sum() < MANY_ZEROS:
            continue
        if zero.sum() == seen.sum():
            where = f"component {k} of displacement is zero at all its {int(seen.sum())} measured nodes"
        elif isinstance(m.geometry, Grid):
            beside = binary_dilation(zero, np.ones((3,) * zero.ndim, bool)) & seen & ~zero
            if not beside.any() or not m.noise_known or np.median(np.abs(u[beside])) <= CONTRADICTION * m.level:
                continue
            where = (
                f"component {k} of displacement is exactly zero at {int(zero.sum())} nodes beside others that are not"
            )
        else:
            continue
        warnings.warn(
            f"{where}. If nothing was measured there, set displacement_std to inf, or mask these values",
            stacklevel=3,
        )


def _check_strain(m):
    """Refuse displacements that cannot be in metres, and warn of strains that linear elasticity does not cover."""
    extent = np.ptp(m.geometry.points, axis=0)
    strains = [0.0]
    for own, seen, length in zip(m.still, m.observed | m.load.fixed, extent, strict=True):
        if seen.any():
            low, high = np.percentile(own[seen], STRAIN_PERCENTILES)
            strains.append(float(high - low) / length)
    strain = max(strains)
    text = f"displacement changes by {strain:.2g} of the extent of the body"
    units = "displacement and geometry must both be in metres, not in pixels, millimetres or samples"
    if strain > LARGEST_STRAIN:
        raise DataError(f"{text}, a strain of {100 * strain:.3g} %, which no measurement has: {units}")
    if strain > LARGE_STRAIN:
        warnings.warn(
            f"{text}, a strain of {100 * strain:.3g} %: linear elasticity is no model for that. Check the units "
            f"({units}), or use smaller steps of the compression",
            stacklevel=3,
        )
    elif 0 < strain < SMALLEST_STRAIN:
        warnings.warn(f"{text}, hardly a strain at all: {units}", stacklevel=3)


def _real(value, name) -> np.ndarray:
    """An argument as real numbers: a float64 array in host memory, not copied where it is one already."""
    refuse_masked(value, name)
    try:
        value = np.asarray(to_host(value))
    except Exception as error:  # arrays of some libraries refuse to be copied to host memory implicitly
        raise TypeError(f"{name} must be an array in host memory, got {type(value).__name__}: {error}") from error
    if value.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
    return value.astype(np.float64, order="C", copy=False)


def _first_bad(bad, values) -> str:
    index = tuple(int(i) for i in np.argwhere(bad)[0]) if bad.ndim else ()
    return f"got {values[index]:g} at index {index} ({int(bad.sum())} such values)"


def _hint(u, shape) -> str:
    if u.shape == (*shape[1:], shape[0]):
        return "; move the last axis to the front with numpy.moveaxis(u, -1, 0)"
    return ""
