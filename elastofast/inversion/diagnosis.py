"""What a measurement can say about the modulus, before anything is reconstructed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from ..backend.device import to_host
from ..boundary import free_motions
from ..measurement import Measurement
from ..misfit.fidelity import Fidelity
from .initial import VISIBLE, homogeneous
from .noise_estimate import estimate_noise

__all__ = ["Diagnosis", "diagnose"]

# Of the solves, and of the Hessian: eigenvalues below this share of the largest one are no information. The largest is
# about 1e8 where data are good, so that standard deviations up to 3 are told from infinite ones.
RTOL = 1e-9
# Half waves of the variations along all axes together: 21 variations in 2-D, 56 in 3-D. Finer ones are determined less
# well, always, and are the prior's business. Not studied.
HALF_WAVES = 5
DETERMINED = float(np.log(2))  # standard deviation of log modulus below which a variation counts as determined
SHOWN = 3  # of the weakest variations in the text


@dataclass(frozen=True)
class Diagnosis:
    """Which smooth variations of the modulus a measurement determines, at the homogeneous body that fits it best.

    Attributes
    ----------
    relative : bool
        No force is known, so that nothing tells the modulus but up to a factor; that is then no variation.
    equations, measured : int
        Number of loaded dofs, and of displacements that count as measured.
    motions : list of str
        Motions of the body as a whole that the fixed dofs allow. They cause no force, so that the modulus does not
        depend on them, and they are taken from the displacements of open dofs.
    data : float
        Number of independent data, which chi2 is a mean over.
    std : numpy.ndarray, shape (K,)
        Standard deviation with which the data alone, without a prior, determine the amplitude of each variation in log
        modulus, the largest first; infinite if they do not.
    variations : numpy.ndarray, shape (K, *node_shape)
        Combinations of cosines of log modulus with a root mean square of one, whose amplitudes have independent errors.
    names : list of str
        What each variation mostly is.
    """

    relative: bool
    equations: int
    measured: int
    motions: list[str]
    data: float
    std: np.ndarray
    variations: np.ndarray = field(repr=False)
    names: list[str] = field(repr=False)

    @property
    def rank(self) -> int:
        """How many variations the data see at all."""
        return int(np.isfinite(self.std).sum())

    @property
    def determined(self) -> int:
        """How many variations the data determine to better than a factor of two."""
        return int((self.std < DETERMINED).sum())

    def __str__(self):
        scale = "relative, since no force is known" if self.relative else "in pascals, since forces are known"
        lines = [
            f"modulus        {scale}",
            f"data           {self.measured} displacements, {self.equations} equations, {self.data:.0f} independent",
            f"motion         {', '.join(self.motions) or 'none'} without deformation that the supports allow"
            f"{'; the displacements show how far' if self.motions else ''}",
            f"rank           {self.rank} of {len(self.std)} smooth variations of the modulus change the displacement",
            f"determined     {self.determined} of {len(self.std)} smooth variations of the modulus, to better than a "
            "factor of two by the data alone",
        ]
        for std, name in list(zip(self.std, self.names, strict=True))[:SHOWN]:
            lines.append(f"weakest        {name}: {_in_words(std)}")
        if not self.determined:
            lines.append(
                "warning        the data determine nothing about the modulus: a map would show the prior alone. Check "
                "displacement_std, the units of displacement and force, and what was measured"
            )
        return "\n".join(lines)


def diagnose(measurement: Measurement) -> Diagnosis:
    """What a measurement can say about the modulus, before anything is reconstructed.

    The Gauss-Newton Hessian of the data term in log modulus, at the best homogeneous body, is restricted to variations
    of up to five half waves. Its eigenvectors are variations whose amplitudes the data determine independently of each
    other, and one over the root of an eigenvalue is the standard deviation. Displacements of open dofs that are not
    known adapt to the variation. It takes as many pairs of solves as there are variations.

    Parameters
    ----------
    measurement : Measurement
        Where its noise is not known, it is estimated first.

    Returns
    -------
    Diagnosis
        ``print`` shows it in words.

    Raises
    ------
    TypeError, ValueError
        If the argument is no measurement, the load leaves the body free to move (the message says which motions), or
        the displacement goes against the load.

    Examples
    --------
    >>> print(ef.diagnose(m))  # doctest: +SKIP
    """
    if not isinstance(measurement, Measurement):
        raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
    m = measurement if measurement.noise_known else estimate_noise(measurement).applied(measurement)
    relative = not m.load.force.any()
    fidelity = Fidelity(m, rtol=RTOL)
    basis, names = _cosines(m.geometry, without_constant=relative)
    with m.device.activated():
        xp = fidelity.device.xp
        x = np.exp(homogeneous(m))
        now = fidelity.evaluate(x)
        still = now.frozen_gradient(x)

        def curvature(v):
            """H v: the gradient with Gamma and the displacement held is linear in the modulus."""
            return to_host(x * (now.frozen_gradient(x + x * xp.asarray(v)) - still))

        seen = 1.0  # the effect of the load in standard deviations of its estimate, over what has to be seen
        if not relative:
            compliance, error = fidelity.homogeneous_compliance()
            seen = compliance / (VISIBLE * error)
        hessian = np.array([[w @ column for w in basis] for column in map(curvature, basis)])
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    std = np.where((values > RTOL * values[-1]) & (seen >= 1), np.maximum(values, np.finfo(float).tiny), 0.0)
    with np.errstate(divide="ignore"):
        std = 1 / np.sqrt(std)
    return Diagnosis(
        relative=relative,
        equations=m.load.n_equations,
        measured=int(m.observed.sum()),
        motions=free_motions(m.geometry, m.load.fixed),
        data=float(fidelity.n_data),
        std=std,
        variations=(vectors.T @ basis).reshape(-1, *m.geometry.node_shape),
        names=[names[k] for k in np.abs(vectors).argmax(axis=0)],
    )


def _in_words(std):
    """A standard deviation of log modulus."""
    if std > np.log(1e6):
        return "not at all"
    return f"to {100 * std:.2g} %" if std < DETERMINED else f"to a factor of {np.exp(std):.2g}"


def _cosines(geometry, without_constant):
    """Products of cosines along the axes, orthonormal up to a root mean square of one, (K, N), and their names."""
    points, weights = geometry.points, geometry.node_weights.ravel()
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    counts = [k for k in product(range(HALF_WAVES + 1), repeat=geometry.dim) if sum(k) <= HALF_WAVES]
    counts = sorted(counts, key=sum)[1 if without_constant else 0 :]
    waves = np.array([np.cos(np.pi * (points - low) / size * k).prod(axis=1) for k in counts])
    if without_constant:
        waves -= (waves @ weights / weights.sum())[:, None]
    root = np.sqrt(weights / weights.sum())
    q, _ = np.linalg.qr((waves * root).T)
    axes = {geometry.axial: "axial"} | {i: "lateral" for i in range(geometry.dim) if i != geometry.axial}
    names = [
        " x ".join(f"{n} half wave{'s' * (n > 1)} {axes[i]}" for i, n in enumerate(k) if n) or "uniform" for k in counts
    ]
    return q.T / root, names
