"""The result of a reconstruction."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .backend.device import to_host
from .intervals import Uncertainty
from .measurement import Measurement
from .thumbnail import shown

__all__ = ["Result", "made_by", "message"]

# chi2 outside of this range is commented on. For n independent data its standard deviation is sqrt(2 / n), a few per
# cent even for small grids, so that such values say that the model or the stated noise level is wrong.
CHI2_RANGE = (0.7, 1.3)

# Default bounds, as a factor about the mean of the start: against runaway where the data say nothing.
BOUNDS_FACTOR = 100.0
HELD_SHARE = 0.01  # of the nodes on the bounds above which it is commented on. Not studied


@dataclass(repr=False)
class Result:
    """A reconstructed map, how well it fits the data, and how it was obtained.

    Attributes
    ----------
    modulus : array, shape node_shape
        Young's modulus in pascals; if ``relative`` is true, without unit and with geometric mean one.
    displacement : array, shape (d, *node_shape)
        The displacement in metres that belongs to the modulus: an estimate of the measured one without its noise.
    status : {"converged", "undetermined", "max_iterations", "stalled", "interrupted", "failed"}
        "undetermined" is a run that came to rest at a map of which the data do not determine something, see
        ``undetermined``.
    message : str
        What status and chi2 mean, and what to do about them.
    chi2 : float
        2 J over the number of independent data, with the data term J; for a good map a little below one.
    weight : float
        The weight of the prior; NaN if the run was interrupted before a weight was chosen.
    history : list of dict
        One entry for each accepted step: iteration, shape, weight, objective, data, prior, chi2, step, gradient_norm,
        seconds.
    seconds : float
        Wall time of the run. Measurements that are reconstructed together all have the time of the whole run.
    timing : dict
        Seconds spent in the data term ("data"), the prior ("prior") and everything else ("rest").
    relative : bool
        True if the modulus is known only up to a factor, because no force is known.
    prior, gradient, optimizer : str
        Names of what was used for this map.
    held : float
        Share of the nodes whose modulus lies on a bound.
    fallback : str
        Which step was taken because the data rejected the map of the prior that was asked for, or because it was
        inferior: "" for none, "noise" (the noise is larger than stated), "trust" (the model is wrong, so that the data
        were trusted less), "weight" (less of the prior), "prior" (total variation). The message says why.
    comparison : list of dict
        One entry for each map that was tried: prior, change (what differs from its defaults), weight, chi2,
        probability (that a right map leaves a residual as structured as this), status; with ``prior="auto"`` also
        distance (rms of log x from the prior's own idea of the map) and held_back (squared error on data held back from
        the fit less that of total variation, and its standard deviation, in units of the noise variance).
    geometry : Grid or Mesh
        The geometry of the measurement.
    poisson : float, or numpy.ndarray of the shape that the law had
        The Poisson ratio of the map.
    poisson_interval : (float, float) or None
        95 % interval of its estimate, if it was estimated from the data.
    rejected : numpy.ndarray of bool, shape (d, *node_shape), or None
        Measured displacements that were left out as outliers.
    noise : NoiseEstimate or None, or a list of them
        The noise of the displacement, where it was not known and had to be estimated; of a `JointMeasurement` one for
        each frame.
    uncertainty : Uncertainty or None
        How far the true modulus may be, where it was assigned: ``result.uncertainty = ef.uncertainty(result, m)``.
    bounds
        Those that were given to `reconstruct`, or None.
    known : array, shape node_shape, or None
        The moduli that were given to `reconstruct` as known, NaN or masked elsewhere.
    settings : dict
        The other arguments of `reconstruct` for this map, as far as they are names and numbers.
    checksum : str
        Of the measurement, see `Measurement.checksum`.
    undetermined : str
        What the data do not determine of the map, or hardly: whether it varies across the load, say, or the modulus of
        a region. There the map shows what the prior prefers. Empty if there is nothing of the kind.
    frame_chi2 : list of float
        chi2 of each frame of a `JointMeasurement`, of which ``displacement`` and ``rejected`` then have one field for
        each frame, (frames, d, *node_shape); otherwise empty.
    """

    modulus: np.ndarray
    displacement: np.ndarray
    status: str
    message: str
    chi2: float
    weight: float
    history: list[dict[str, Any]]
    seconds: float
    relative: bool
    prior: str
    gradient: str
    optimizer: str
    geometry: Any
    timing: dict[str, float] = field(default_factory=dict)
    held: float = 0.0
    fallback: str = ""
    comparison: list[dict[str, Any]] = field(default_factory=list)
    poisson: Any = float("nan")
    poisson_interval: tuple[float, float] | None = None
    rejected: np.ndarray | None = None
    noise: Any = None
    uncertainty: Uncertainty | None = None
    frame_chi2: list[float] = field(default_factory=list)
    undetermined: str = ""
    bounds: Any = None
    known: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    checksum: str = ""

    def __setattr__(self, name, value):
        if name == "uncertainty" and not (value is None or isinstance(value, Uncertainty)):
            raise TypeError(
                f"uncertainty must be what ef.uncertainty(result, measurement) gives, got {type(value).__name__}"
            )
        super().__setattr__(name, value)

    @property
    def std(self) -> np.ndarray | None:
        """Standard deviation of log modulus at each node, shape node_shape; None without `uncertainty`."""
        return None if self.uncertainty is None else self.uncertainty.std

    def taken(self, measurement: Measurement) -> Measurement:
        """A measurement as this result took it: with estimated noise and Poisson ratio, without outliers.

        Parameters
        ----------
        measurement : Measurement
            What was given to `reconstruct`; not of several frames.
        """
        m = measurement
        if self.noise is not None:
            m = self.noise.applied(m)
        if self.poisson_interval is not None:
            m = m.derived(law=m.law.with_poisson(self.poisson))
        if self.rejected is not None:
            m = m.derived(displacement_std=np.where(self.rejected, np.inf, m.displacement_std))
        return m

    def __repr__(self):
        nodes = " x ".join(map(str, np.shape(self.modulus)))
        return (
            f"Result({nodes} nodes, {self._range()}, {self.status}, prior {self.prior!r}, chi2 {self.chi2:.3g}, "
            f"{len(self.history)} iterations, {self.seconds:.3g} s)"
        )

    def _repr_html_(self):
        facts = {
            "modulus": self._range(),
            "status": self.status,
            "prior": f"{self.prior}, weight {self.weight:.3g}",
            "chi2": f"{self.chi2:.3g}",
            "run": f"{self.optimizer}, {len(self.history)} iterations, {self.seconds:.3g} s",
            "message": self.message,
        }
        return shown("Result", facts, self.modulus, self.geometry)

    def _range(self):
        """The range of the modulus as text."""
        modulus = np.asarray(to_host(self.modulus))
        if self.relative:
            return f"{modulus.min():.3g} to {modulus.max():.3g} of its mean (relative)"
        return f"{modulus.min() / 1e3:.3g} to {modulus.max() / 1e3:.3g} kPa"

    def save(self, path: str | os.PathLike) -> None:
        """Write the map and all that made it to .npz, .h5, .mat or .vtu, see `save_modulus`.

        The configuration in the file has the settings, the versions and the build, and the checksum of the measurement.
        """
        from .io import save_modulus

        config = {**made_by(), "prior": self.prior, "gradient": self.gradient, "optimizer": self.optimizer}
        config |= {"settings": self.settings, "checksum": self.checksum}
        if self.bounds is not None and all(np.ndim(own) == 0 for own in self.bounds):
            config["bounds"] = [float(own) for own in self.bounds]
        save_modulus(path, self, self.geometry, config=config)


def made_by() -> dict[str, Any]:
    """Versions and build of what computes here, as a configuration keeps them."""
    from . import __version__, _core

    packages = {}
    for name in ("numpy", "scipy", "torch"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"elastofast": __version__, "packages": packages, "build": _core.build_info()}


def message(
    status: str,
    chi2: float,
    prior: str,
    known: bool,
    held: float = 0.0,
    correlated: bool = False,
    relative: bool = False,
    frames: Sequence[float] = (),
) -> str:
    """What a status and chi2 mean, and what to do about them; ``known`` says whether a weight had been chosen, ``held``
    is the share of the nodes on a bound, ``correlated`` says that the residual is that of correlated noise,
    ``relative`` that no force is known, ``frames`` has the chi2 of each frame.
    """
    far = chi2 > CHI2_RANGE[1]
    resume = "start=result, weight=result.weight." if known else "start=result; no weight was chosen yet."
    text = {
        "converged": "The objective no longer falls noticeably.",
        "max_iterations": f"The largest number of iterations was reached: raise max_iterations or resume with {resume}",
        "stalled": "No step lowered the objective any more; the map is as good as the solves allow.",
        "failed": (
            "A linear solve failed whatever the step, and this is the best map so far: do not rely on it. Moduli may "
            "be far outside of what the data can determine: check load and displacement, or give a start or bounds."
        ),
        "interrupted": f"Interrupted; this is the best map so far. Resume with {resume}",
    }[status]
    if prior == "none" and status == "converged":
        text = "Stopped at the first map that explains the data within their noise, or the last that improved."
    if status == "max_iterations" and far:
        text = "The largest number of iterations was reached."
    if held > HELD_SHARE:
        text += f" {held:.0%} of the nodes lie on the bounds, which hold them there"
        if far:
            text += ", as maps do that cannot explain the data."
        elif relative:
            text += (
                f": their modulus is {BOUNDS_FACTOR:g} times above or below that of the start, and the data do not "
                "stop it. Without a known force all moduli, and these bounds, are relative."
            )
        else:
            text += ": give wider bounds."
    if far:
        text += (
            f" chi2 is {chi2:.2f}: the data are not explained under prior {prior!r}. displacement_std may be too "
            "small, the load or the Poisson ratio wrong, the weight too large, or the prior made for other tissue."
        )
        if status == "max_iterations":
            text += f" Only if nothing of that is so, raise max_iterations or resume with {resume}"
    elif correlated:
        text += (
            f" chi2 is {chi2:.2f}: noise is being fitted. The residual lacks the roughest part of independent noise, "
            "so the noise is correlated from node to node, as that of overlapping windows is: state over which length, "
            "displacement_correlation."
        )
    elif chi2 < CHI2_RANGE[0]:
        text += (
            f" chi2 is {chi2:.2f}: noise is being fitted. displacement_std may be too large or the weight too small."
        )
    unlike = [f"{own:.2f} in frame {k}" for k, own in enumerate(frames) if own > CHI2_RANGE[1] * max(chi2, 1.0)]
    if unlike:
        text += (
            f" Frames differ: chi2 is {', '.join(unlike)}. Their displacement_std or their loads may be wrong, or the "
            "body may have changed between the frames; try without them."
        )
    return text
