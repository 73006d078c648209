"""What an optimiser is given, what it gives back, and what it has to be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..misfit.fidelity import Evaluation, Fidelity
from ..priors.protocol import SplittingSettings

__all__ = ["Iterate", "Optimizer", "Problem", "Report"]


class Iterate(NamedTuple):
    """One accepted point of every member of a batch.

    Attributes
    ----------
    z : array, shape (B, N)
        Logarithm of the modulus.
    data : Evaluation or None
        The data term there, if it has been evaluated.
    prior : numpy.ndarray, shape (B,), or None
        The prior's energies, if they have been evaluated.
    dual : array or None
        The prior's dual variable.
    """

    z: Any
    data: Evaluation | None = None
    prior: np.ndarray | None = None
    dual: Any = None


Report = Callable[[Iterate, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Called after every step with the new point, the prior's weights, the step lengths and the gradient norms (each (B,)),
and which members took the step (bool, (B,)). Returns which members are to stop (bool, (B,))."""


@dataclass(frozen=True)
class Problem:
    """Minimise J(exp z) + weight R(exp z) over z = log x on one level, for every member of a batch by itself.

    Attributes
    ----------
    fidelity : Fidelity
        The data term J of all members.
    prior : object or None
        The prior R on this level's geometry, see `elastofast.priors.protocol`.
    weight : numpy.ndarray, shape (B,), or None
        None leaves it to an optimiser that chooses its own.
    start : Iterate
        Where to begin; only z has to be there.
    rtol : float
        Relative tolerance of the forward and adjoint solves.
    limits : (float, float) or arrays of shape (B, 1) or (B, N)
        Bounds on z.
    movable : array, shape (1, N), or None
        0 where the modulus is known, 1 where it is sought; None if it is sought everywhere.
    report : callable
        See `Report`.
    max_iterations : int or None
        Largest number of steps on this level; None for the optimiser's own.
    step_length : float
        Of projected gradient descent, in units of one over the largest curvature.
    finest, coarsest : bool
        Which of the levels this is.
    resumed : bool
        Whether the start is the result of an earlier run.
    homogeneous : array, shape (B, N), or None
        The best homogeneous maps, which do not depend on the start; None for optimisers that do not choose their
        weight.
    splitting : SplittingSettings or None
        How splitting weighs the prior where that is not what the prior brings along.
    node_ratio : float
        Nodes of this level over those of the finest one. Splitting multiplies a weight that the caller gave by it;
        Gauss-Newton takes the finest level's weight on all levels.
    announce_weight : callable
        Told the weights (B,) that an optimiser which chooses its own will end with on the finest level.
    """

    fidelity: Fidelity
    prior: Any
    weight: np.ndarray | None
    start: Iterate
    rtol: float
    limits: tuple[Any, Any]
    report: Report
    max_iterations: int | None = None
    step_length: float = 0.7
    movable: Any = None
    finest: bool = True
    coarsest: bool = True
    resumed: bool = False
    homogeneous: Any = None
    splitting: SplittingSettings | None = None
    node_ratio: float = 1.0
    announce_weight: Callable[[np.ndarray], None] = lambda weight: None


class Optimizer(ABC):
    """A way to minimise a `Problem`. The optimisers with a name are listed in `optimizers.py`.

    Attributes
    ----------
    name : str
    batched : bool
        Whether it takes several measurements at a time on a device.
    chooses_weight : bool
        Whether an automatic weight is its own business.
    coarsest_nodes : int or None
        Nodes along the shorter axis of the coarsest level; None for no coarse levels.
    needs_weight : bool
        Whether a weight of zero has no meaning for it.
    needs_derivative : bool
        Whether it needs the derivative of an objective, which the frozen gradient is not.
    """

    name: ClassVar[str]
    batched: ClassVar[bool] = False
    chooses_weight: ClassVar[bool] = False
    coarsest_nodes: ClassVar[int | None] = None
    needs_weight: ClassVar[bool] = False
    needs_derivative: ClassVar[bool] = False

    @abstractmethod
    def supports(self, prior: Any) -> bool:
        """Whether the prior (None for maximum likelihood) offers what this optimiser asks for."""

    @abstractmethod
    def minimise(self, problem: Problem) -> tuple[Iterate, Any]:
        """The last point, and for each member "converged", "max_iterations", "stalled" or "stopped"."""
