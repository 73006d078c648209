"""Material laws: isotropic linear elasticity at a known Poisson ratio, one for the body or one for each node.

All laws read ``stress = x (lame_lambda tr(strain) I + 2 lame_mu strain)``: the modulus x (Young's modulus, Pa)
is a factor, which is what makes the form a(x; u, v) linear in x. They differ in the two Lame numbers per unit
modulus (Timoshenko and Goodier, Theory of Elasticity, ch. 2) and in how many dimensions they live in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .errors import refuse_masked

# Step of the central difference in `poisson_rate`, over the distance from the law's limit, at which the Lame numbers
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


@dataclass(frozen=True, eq=False)
class Law:
    """Isotropic elasticity with Young's modulus x per node and one Poisson ratio, or one for each node.

    A map of the Poisson ratio becomes one of the two Lame numbers per unit modulus. In the body, their products with
    the modulus are interpolated from the nodes, as the modulus itself is. The form stays linear in x.

    A new law is a subclass, listed in `LAWS` below and exported by elastofast/__init__.py. It sets the class attributes
    and overrides the Lame numbers where they differ.

    Parameters
    ----------
    poisson : float or array_like, shape node_shape or (N,)
        Poisson ratio, dimensionless; an array has one for each node of the body that the law is used with.

    Raises
    ------
    TypeError, ValueError
        If a Poisson ratio is no number or lies outside the law's range.

    Examples
    --------
    >>> import numpy as np, elastofast as ef
    >>> nu = np.full((33, 33), 0.495)
    >>> nu[10:20, 10:20] = 0.3
    >>> ef.PlaneStress(nu)
    PlaneStress(poisson=0.3 to 0.495 on 1089 nodes)
    """

    poisson: Any
    dim: ClassVar[int] = 2
    name: ClassVar[str] = ""  # in files and on the command line
    poisson_limit: ClassVar[float] = 0.5  # where the law's stiffness ceases to be finite
    mean_dilatation: ClassVar[bool] = False  # the volumetric term sees mean dilatations only, so that it does not lock
    multigrid: ClassVar[MultigridSettings] = MultigridSettings()  # on a Grid

    def __post_init__(self):
        refuse_masked(self.poisson, "poisson")
        try:
            nu = np.array(self.poisson, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"poisson must be a number, or one for each node, got {self.poisson!r}") from None
        bad = ~(np.isfinite(nu) & (nu > -1) & (nu < self.poisson_limit))
        if bad.any() or not nu.size:
            got = f"{nu[bad][0]:g}" if nu.size else "no value"
            where = f" ({int(bad.sum())} such values)" if nu.ndim and nu.size else ""
            raise ValueError(
                f"poisson must lie in (-1, {self.poisson_limit:g}) for {type(self).__name__}, got {got}{where}"
            )
        nu.setflags(write=False)
        object.__setattr__(self, "poisson", nu if nu.ndim else float(nu))

    def __eq__(self, other):
        return type(self) is type(other) and np.array_equal(self.poisson, other.poisson)

    def __hash__(self):
        return hash((type(self), np.asarray(self.poisson).tobytes()))

    def __repr__(self):
        nu = self.poisson
        text = f"{nu.min():g} to {nu.max():g} on {nu.size} nodes" if np.ndim(nu) else repr(nu)
        return f"{type(self).__name__}(poisson={text})"

    @property
    def lame_mu(self) -> Any:
        """Shear modulus per unit Young's modulus; an array where the Poisson ratio is one."""
        return 1 / (2 * (1 + self.poisson))

    @property
    def lame_lambda(self) -> Any:
        """First Lame number per unit Young's modulus; an array where the Poisson ratio is one."""
        return self.poisson / ((1 + self.poisson) * (1 - 2 * self.poisson))

    @property
    def is_map(self) -> bool:
        """Whether each node has its own Lame numbers."""
        return np.ndim(self.lame_mu) > 0

    def with_poisson(self, poisson: Any) -> Law:
        """The same law at another Poisson ratio."""
        return replace(self, poisson=poisson)

    def moved(self, interpolated: Callable[[Any], Any]) -> Law:
        """The law on other nodes: a map of the Poisson ratio as a function makes it of the one on the present nodes."""
        return self.with_poisson(interpolated(self.poisson)) if self.is_map else self

    def typical(self) -> Law:
        """The law itself, or of a map the law at its median, where one ratio has to stand for all."""
        return self.moved(np.median)


class PlaneStress(Law):
    """Thin sheet, no stress across its thickness; -1 < poisson < 1."""

    name = "plane_stress"
    poisson_limit = 1.0

    @property
    def lame_lambda(self) -> Any:
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
    """Three-dimensional body (`Grid` of three axes or tetrahedral `Mesh`); -1 < poisson < 0.5.

    Mean dilatations as in plane strain. The settings of the multigrid solver were chosen at a Poisson ratio of 0.495 on
    grids of 17^3 to 48^3 nodes, where degrees from 3 to 8 were tried (docs/method/solvers.md, Solving with K).
    """

    name = "solid"
    dim = 3
    mean_dilatation = True
    multigrid = MultigridSettings(smoother_degree=6, smoother_ratio=70.0, spectrum=(0.5, 1.3), curvature_cycles=2)


class LameNumbers(Law):
    """A law with other Lame numbers: of a part of its form, or of a derivative, since K is linear in them."""

    _numbers: tuple[Any, Any]

    def __init__(self, law: Law, lame_lambda: Any, lame_mu: Any) -> None:
        for name in ("poisson", "dim", "name", "poisson_limit", "mean_dilatation", "multigrid"):
            object.__setattr__(self, name, getattr(law, name))
        object.__setattr__(self, "_numbers", (lame_lambda, lame_mu))

    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__

    @property
    def lame_lambda(self) -> Any:
        """First Lame number, as given."""
        return self._numbers[0]

    @property
    def lame_mu(self) -> Any:
        """Shear modulus, as given."""
        return self._numbers[1]


def poisson_rate(law: Law) -> Law:
    """The derivative of a law by its Poisson ratio: the form of it is dK/dnu."""
    step = RATE_STEP * (law.poisson_limit - law.poisson)
    above, below = (law.with_poisson(law.poisson + way * step) for way in (1, -1))
    rates = [(getattr(above, name) - getattr(below, name)) / (2 * step) for name in ("lame_lambda", "lame_mu")]
    return LameNumbers(law, *rates)


LAWS = {law.name: law for law in (PlaneStress, PlaneStrain, Solid)}
