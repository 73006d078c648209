"""How the maps of the wide training world are measured: law, load, noise and pixels of each map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..boundary import Boundary, compression
from ..forward.form import ElasticForm
from ..forward.solve import solve_forward
from ..geometry import Grid
from ..laws import LAWS, Law
from ..measurement import Measurement
from ..simulation import add_noise

__all__ = ["Setting", "blurred_noise"]

POISSON = (0.3, 0.499)  # range of Poisson ratios
MARGIN = 0.125  # of the body around a region of interest, over the region's nodes


@dataclass(frozen=True)
class Setting:
    """How one map is measured.

    Attributes
    ----------
    law : {"plane_stress", "plane_strain"}
    poisson, true_poisson : float
        Poisson ratio that the measurement states, and the one that it was simulated with.
    edges : {"plates", "bonded", "open"}
        Frictionless plates as of `compression`; plates that the body sticks to; a region of interest cut out of a
        larger body, whose edges are open.
    axial_only : bool
        Whether the lateral component was not measured.
    lateral : float
        Standard deviation of the lateral noise over that of the axial one.
    snr : float
        Signal-to-noise ratio in decibels, of the axial noise in both components.
    blur : float
        Standard deviation in nodes of the Gaussian that blurs the noise; 0 for independent noise.
    stated : bool
        Whether the measurement states the correlation that the blur causes.
    aspect : float
        Lateral over axial distance of the nodes.
    """

    # Shares of the draws; none is studied. Plane stress with a Poisson ratio of .495 is what the shipped networks were
    # first trained for.
    STRAIN: ClassVar[float] = 0.25
    OTHER_POISSON: ClassVar[float] = 0.5
    WRONG_POISSON: ClassVar[tuple[float, float]] = (0.1, 0.03)  # share of wrong ones, and by how much at most
    EDGES: ClassVar[dict[str, float]] = {"plates": 0.7, "bonded": 0.1, "open": 0.2}
    # Neither of these two with open edges, for which it takes ten times as long as anything else.
    AXIAL_ONLY: ClassVar[float] = 0.2
    NOISY_LATERAL: ClassVar[tuple[float, float]] = (0.1, 10.0)  # share, and factor on the lateral noise
    SNR: ClassVar[tuple[float, float, float]] = (25.0, 33.0, 60.0)  # of a triangular distribution
    BLURRED: ClassVar[tuple[float, float, float]] = (0.2, 1.0, 2.5)  # share, and range of the blur
    STATED: ClassVar[float] = 0.5
    OBLONG: ClassVar[tuple[float, float]] = (0.25, 4.0)  # share of maps whose pixels are not square, largest aspect

    law: str = "plane_stress"
    poisson: float = 0.495
    true_poisson: float = 0.495
    edges: str = "plates"
    axial_only: bool = False
    lateral: float = 1.0
    snr: float = 35.0
    blur: float = 0.0
    stated: bool = False
    aspect: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Setting:
        """A random setting."""
        true = rng.uniform(*POISSON) if rng.random() < cls.OTHER_POISSON else 0.495
        wrong, by = cls.WRONG_POISSON
        poisson = np.clip(true + rng.uniform(-by, by), *POISSON) if rng.random() < wrong else true
        blurred, least, most = cls.BLURRED
        noisy, factor = cls.NOISY_LATERAL
        oblong, aspect = cls.OBLONG
        edges = str(rng.choice([*cls.EDGES], p=[*cls.EDGES.values()]))
        return cls(
            law="plane_strain" if rng.random() < cls.STRAIN else "plane_stress",
            poisson=float(poisson),
            true_poisson=float(true),
            edges=edges,
            axial_only=bool(rng.random() < cls.AXIAL_ONLY and edges != "open"),
            lateral=factor if rng.random() < noisy and edges != "open" else 1.0,
            snr=float(rng.triangular(*cls.SNR)),
            blur=float(rng.uniform(least, most)) if rng.random() < blurred else 0.0,
            stated=bool(rng.random() < cls.STATED),
            aspect=float(aspect ** rng.random()) if rng.random() < oblong else 1.0,
        )

    @property
    def relative(self) -> bool:
        """Whether no force is known, so that a reconstruction finds ratios of moduli alone."""
        return self.edges == "open"

    @property
    def right(self) -> bool:
        """Whether all that the measurement states is true."""
        return self.poisson == self.true_poisson and (not self.blur or self.stated)

    def grid(self, grid: Grid) -> Grid:
        """A grid with the nodes of another and this aspect."""
        return Grid(grid.shape, (grid.spacing[0], grid.spacing[0] * self.aspect))

    def measurement(self, grid: Grid, pressure: float, displacement, std, reference) -> Measurement:
        """The measurement of a displacement under what is stated, on a grid of this aspect."""
        length = [2 * self.blur * h for h in grid.spacing] if self.blur and self.stated else None
        return Measurement(
            grid,
            self._law(self.poisson),
            self._load(grid, pressure),
            displacement,
            std,
            reference=reference,
            displacement_correlation=length,
        )

    def simulate(
        self,
        grid: Grid,
        pressure: float,
        make: Callable[[Grid], tuple[np.ndarray, np.ndarray]],
        rng: np.random.Generator,
    ) -> tuple[Measurement, np.ndarray]:
        """Simulate the measurement of a map that ``make`` makes for the whole body, a pair of modulus and mask.

        Parameters
        ----------
        grid : Grid
            Of this aspect.
        pressure : float
            On the top in pascals.
        make : callable
        rng : numpy.random.Generator
            Of the noise.

        Returns
        -------
        measurement : Measurement
            With the true modulus, in single precision, as its reference.
        mask : numpy.ndarray of bool, shape grid.shape
        """
        margin = [round(MARGIN * n) if self.edges == "open" else 0 for n in grid.shape]
        body = Grid(tuple(n + 2 * m for n, m in zip(grid.shape, margin, strict=True)), grid.spacing)
        modulus, mask = make(body)
        modulus = modulus.astype(np.float32)
        load = compression(body, pressure=pressure) if self.edges == "open" else self._load(grid, pressure)
        u = solve_forward(ElasticForm(body, self._law(self.true_poisson)), modulus, load)
        cut = tuple(slice(m, m + n) for m, n in zip(margin, grid.shape, strict=True))
        u, modulus, mask = u[:, *cut], modulus[cut], mask[cut]
        noisy, std = add_noise(u, self.snr, seed=rng)
        noise = std * blurred_noise(rng, u.shape, self.blur) if self.blur else noisy - u
        factor = np.array([1.0, np.inf if self.axial_only else self.lateral])[:, None, None]
        noise[1] *= 1.0 if self.axial_only else self.lateral
        return self.measurement(grid, pressure, u + noise, std * factor, modulus), mask

    def _law(self, poisson) -> Law:
        return LAWS[self.law](poisson)

    def _load(self, grid, pressure) -> Boundary:
        if self.edges == "plates":
            return compression(grid, pressure=pressure)
        edge = np.ones((2, *grid.shape), bool)
        if self.edges == "open":
            edge[:, 1:-1, 1:-1] = False
            return Boundary(open=edge)
        plates = compression(grid, pressure=pressure)
        edge[:, 1:-1] = False
        edge[0] &= plates.fixed[0]
        return Boundary(fixed=edge, force=np.where(edge, 0.0, plates.force))


def blurred_noise(rng: np.random.Generator, shape: tuple[int, ...], blur: float) -> np.ndarray:
    """White noise that a Gaussian of some nodes has blurred, with a mean square of one in each component (d, ...)."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.normal(size=shape), (0, *[blur] * (len(shape) - 1)), mode="wrap")
    return noise / np.sqrt(np.mean(noise**2, axis=tuple(range(1, len(shape))), keepdims=True))
