"""What a measurement says about a finished map: whether the map leaves more than noise, whether the model or the prior
is to blame for that, and which of two maps predicts data better that neither was fitted to.

Nothing here knows a true modulus. The false-alarm level is fixed, and the other thresholds were chosen on simulated
measurements of the training generator (benchmarks/evidence.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.fft import dctn
from scipy.special import fdtrc

from ..backend.batch import numbers
from ..backend.device import device_of, to_host
from ..errors import SolveError
from ..joint import JointMeasurement
from ..measurement import Measurement
from ..misfit.fidelity import Fidelity
from ..misfit.free_poisson import poisson_derivatives, poisson_range
from ..misfit.noise import CorrelatedNoise, noise_on_host
from .coarsen import coarsen

__all__ = [
    "FALSE_ALARM",
    "Cause",
    "Prediction",
    "Residual",
    "fresh_noise",
    "held_back",
    "poisson_cause",
    "prediction",
    "rescaled",
    "residual",
]

# Largest probability with which the residual of a right map is taken for structured.
FALSE_ALARM = 1e-3
# Edges of the frequency bands, over the largest frequency of an axis. Displacements of elastic bodies are smooth: above
# the last edge a residual holds nothing but noise whatever the map, even where chi2 is 14 (benchmarks/evidence.py).
BAND_EDGES = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
BLOCKS = 8  # regions along each axis
# Noise counts as correlated where its variance in the last two bands differs by this factor: a Gaussian blur of a third
# of a node distance reaches it, white noise on 33 x 33 nodes keeps within it. Weaker correlation does no harm here.
CORRELATED_RATIO = 1.25
SMALLEST_SHARE = 0.25  # of the nodes that have to be measured for a component to be tested
POISSON_RANGE = 0.05  # largest change of the Poisson ratio that is considered
CAUSE_RTOL = 1e-5  # of the solves, whose values are corrected to second order
# Share of a node's noise that is added before the fit, see `held_back`: a fifth of the information is held back, and
# the fit has 12 % more noise. Not studied.
HELD_BACK = 0.5
# Of the noise that is added: any number that nobody takes for the seed of a simulation, whose noise it would repeat.
SEED = 8_271_354_909


class Residual(NamedTuple):
    """A test of what a map leaves of the data.

    Attributes
    ----------
    level : float
        Variance of the noise over the stated one, from the highest frequencies.
    white : bool
        Whether the last two bands agree about it.
    correlated : bool
        Whether the noise is correlated between neighbouring nodes: there is too little of it in the last band. Its
        structure then says nothing about the map.
    probability : float
        That a right map leaves a residual at least as structured, by region or by frequency.
    """

    level: float
    white: bool
    correlated: bool
    probability: float

    @property
    def structured(self) -> bool:
        """Whether the data reject the map."""
        return not self.correlated and self.probability < FALSE_ALARM


class Cause(NamedTuple):
    """Another Poisson ratio, and the share of a map's excess misfit that it would explain."""

    poisson: float
    share: float


class Prediction(NamedTuple):
    """Errors of two maps on data that neither was fitted to.

    Attributes
    ----------
    excess : float
        Sum of squared errors of the first less that of the second, in units of the noise variance.
    std : float
        Its standard deviation.
    """

    excess: float
    std: float


def residual(measurement: Measurement | JointMeasurement, displacement) -> Residual:
    """Test whether the measured displacement less the denoised one of a map is white noise.

    The normalised residual of the right map is white noise of variance one, less what the map took from it: an
    orthonormal cosine transform of it has independent coefficients of equal variance. The mean square in a band of
    frequencies, and in a block of nodes, over that in the highest band has an F distribution, the quantiles of which a
    fit can only lower (periodograms as a test of the residual: Rust and O'Leary, Inverse Problems 24, 2008; Hansen,
    Kilmer and Kjeldsen, BIT Numer. Math. 46, 2006). Bands and blocks share the false alarms (Bonferroni). Since the
    highest band stands for the noise, the test does not depend on the stated noise level.

    Parameters
    ----------
    measurement : Measurement or JointMeasurement
        On a grid.
    displacement : array, shape (d, *node_shape) or (frames, d, *node_shape)
        Denoised displacement of the map, in metres.

    Returns
    -------
    Residual
        The components of all frames with independent noise are tested as those of one measurement; frames with a stated
        correlation are tested one by one (Bonferroni).
    """
    frames = _by_frame(measurement, to_host(displacement))
    tests = [_correlated_residual(m, u) for m, u in frames if m.displacement_correlation is not None]
    independent = [(m, u) for m, u in frames if m.displacement_correlation is None]
    if independent:
        tests.append(_independent_residual(independent))
    if len(tests) == 1:
        return tests[0]
    return Residual(
        float(np.mean([test.level for test in tests])),
        all(test.white for test in tests),
        any(test.correlated for test in tests),
        min(1.0, len(tests) * min(test.probability for test in tests)),
    )


def _by_frame(measurement, field):
    """The frames of a measurement, each with its part (d, *node_shape) of a dof field."""
    first = measurement.frames[0].displacement
    return list(zip(measurement.frames, field.reshape(-1, *first.shape), strict=True))


def _independent_residual(frames):
    """The test where noise is independent, for pairs of a frame and its denoised displacement."""
    shape = frames[0][0].geometry.node_shape
    seen = np.concatenate([m.observed & ~m.load.open for m, _ in frames])
    std = np.where(seen, np.concatenate([m.displacement_std for m, _ in frames]), 1.0)
    r = np.where(seen, np.concatenate([m.displacement - u for m, u in frames]) / std, 0.0)
    shares = seen.reshape(len(seen), -1).mean(axis=1)
    tested = shares >= SMALLEST_SHARE
    if not tested.any():
        return Residual(1.0, True, False, 1.0)
    r, seen, shares = r[tested], seen[tested], shares[tested]
    axes = tuple(range(1, r.ndim))
    power = dctn(r, norm="ortho", axes=axes) ** 2
    radius = np.sqrt(sum(np.square(i / n) for i, n in zip(np.indices(shape), shape, strict=True)))
    band = np.digitize(radius, BAND_EDGES) - 1
    # Where nothing was measured the residual is zero: a coefficient has that share of the noise, and counts as much.
    counts = shares.sum() * np.bincount(band.ravel(), minlength=len(BAND_EDGES))
    sums = np.bincount(band.ravel(), power.sum(axis=0).ravel(), minlength=len(BAND_EDGES))
    last = len(BAND_EDGES) - 1
    level, beside = (float(sums[k] / counts[k]) for k in (last, last - 1))
    white = beside < level * CORRELATED_RATIO and level < beside * CORRELATED_RATIO
    # A gross misfit reaches the last bands, too, but makes them louder than is stated.
    correlated = level < beside / CORRELATED_RATIO and level < 1 / CORRELATED_RATIO
    blocks = np.ravel_multi_index(
        [i * BLOCKS // n for i, n in zip(np.indices(shape), shape, strict=True)], (BLOCKS,) * len(shape)
    )
    in_blocks, number = (np.bincount(blocks.ravel(), a.sum(axis=0).ravel()) for a in (r**2, seen.astype(float)))
    least = [
        _smallest_probability(sum_, count, level, counts[last])
        for sum_, count in ((sums[:-1], counts[:-1]), (in_blocks, number))
    ]
    return Residual(level, white, correlated, min(1.0, 2 * min(least)))


def _correlated_residual(m, displacement):
    """The test where a correlation is stated, by bands of the frequencies of its independent modes.

    All of them are smooth, so that the last band says less about the level than that of independent noise: it only
    serves for comparison.
    """
    model = noise_on_host(m)
    assert isinstance(model, CorrelatedNoise)
    r = np.where(m.observed & ~m.load.open, m.displacement - to_host(displacement), 0.0)
    shares = [float(own.mean()) for own in m.observed & ~m.load.open]
    sums, counts = np.zeros(len(BAND_EDGES)), np.zeros(len(BAND_EDGES))
    tested = [share for share in shares if share > 0]
    for (coefficients, frequencies), share in zip(model.modes(r.reshape(len(r), -1)), tested, strict=True):
        if share >= SMALLEST_SHARE:
            band = np.digitize(frequencies, BAND_EDGES) - 1
            sums += np.bincount(band, coefficients**2, minlength=len(sums))[: len(sums)]
            counts += share * np.bincount(band, minlength=len(sums))[: len(sums)]
    if not (counts[-2:] > 0).all():
        return Residual(1.0, False, True, 1.0)
    level, beside = (float(sums[k] / counts[k]) for k in (-1, -2))
    agree = 1 / CORRELATED_RATIO < level / beside < CORRELATED_RATIO
    return Residual(
        level, False, not agree, _smallest_probability(sums[:-1], counts[:-1], level, counts[-1]) if agree else 1.0
    )


def _smallest_probability(sums, counts, level, reference_count):
    """Probability of the largest of some mean squares, as if they were independent of each other and of the level."""
    some = counts > 0
    ratio = sums[some] / counts[some] / level
    return float(some.sum() * fdtrc(counts[some], reference_count, ratio).min())


def poisson_cause(measurement: Measurement, modulus) -> Cause | None:
    """The Poisson ratio that would explain most of the misfit that a map is left with; None if none can be tried, or
    the law has a map of it.

    The map stays as it is. J is nearly quadratic in the Poisson ratio, so that its slope and its Gauss-Newton curvature
    tell. This is a score test (Rao, Math. Proc. Camb. Philos. Soc. 44, 1948) that asks how much is explained in place
    of whether anything is: with many data, everything is significant.

    The same with the applied load in place of the Poisson ratio (a pressure that grows along its edge, friction) does
    not tell wrong loads from wrong priors: it gave a share of .45 for a right load on fibres.

    Parameters
    ----------
    measurement : Measurement
    modulus : array, shape node_shape
        A map that the data reject, in pascals, on the device of the measurement.
    """
    if measurement.law.is_map:
        return None
    try:
        slope = curvature = excess = 0.0
        for m in measurement.frames:
            fidelity = Fidelity(m, rtol=CAUSE_RTOL)
            device = device_of(modulus=modulus)
            with device.activated():
                x = device.asarray(modulus).reshape(1, -1)
                now = fidelity.evaluate(x)
                own = poisson_derivatives(fidelity, x, now)
            slope, curvature = slope + own[0], curvature + own[1]
            excess += 2 * numbers(now.value).item() - float(fidelity.n_data)
    except SolveError:
        return None
    poisson = measurement.law.poisson
    low, high = np.clip(poisson_range(measurement.law), poisson - POISSON_RANGE, poisson + POISSON_RANGE)
    if not (excess > 0 and low < high):
        return None
    change = float(np.clip(-slope / curvature, low - poisson, high - poisson))
    return Cause(poisson + change, -(curvature * change + 2 * slope) * change / excess)


def rescaled(measurement: Measurement, level: float) -> Measurement:
    """The measurement with a noise variance that is larger by a factor."""
    return measurement.derived(displacement_std=np.sqrt(level) * measurement.displacement_std)


def fresh_noise(measurement: Measurement | JointMeasurement, rng: np.random.Generator) -> np.ndarray:
    """Noise of the displacements of a measurement, of the stated level and correlation, in the shape of these."""
    normal = rng.normal(size=measurement.displacement.shape)
    drawn = [noise_on_host(frame).draw(own.reshape(len(own), -1)) for frame, own in _by_frame(measurement, normal)]
    return np.stack(drawn).reshape(normal.shape)


def held_back(measurement: Measurement, smallest: int, seed: int = 0) -> tuple[Measurement, Measurement]:
    """Two independent measurements out of one: to fit maps to, and to see how well they predict.

    With white noise w of the stated level, u + a w and u - w / a are independent if the stated level is right, and both
    have the mean of u (data thinning: Neufeld, Dharamshi, Gao and Witten, JMLR 25, 2024; as an estimate of risk:
    Oliveira, Lei and Tibshirani, arXiv:2111.09447). Unlike nodes that are left out, it leaves no holes, and it is valid
    for every method, the automatic choice of its weight included.

    Parameters
    ----------
    measurement : Measurement
        On a grid. Both are coarsened while they keep ``smallest`` nodes along each axis: the comparison costs a
        fraction of a reconstruction then.
    smallest : int
    seed : int, optional

    Returns
    -------
    fitted, other : Measurement
    """
    m = measurement
    w = fresh_noise(m, np.random.default_rng([SEED, seed]))
    pair = [
        m.derived(displacement=m.displacement + a * w, displacement_std=np.hypot(1.0, a) * m.displacement_std)
        for a in (HELD_BACK, -1 / HELD_BACK)
    ]
    while all(coarse := [coarsen(one, smallest) for one in pair]):
        pair = coarse
    return pair[0], pair[1]


def prediction(other: Measurement, first, second) -> Prediction:
    """How well two denoised displacements, fitted to other data, predict a measurement.

    Parameters
    ----------
    other : Measurement
        The data that were held back.
    first, second : array, shape (d, *node_shape)
        In metres.
    """
    a, b = (np.where(other.observed, to_host(u) - other.displacement, 0.0) for u in (first, second))
    noises = [noise_on_host(frame) for frame in other.frames]

    def square(e):
        fields = (own.reshape(len(own), -1) for _, own in _by_frame(other, e))
        return float(sum((own * noise.precision(own)).sum() for noise, own in zip(noises, fields, strict=True)))

    return Prediction(square(a) - square(b), 2 * np.sqrt(square(a - b)))
