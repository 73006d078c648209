"""Material laws: isotropic linear elasticity at a fixed Poisson ratio.

All laws read ``stress = x (lame_lambda tr(strain) I + 2 lame_mu strain)``: the modulus x (Young's modulus, Pa)
is a factor, which is what makes the form a(x; u, v) linear in x. They differ in the two Lame numbers per unit
modulus (Timoshenko and Goodier, Theory of Elasticity, ch. 2) and in how many dimensions they live in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Law:
    """Isotropic elasticity with Young's modulus x per node and one Poisson ratio.

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
    name: ClassVar[str] = ""
    poisson_limit: ClassVar[float] = 0.5  # where the law's stiffness ceases to be finite

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

    On a `Grid` the volumetric term uses the mean dilatation of each cell, so nearly incompressible tissue does
    not lock (Hughes, The Finite Element Method, 4.4). On a triangular `Mesh` it is the plain linear triangle.
    """

    name = "plane_strain"


class Solid(Law):
    """Three-dimensional body (tetrahedral `Mesh`); -1 < poisson < 0.5."""

    name = "solid"
    dim = 3


LAWS = {law.name: law for law in (PlaneStress, PlaneStrain, Solid)}
