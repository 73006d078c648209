"""Held-out measurements of a data set: as they are stored, and in scenarios that no prior was trained for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..forward.form import ElasticForm
from ..forward.solve import solve_forward
from ..learning.settings import blurred_noise
from ..measurement import Measurement
from ..phantoms import lesion, retried
from ..simulation import add_noise
from .other_tissue import folds, level_sets

# scenarios; name: what it does to the test maps, as the end of a sentence
SCENARIOS = {
    "clean": "as the data set was made",
    "texture": "with a smooth log-normal texture of 10 %",
    "two-lesions": "made anew, with two built-in lesions each and moduli in the data set's ranges",
    "no-lesion": "made anew, without any lesion and with a background in the data set's range",
    "poisson": "simulated with a Poisson ratio lower by 0.03 than the one assumed",
    "level-sets": "made anew as level sets of random fields, by a generator that no network was trained on",
    "folds": "made anew as folded layers with a stiff mass, by a generator that no network was trained on",
    "correlated": "with noise blurred over 1.5 nodes, of the stated standard deviation, taken for independent",
}
# sizes of what the scenarios change, in round numbers (docs/comparison.md has the errors that they cause)
TEXTURE = 0.10  # relative standard deviation
POISSON = -0.03  # true Poisson ratio minus the assumed one
BLUR = 1.5  # standard deviation of the Gaussian that blurs the noise, in nodes
OTHERS = {"level-sets": level_sets, "folds": folds}  # scenarios with maps of other generators
TWO_SIZES = (0.08, 0.3)  # diameters of two lesions as fractions of the width, small enough to fit side by side


@dataclass(frozen=True)
class Condition:
    """The condition under which a test map is measured: a noise level and a scenario.

    Attributes
    ----------
    snr : float
        Signal-to-noise ratio in decibels.
    scenario : str
        One of `SCENARIOS`.
    """

    snr: float
    scenario: str = "clean"

    @property
    def name(self) -> str:
        """Short name without blanks and slashes, which is part of file names."""
        return f"{self.snr:g}dB-{self.scenario}"


def measure(data, i, condition, seed=0) -> tuple[Measurement, np.ndarray]:
    """One map of a data set, measured under a condition.

    In the clean scenario at the data set's own noise level this is the stored measurement; under any other condition
    the measurement is simulated anew from the true modulus. The random numbers depend only on the seed of the sample
    and on ``seed``, so the noise of one map is the same at all noise levels but for its scale.

    Parameters
    ----------
    data : Dataset
    i : int
        Index of the sample.
    condition : Condition
    seed : int, optional

    Returns
    -------
    measurement : Measurement
        Its reference is the true modulus; geometry, law and noise level are those that a user would assume.
    mask : numpy.ndarray of bool, shape data.geometry.shape
        Lesion nodes.

    Raises
    ------
    ValueError
        If the scenario is unknown.
    """
    if condition.scenario not in SCENARIOS:
        raise ValueError(f"world must be one of {', '.join(SCENARIOS)}, got {condition.scenario!r}")
    if condition == Condition(data.snr):
        return data.measurement(i), data.mask(i)
    # the key 2 gives random numbers from which nothing in the data set was made
    maps, noise = np.random.default_rng(np.random.SeedSequence(int(data.seeds[i]), spawn_key=(2, seed))).spawn(2)
    grid, law, load = data.geometry, data.law, data.load
    modulus, mask = data.modulus(i).astype(np.float64), data.mask(i)
    if condition.scenario == "texture":
        modulus *= lesion(grid, seed=maps, n_lesions=0, background=(1, 1), texture=TEXTURE)[0]
    if condition.scenario == "two-lesions":
        modulus, mask = _two_lesions(data, maps)
    if condition.scenario == "no-lesion":
        modulus, mask = lesion(grid, seed=maps, n_lesions=0, background=data.config["background"])
    if condition.scenario in OTHERS:
        modulus, mask = OTHERS[condition.scenario](grid, maps, data.config["background"])
    true_law = type(law)(law.poisson + POISSON) if condition.scenario == "poisson" else law
    u = solve_forward(ElasticForm(grid, true_law), modulus, load)
    noisy, std = add_noise(u, condition.snr, data.config["noise"], seed=noise, fixed=load.fixed)
    if condition.scenario == "correlated":
        noisy = u + np.where(load.fixed, 0.0, std * blurred_noise(noise, u.shape, BLUR))
    return Measurement(grid, law, load, noisy, std, reference=modulus), mask


def _two_lesions(data, rng):
    ranges = {name: data.config[name] for name in ("background", "lesion")}
    return retried(lambda: lesion(data.geometry, seed=rng, kind="random", n_lesions=2, size=TWO_SIZES, **ranges))
