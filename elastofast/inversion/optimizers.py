"""The optimisers that have a name. A new one is a file of its own and an entry here; see docs/architecture.md."""

from __future__ import annotations

from .gauss_newton import GaussNewton
from .lbfgs import LBFGS
from .problem import Optimizer
from .projected_gradient import ProjectedGradient
from .splitting import HalfQuadraticSplitting

__all__ = ["OPTIMIZERS"]

# In order of preference: the default is the first that supports the prior.
OPTIMIZERS: dict[str, Optimizer] = {
    listed.name: listed() for listed in (GaussNewton, HalfQuadraticSplitting, LBFGS, ProjectedGradient)
}
