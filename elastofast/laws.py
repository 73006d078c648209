"""Material laws: isotropic linear elasticity at a fixed Poisson ratio.

All laws read ``stress = x (lame_lambda tr(strain) I + 2 lame_mu strain)``: the modulus x (Young's modulus, Pa)
is a factor, which is what makes the form a(x; u, v) linear in x. They differ in the two Lame numbers per unit
modulus (Timoshenko and Goodier, Theory of Elasticity, ch. 2) and in how many dimensions they live in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

# Step of the central difference in `PoissonRate`, over the distance from the law's limit, at which the Lame numbers
# grow without bound. Truncation costs 1e-9, and rounding 1e-8 at a Poisson ratio of .4995.
RATE_STEP = 3e-5


@dataclass(frozen=True)
class MultigridSettings:
    """How the multigrid solver of a `Grid` treats the matrices of a law.

    The default values are those of plane stress. They were chosen on grids of up to 512 x 512 nodes at a Poisson ratio
    of 0.495; the solves and reconstructions of benchmarks/test_solves.py show their effect.

    Parameters
    ----------
    smoother_degree : int
        Degree of the Chebyshev polynomial that smooths, that is, its applications of the additive Schwarz method.
    smoother_ratio : float
        The polynomial damps the eigenvalues in [lmax / smoother_ratio, lmax]. The more of the spectrum has to be
        damped, the larger the ratio and with it the degree (docs/method/solvers.md, Solving with K).
    spectrum : (float, float)
        Interval that holds the eigenvalues of (V-cycle x matrix) unless the modulus is rough. Cycles that are
        accelerated by the Chebyshev semi-iteration assume it. Measured; no script repeats the measurement.
    curvature_cycles : int
        V-cycles that stand for a solve with K in products with the Gauss-Newton Hessian. The spectrum above enters
        these products squared: Gauss-Newton steps overshoot where it is below sqrt(1/2) and have to be shortened, so
        plane strain takes two cycles (docs/method/optimisation.md, Optimisers).
    """

    smoother_degree: int = 3
    smoother_ratio: float = 12.0
    spectrum: tuple[float, float] = (0.78, 1.02)
    curvature_cycles: int = 1


@dataclass(frozen=True)
class Law:
    """Isotropic elasticity with Young's modulus x per node and one Poisson ratio.

    A new law is a subclass, listed in `LAWS` below and exported by elastofast/__init__.py. It sets the class attributes
    and overrides the Lame numbers where they differ.

    Parameters
    ----------
    poisson : float
        Poisson ratio, dimensionless.

    Raises
    ------
    TypeError, ValueError
        If the Poisson ratio is no number or lies outside the law's range.
    """

    poisson: float
    dim: ClassVar[int] = 2
    name: ClassVar[str] = ""  # in files and on the command line
    poisson_limit: ClassVar[float] = 0.5  # where the law's stiffness ceases to be finite
    mean_dilatation: ClassVar[bool] = False  # the volumetric term sees mean dilatations only, so that it does not lock
    multigrid: ClassVar[MultigridSettings] = MultigridSettings()  # on a Grid

    def __post_init__(self):
        try:
            nu = float(self.poisson)
        except (TypeError, ValueError):
            raise TypeError(f"poisson must be a number, got {self.poisson!r}") from None
        if not (np.isfinite(nu) and -1 < nu < self.poisson_limit):
            raise ValueError(
                f"poisson must lie in (-1, {self.poisson_limit:g}) for {type(self).__name__}, got {self.poisson}"
            )
        object.__setattr__(self, "poisson", nu)

    @property
    def lame_mu(self) -> float:
        """Shear modulus per unit Young's modulus."""
        return 1 / (2 * (1 + self.poisson))

    @property
    def lame_lambda(self) -> float:
        """First Lame number per unit Young's modulus."""
        return self.poisson / ((1 + self.poisson) * (1 - 2 * self.poisson))

    def with_poisson(self, poisson: float) -> Law:
        """The same law at another Poisson ratio."""
        return replace(self, poisson=poisson)


class PlaneStress(Law):
    """Thin sheet, no stress across its thickness; -1 < poisson < 1."""

    name = "plane_stress"
    poisson_limit = 1.0

    @property
    def lame_lambda(self) -> float:
        """Plane-stress Lame number per unit Young's modulus, nu / (1 - nu^2)."""
        return self.poisson / (1 - self.poisson**2)


class PlaneStrain(Law):
    """Long body, no strain along its length; -1 < poisson < 0.5.

    The volumetric term uses mean dilatations, so that nearly incompressible tissue does not lock: of each cell on a
    `Grid` (Hughes, The Finite Element Method, 4.4), around each node on a triangular `Mesh` (docs/method/model.md).
    """

    name = "plane_strain"
    mean_dilatation = True
    multigrid = MultigridSettings(smoother_degree=5, smoother_ratio=50.0, spectrum=(0.35, 1.02), curvature_cycles=2)


class Solid(Law):
    """Three-dimensional body (tetrahedral `Mesh`); -1 < poisson < 0.5. Mean dilatations as in plane strain."""

    name = "solid"
    dim = 3
    mean_dilatation = True


class PoissonRate(Law):
    """The derivative of a law by its Poisson ratio: the form of it is dK/dnu, since K is linear in the Lame numbers."""

    _rates: tuple[float, float]

    def __init__(self, law: Law) -> None:
        for name in ("poisson", "dim", "name", "poisson_limit", "mean_dilatation", "multigrid"):
            object.__setattr__(self, name, getattr(law, name))
        step = RATE_STEP * (law.poisson_limit - law.poisson)
        above, below = (law.with_poisson(law.poisson + way * step) for way in (1, -1))
        rates = [(getattr(above, name) - getattr(below, name)) / (2 * step) for name in ("lame_lambda", "lame_mu")]
        object.__setattr__(self, "_rates", tuple(rates))

    @property
    def lame_lambda(self) -> float:
        """Derivative of the first Lame number."""
        return self._rates[0]

    @property
    def lame_mu(self) -> float:
        """Derivative of the shear modulus."""
        return self._rates[1]


LAWS = {law.name: law for law in (PlaneStress, PlaneStrain, Solid)}
