"""Held-out measurements of a data set, as they are and under conditions that no prior was trained for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..forward.form import ElasticForm
from ..forward.solve import solve_forward
from ..measurement import Measurement
from ..phantoms import NoRoomError, lesion
from ..simulation import add_noise

# name: how it makes the test maps
SCENARIOS = {
    "clean": "as the data set was made",
    "texture": "with a smooth log-normal texture of 10 %",
    "two-lesions": "made anew, with two built-in lesions each and moduli in the data set's ranges",
    "poisson": "simulated with a Poisson ratio lower by 0.03 than the one assumed",
    "correlated": "with noise blurred over 1.5 nodes, of the stated standard deviation, taken for independent",
}
TEXTURE, POISSON, BLUR = 0.10, -0.03, 1.5


@dataclass(frozen=True)
class Condition:
    """Under what a test map is measured.

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
        """Short name without blanks or slashes."""
        return f"{self.snr:g}dB-{self.scenario}"


def measure(data, i, condition, seed=0):
    """One map of a data set, measured under a condition.

    The clean scenario at the data set's own noise level is the stored measurement; everything else is simulated anew
    from the true modulus. The random numbers depend on the sample's own seed and on `seed` alone, so that the noise
    of one map differs between conditions in its scale only.

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
        With the true modulus as its reference, and geometry, law and noise level as a user would believe them.
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
    # key 2: numbers that nothing in the data set was made from
    maps, noise = np.random.default_rng(np.random.SeedSequence(int(data.seeds[i]), spawn_key=(2, seed))).spawn(2)
    grid, law, load = data.geometry, data.law, data.load
    modulus, mask = data.modulus(i).astype(np.float64), data.mask(i)
    if condition.scenario == "texture":
        modulus *= lesion(grid, seed=maps, n_lesions=0, background=(1, 1), texture=TEXTURE)[0]
    if condition.scenario == "two-lesions":
        modulus, mask = _two_lesions(data, maps)
    true_law = type(law)(law.poisson + POISSON) if condition.scenario == "poisson" else law
    u = solve_forward(ElasticForm(grid, true_law), modulus, load)
    noisy, std = add_noise(u, condition.snr, data.config["noise"], seed=noise, fixed=load.fixed)
    if condition.scenario == "correlated":
        noisy = u + np.where(load.fixed, 0.0, std * _blurred(noise, u.shape))
    return Measurement(grid, law, load, noisy, std, reference=modulus), mask


def _two_lesions(data, rng, attempts=100):
    ranges = {name: data.config[name] for name in ("background", "lesion")}
    while True:
        try:
            return lesion(data.geometry, seed=rng, kind="random", n_lesions=2, size=(0.08, 0.3), **ranges)
        except NoRoomError:  # large ones side by side
            attempts -= 1
            if not attempts:
                raise


def _blurred(rng, shape):
    """Correlated noise, of unit mean square in each component."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.normal(size=shape), (0, *[BLUR] * (len(shape) - 1)), mode="wrap")
    return noise / np.sqrt(np.mean(noise**2, axis=tuple(range(1, len(shape))), keepdims=True))
