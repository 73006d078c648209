"""What the form asks of its backends, and what every solver offers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from .sparsity import SparsityPattern

__all__ = ["FormBackend", "Solution", "Solver"]


class Solution(NamedTuple):
    """Outcome of a linear solve: the field, the iterations, and the true relative residual in the 2-norm.

    Of a batch, the largest number of iterations and the largest residual.
    """

    value: Any
    iterations: int
    residual: float


class Solver(Protocol):
    """Solver for A w = b, A = K(x) + diag(shift), on the active dofs. All other dofs are zero going in and coming out.

    `ElasticForm.solver` makes one. Fields have the shape (d, N), or (B, d, N) for a batch of moduli. Threads may share
    a solver: its work is then done by one of them at a time. (On a GPU they must also share one stream.)
    """

    def update(self, x: Any, shift: Any = None) -> None:
        """Take another modulus, and the shift that belongs to it, for the same active dofs.

        Everything that does not depend on the modulus is kept. Results are those of a new solver, to the last bit.

        Parameters
        ----------
        x, shift : as of `ElasticForm.solver`
            On a device the batch must be as large as before, and a shift be given if there was one.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        ...

    def solve(self, b: Any, x0: Any = None, rtol: float = 1e-8) -> Solution:
        """Solve to a true relative residual of ``rtol``; `SolveError` if it is not reached."""
        ...

    def precondition(self, r: Any) -> Any:
        """An approximation of A^-1 r by one fixed symmetric positive definite operator."""
        ...

    def approximate_inverse(self, r: Any, accuracy: float) -> Any:
        """A^-1 r to about the given relative accuracy."""
        ...

    def apply(self, w: Any) -> Any:
        """A w."""
        ...


class FormBackend(Protocol):
    """The contractions of the trilinear form on one geometry with one law, for arrays of one place.

    Arrays are contiguous, of one dtype (float64 or float32) and of the shapes below, with B members of a batch, N nodes
    and d components; `ElasticForm` sees to that.
    """

    def force(self, x: Any, u: Any, out: Any = None) -> tuple[Any, bool]:
        """K(x) u for x (1 or B, N) and u (B, d, N), and False only if it was looked at and is not all finite."""
        ...

    def sensitivity(self, u: Any, v: Any, out: Any = None) -> tuple[Any, bool]:
        """D(u)^T v for u and v (B, d, N), and False only if it was looked at and is not all finite."""
        ...

    def stiffness(self, x: Any, out: Any = None) -> Any:
        """K(x) of x (N,) as a sparse matrix."""
        ...

    def contraction(self, u: Any, out: Any = None) -> Any:
        """D(u) of u (d, N) as a sparse matrix."""
        ...

    def solver(self, x: Any, active: Any, shift: Any = None) -> Solver:
        """A solver for K(x) + diag(shift) on the active dofs."""
        ...

    @property
    def stiffness_pattern(self) -> SparsityPattern:
        """The pattern of K, shared by all its matrices."""
        ...

    @property
    def contraction_pattern(self) -> SparsityPattern:
        """The pattern of D, shared by all its matrices."""
        ...
