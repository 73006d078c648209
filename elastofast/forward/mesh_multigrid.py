"""Multigrid for the stiffness matrices of a `Mesh`: one V-cycle as a preconditioner.

The meshes and the interpolations between them depend on the body alone and are made once; for new moduli only the
Galerkin matrices P^T K P are computed. The smoother is a sweep of block Gauss-Seidel over the nodes, forwards on the
way down and backwards on the way up, so that a cycle is symmetric and positive definite. Vectors are (N, d), matrices
block rows of d x d blocks. Cycles are in single precision, which is enough for a preconditioner.

The levels are stacked: the rows of all matrices form one array of block rows, the nodes of all levels are numbered
through, and so are those of interpolations, which lead from the rows of a level to those of the next coarser one.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from types import SimpleNamespace

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.sparse import csr_array

from ..boundary import rigid_modes
from .compile import njit
from .krylov import semi_iteration
from .mesh_coarsening import coarser

__all__ = ["MeshHierarchy", "MeshMultigrid", "cycles"]

# Bound for the eigenvalues of (V-cycle x matrix): one but for rounding. The least one is found by steps of Lanczos'
# method for a homogeneous body; where the modulus varies by 1:5 it is .75 to .85 of that (plane stress, 129 and 257
# nodes a side).
LARGEST = 1.02
LANCZOS_STEPS = 20
VARIED = 0.75
# Coarser meshes are made until one has this many dofs or fewer, whose matrix is inverted as a dense one. Not studied.
COARSEST_DOFS = 300
# Added to the diagonal of that matrix, relative to it: it is in single precision, and singular where pins are left out.
REGULARISATION = 1e-5
# Eigenvalues below this are zero but for rounding; pins whose motions are as alike as this are not told apart.
ROUNDING, WORST_PINS = 1e-10, 100.0
FREE = 1e-13  # energy of a motion relative to that of single dofs, below which it counts as free


# Rows of vectors and blocks as tuples, which live in registers.


@njit(nogil=True, cache=True)
def _nothing2(x):
    return x.dtype.type(0), x.dtype.type(0)


@njit(nogil=True, cache=True)
def _nothing3(x):
    return x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)


@njit(nogil=True, cache=True)
def _row2(b, a):
    return b[a, 0], b[a, 1]


@njit(nogil=True, cache=True)
def _row3(b, a):
    return b[a, 0], b[a, 1], b[a, 2]


@njit(nogil=True, cache=True)
def _minus2(t, blocks, k, x, c):
    """A vector t minus block k times row c of x."""
    return (
        t[0] - (blocks[k, 0, 0] * x[c, 0] + blocks[k, 0, 1] * x[c, 1]),
        t[1] - (blocks[k, 1, 0] * x[c, 0] + blocks[k, 1, 1] * x[c, 1]),
    )


@njit(nogil=True, cache=True)
def _minus3(t, blocks, k, x, c):
    return (
        t[0] - (blocks[k, 0, 0] * x[c, 0] + blocks[k, 0, 1] * x[c, 1] + blocks[k, 0, 2] * x[c, 2]),
        t[1] - (blocks[k, 1, 0] * x[c, 0] + blocks[k, 1, 1] * x[c, 1] + blocks[k, 1, 2] * x[c, 2]),
        t[2] - (blocks[k, 2, 0] * x[c, 0] + blocks[k, 2, 1] * x[c, 1] + blocks[k, 2, 2] * x[c, 2]),
    )


@njit(nogil=True, cache=True)
def _times2(m, a, t):
    """Block a times a vector t."""
    return m[a, 0, 0] * t[0] + m[a, 0, 1] * t[1], m[a, 1, 0] * t[0] + m[a, 1, 1] * t[1]


@njit(nogil=True, cache=True)
def _times3(m, a, t):
    return (
        m[a, 0, 0] * t[0] + m[a, 0, 1] * t[1] + m[a, 0, 2] * t[2],
        m[a, 1, 0] * t[0] + m[a, 1, 1] * t[1] + m[a, 1, 2] * t[2],
        m[a, 2, 0] * t[0] + m[a, 2, 1] * t[1] + m[a, 2, 2] * t[2],
    )


@cache
def _kernels(d: int) -> SimpleNamespace:
    """Kernels for blocks of d x d."""

    @njit(nogil=True, cache=True)
    def product(indptr, nodes, blocks, x, out):
        for a in range(len(x)):
            t = _nothing2(x) if d == 2 else _nothing3(x)
            for k in range(indptr[a], indptr[a + 1]):
                t = _minus2(t, blocks, k, x, nodes[k]) if d == 2 else _minus3(t, blocks, k, x, nodes[k])
            for i in range(d):
                out[a, i] = -t[i]

    @njit(nogil=True, cache=True)
    def cycle(bounds, indptr, nodes, blocks, inverses, starts, parents, shares, coarsest, b, x):
        """A V-cycle. b and x are stacked; b and the result are those of the first level."""
        last = len(bounds) - 2
        b[bounds[1] :] = 0
        for level in range(last):
            # a sweep forwards from x = 0
            for a in range(bounds[level], bounds[level + 1]):
                t = _row2(b, a) if d == 2 else _row3(b, a)
                for k in range(indptr[a], indptr[a + 1]):
                    if nodes[k] >= a:
                        break
                    t = _minus2(t, blocks, k, x, nodes[k]) if d == 2 else _minus3(t, blocks, k, x, nodes[k])
                t = _times2(inverses, a, t) if d == 2 else _times3(inverses, a, t)
                for i in range(d):
                    x[a, i] = t[i]
            # its residual, to which only the blocks above the diagonal contribute, restricted
            for a in range(bounds[level], bounds[level + 1]):
                t = _nothing2(x) if d == 2 else _nothing3(x)
                for k in range(indptr[a + 1] - 1, indptr[a] - 1, -1):
                    if nodes[k] <= a:
                        break
                    t = _minus2(t, blocks, k, x, nodes[k]) if d == 2 else _minus3(t, blocks, k, x, nodes[k])
                for p in range(starts[a], starts[a + 1]):
                    for i in range(d):
                        b[parents[p], i] += shares[p] * t[i]
        first, count = bounds[last], bounds[last + 1] - bounds[last]
        for a in range(count):
            for i in range(d):
                x[first + a, i] = 0
                for c in range(count):
                    for j in range(d):
                        x[first + a, i] += coarsest[a * d + i, c * d + j] * b[first + c, j]
        for level in range(last - 1, -1, -1):
            for a in range(bounds[level], bounds[level + 1]):
                for p in range(starts[a], starts[a + 1]):
                    for i in range(d):
                        x[a, i] += shares[p] * x[parents[p], i]
            for a in range(bounds[level + 1] - 1, bounds[level] - 1, -1):
                t = _row2(b, a) if d == 2 else _row3(b, a)
                for k in range(indptr[a], indptr[a + 1]):
                    if nodes[k] != a:
                        t = _minus2(t, blocks, k, x, nodes[k]) if d == 2 else _minus3(t, blocks, k, x, nodes[k])
                t = _times2(inverses, a, t) if d == 2 else _times3(inverses, a, t)
                for i in range(d):
                    x[a, i] = t[i]

    @njit(nogil=True, cache=True)
    def galerkin(bounds, indptr, nodes, starts, parents, shares, blocks):
        """The blocks of all levels but the first, from those of the first."""
        blocks[indptr[bounds[1]] :] = 0
        for a in range(bounds[-2]):
            for p in range(starts[a], starts[a + 1]):
                first, end = indptr[parents[p]], indptr[parents[p] + 1]
                for k in range(indptr[a], indptr[a + 1]):
                    b = nodes[k]
                    for q in range(starts[b], starts[b + 1]):
                        low, high = first, end - 1
                        while low < high:
                            middle = (low + high) // 2
                            if nodes[middle] < parents[q]:
                                low = middle + 1
                            else:
                                high = middle
                        share = shares[p] * shares[q]
                        for i in range(d):
                            for j in range(d):
                                blocks[low, i, j] += share * blocks[k, i, j]

    @njit(nogil=True, cache=True)
    def masked(indptr, nodes, values, active, out):
        """Blocks of a matrix whose rows list the columns of one component after those of another; zero where a dof
        (node, component) is not active.
        """
        n = len(active)
        nnz = indptr[n]
        for a in range(n):
            degree = indptr[a + 1] - indptr[a]
            for k in range(indptr[a], indptr[a + 1]):
                for i in range(d):
                    at = i * nnz * d + indptr[a] * d + k - indptr[a]
                    for j in range(d):
                        if active[a, i] and active[nodes[k], j]:
                            out[k, i, j] = values[at + j * degree]
                        else:
                            out[k, i, j] = 0

    @njit(nogil=True, cache=True)
    def inverted(blocks, diagonal, out):
        """Inverses of the diagonal blocks; a dof whose diagonal entry is zero, because it is not active, gets a one."""
        own = np.empty((d, d))
        for a in range(len(diagonal)):
            for i in range(d):
                for j in range(d):
                    own[i, j] = blocks[diagonal[a], i, j]
                if own[i, i] <= 0:
                    own[i, i] = 1
            # Gauss-Jordan elimination in place; the blocks are positive definite
            for pivot in range(d):
                scale = 1 / own[pivot, pivot]
                own[pivot, pivot] = 1
                for j in range(d):
                    own[pivot, j] *= scale
                for i in range(d):
                    if i != pivot:
                        factor = own[i, pivot]
                        own[i, pivot] = 0
                        for j in range(d):
                            own[i, j] -= factor * own[pivot, j]
            for i in range(d):
                for j in range(d):
                    out[a, i, j] = own[i, j]

    @njit(nogil=True, cache=True)
    def deflated(b, pins, modes):
        """Give the pins the reactions that balance b under the rigid motions."""
        for k in range(len(pins)):
            b[pins[k] // d, pins[k] % d] = 0
        for k in range(len(pins)):
            total = 0.0
            for a in range(modes.shape[1]):
                for i in range(d):
                    total += modes[k, a, i] * b[a, i]
            b[pins[k] // d, pins[k] % d] = -total

    @njit(nogil=True, cache=True)
    def held(x, pins, modes):
        """Move x rigidly so that the pins are at rest."""
        for k in range(len(pins)):
            shift = x[pins[k] // d, pins[k] % d]
            for a in range(modes.shape[1]):
                for i in range(d):
                    x[a, i] -= shift * modes[k, a, i]

    return SimpleNamespace(
        product=product, cycle=cycle, galerkin=galerkin, masked=masked, inverted=inverted, deflated=deflated, held=held
    )


class MeshHierarchy:
    """What multigrid needs of a body, whatever its moduli.

    Parameters
    ----------
    mesh : Mesh
    indptr, nodes : array of int64
        The nodes that each node is coupled with, as CSR.

    Attributes
    ----------
    bounds : array of int64
        First row of every level, and the number of all rows.
    indptr, nodes : array
        Block rows of all levels, stacked.
    interpolation : (array, array, array)
        Row starts, coarse rows and shares, stacked.
    diagonal : array of int64
        Where in the block rows the diagonal blocks are.
    """

    def __init__(self, mesh, indptr, nodes):
        self.mesh, self.d = mesh, mesh.dim
        self._pins: dict[bytes, tuple] = {}
        self._least: dict[bytes, tuple] = {}
        bounds, rows, starts, parents, shares = [0, mesh.n_nodes], [(indptr, nodes)], [np.zeros(1, int)], [], []
        graph = csr_array((np.ones(len(nodes), np.int8), nodes, indptr), shape=(mesh.n_nodes,) * 2)
        while mesh.n_nodes * mesh.dim > COARSEST_DOFS and (coarse := coarser(mesh)) is not None:
            mesh, p = coarse.mesh, coarse.interpolation
            pattern = csr_array((np.ones(p.nnz, np.int8), p.indices, p.indptr), shape=p.shape)
            graph = (pattern.T.tocsr() @ ((graph @ pattern) > 0).astype(np.int8) > 0).astype(np.int8)
            graph.sort_indices()
            rows.append((rows[-1][0][-1] + graph.indptr.astype(np.int64), graph.indices + bounds[-1]))
            starts.append(starts[-1][-1] + p.indptr[1:])
            parents.append(p.indices + bounds[-1])
            shares.append(p.data)
            bounds.append(bounds[-1] + mesh.n_nodes)
        self.bounds = np.array(bounds)
        self.indptr = np.concatenate([rows[0][0][:1], *(each[1:] for each, _ in rows)])
        # unsigned, so that kernels need not look for numbers that count from the end
        self.nodes = np.concatenate([each for _, each in rows]).astype(np.uint32)
        starts.append(np.full(mesh.n_nodes, starts[-1][-1]))  # the coarsest level leads nowhere
        self.interpolation = (
            np.concatenate(starts),
            np.concatenate([*parents, np.empty(0, int)]).astype(np.uint32),
            np.concatenate([*shares, np.empty(0)]).astype(np.float32),
        )
        self.diagonal = np.flatnonzero(np.repeat(np.arange(bounds[-1]), np.diff(self.indptr)) == self.nodes)

    def pins(self, active):
        """The fixed dofs that alone hold the body against rigid motions, and these motions.

        Multigrid reduces their reactions slowly, because coarse levels do not represent them. It leaves them free, and
        each cycle removes the rigid motions from its result exactly (deflation).

        Parameters
        ----------
        active : array of bool, shape (N, d)

        Returns
        -------
        pins : array of int, shape (k,)
            As node * d + component.
        modes : array of float32, shape (k, N, d)
            Rigid motions, each one at one of the pins and zero at the others.
        """
        key = np.packbits(active).tobytes()
        if key not in self._pins:
            self._pins[key] = self._find_pins(~active)
        return self._pins[key]

    def _find_pins(self, fixed):
        n = len(fixed)
        nodes = self.nodes[: self.indptr[n]]
        around = csr_array((np.ones(len(nodes)), nodes, self.indptr[: n + 1]), shape=(n, n)) @ fixed.astype(float)
        lone = fixed & (around == 1)
        modes = rigid_modes(self.mesh).transpose(0, 2, 1).reshape(-1, fixed.size)
        pins, others = np.flatnonzero(lone), np.flatnonzero(fixed & ~lone)
        values, vectors = np.linalg.eigh(modes[:, others] @ modes[:, others].T / n)
        free = vectors[:, values < ROUNDING].T @ modes
        if not 0 < len(free) == len(pins) or np.linalg.cond(free[:, pins]) > WORST_PINS:
            return np.empty(0, int), np.empty((0, *fixed.shape), np.float32)
        return pins, np.linalg.solve(free[:, pins], free).reshape(-1, *fixed.shape).astype(np.float32)

    def least(self, active, constant):
        """About the least eigenvalue of (V-cycle x matrix), and whether a rigid motion needs no force.

        Parameters
        ----------
        active : array of bool, shape (N, d)
        constant : callable
            Gives the stiffness matrix of a homogeneous body.
        """
        key = np.packbits(active).tobytes()
        if key not in self._least:
            multigrid = MeshMultigrid(self, constant(), active)
            free = _moves_freely(multigrid, rigid_modes(self.mesh).transpose(0, 2, 1) * active)
            self._least[key] = 1.0 if free else VARIED * _least_eigenvalue(multigrid, active), free
        return self._least[key]


class MeshMultigrid:
    """One matrix A = K(x) + diag(shift) on the active dofs, and a V-cycle for it.

    Parameters
    ----------
    hierarchy : MeshHierarchy
    matrix : scipy.sparse.csr_array
        K, with dof = component * N + node.
    active : array of bool, shape (N, d)
    shift : array of float64, shape (N, d), optional
    least : float
        About the least eigenvalue of (V-cycle x matrix), the largest being one.
    """

    def __init__(self, hierarchy, matrix, active, shift=None, least=1.0):
        h, d, n = hierarchy, hierarchy.d, len(active)
        self._hierarchy, self._run, self._spectrum = h, _kernels(d), (least, LARGEST)
        own, diagonal, along = h.indptr[n], h.diagonal, np.arange(d)
        self._pins, self._modes = h.pins(active if shift is None else np.ones_like(active))
        self._blocks = np.empty((own, d, d))
        self._run.masked(h.indptr, h.nodes, matrix.data, active, self._blocks)
        if shift is not None:
            self._blocks[diagonal[:n, None], along, along] += np.where(active, shift, 0.0)
        levels = np.empty((len(h.nodes), d, d), np.float32)
        if len(self._pins):  # the hierarchy leaves them free
            free = active.copy()
            free.ravel()[self._pins] = True
            self._run.masked(h.indptr, h.nodes, matrix.data, free, levels)
        else:
            levels[:own] = self._blocks
        self._run.galerkin(h.bounds, h.indptr, h.nodes, *h.interpolation, levels)
        inverses = np.empty((len(diagonal), d, d), np.float32)
        self._run.inverted(levels, diagonal, inverses)
        self._levels = levels, inverses, *h.interpolation, self._coarsest_inverse(levels)
        self._work = np.empty((2, h.bounds[-1], d), np.float32)
        self._lock = Lock()  # of the working arrays, between threads

    def _coarsest_inverse(self, levels):
        """The inverse of the coarsest matrix."""
        h, d = self._hierarchy, self._hierarchy.d
        first, last = h.bounds[-2:]
        own = slice(h.indptr[first], h.indptr[last])
        rows = np.repeat(np.arange(last - first), np.diff(h.indptr[first : last + 1]))
        dense = np.zeros((last - first, d, last - first, d))
        dense[rows, :, h.nodes[own] - first] = levels[own]
        dense = dense.reshape((last - first) * d, -1)
        diagonal = dense[np.diag_indices(len(dense))]
        dense[np.diag_indices(len(dense))] = np.where(diagonal > 0, (1 + REGULARISATION) * diagonal, 1.0)
        inverse = np.linalg.inv(dense)
        return ((inverse + inverse.T) / 2).astype(np.float32)

    @property
    def diagonal(self):
        """The diagonal of A, (N * d,)."""
        n = self._hierarchy.bounds[1]
        return np.einsum("kii->ki", self._blocks[self._hierarchy.diagonal[:n]]).ravel()

    def product(self, x):
        """A x for x (N * d,) in double precision."""
        h = self._hierarchy
        x = x.reshape(-1, h.d)
        out = np.empty_like(x)
        self._run.product(h.indptr, h.nodes, self._blocks, x, out)
        return out.ravel()

    def cycle(self, r):
        """One V-cycle for the right-hand side r (N * d,), from zero."""
        n = self._hierarchy.bounds[1]
        with self._lock:
            self._work[0, :n] = r.reshape(n, -1)
            self._cycle()
            return self._work[1, :n].astype(np.float64).ravel()

    def _cycle(self):
        """One V-cycle in the working arrays: from the first to the second, on the first level."""
        h, (b, x) = self._hierarchy, self._work
        self._run.deflated(b, self._pins, self._modes)
        self._run.cycle(h.bounds, h.indptr, h.nodes, *self._levels, b, x)
        self._run.held(x, self._pins, self._modes)

    def accelerated(self, r, accuracy):
        """A^-1 r to about a relative accuracy: a fixed number of V-cycles with Chebyshev acceleration."""
        low, high = self._spectrum
        h, n = self._hierarchy, self._hierarchy.bounds[1]
        b, x = self._work[:, :n]
        r = r.reshape(n, -1).astype(np.float32)
        w, d, product = np.zeros_like(r), np.zeros_like(r), np.empty_like(r)
        for number, (momentum, gain) in enumerate(semi_iteration(low, high, cycles(low, accuracy))):
            if number:
                self._run.product(h.indptr, h.nodes, self._levels[0], d, product)
                r -= product
            d *= np.float32(momentum)
            with self._lock:
                b[:] = r
                self._cycle()
                d += np.float32(gain) * x
            w += d
        return w.astype(np.float64).ravel()


def cycles(least: float, accuracy: float) -> int:
    """V-cycles with Chebyshev acceleration that it takes to an accuracy, for a least eigenvalue of one of them."""
    return int(np.ceil(np.arccosh(1 / accuracy) / np.arccosh((LARGEST + least) / (LARGEST - least))))


def _moves_freely(multigrid, modes):
    """Whether a combination of rigid motions of the active dofs needs no force, to working precision."""
    modes = modes.reshape(len(modes), -1)
    values, vectors = np.linalg.eigh(modes @ modes.T)
    present = values > ROUNDING * values[-1]
    basis = (vectors[:, present] / np.sqrt(values[present])).T @ modes
    energy = basis @ np.stack([multigrid.product(mode) for mode in basis], axis=1)
    scale = basis * multigrid.diagonal @ basis.T
    return bool(np.linalg.eigvalsh(energy)[0] <= FREE * np.linalg.eigvalsh(scale)[-1])


def _least_eigenvalue(multigrid, active):
    """The least eigenvalue of (V-cycle x matrix), from the coefficients of conjugate gradients (Lanczos' method)."""
    r = np.where(active, np.random.default_rng(0).standard_normal(active.shape), 0.0).ravel()
    p, rho, steps, turns = np.zeros_like(r), 1.0, [], []
    for number in range(LANCZOS_STEPS):
        s = multigrid.cycle(r)
        rho, before = float(r @ s), rho
        turns.append(rho / before if number else 0.0)
        p = s + turns[-1] * p
        q = multigrid.product(p)
        steps.append(rho / float(p @ q))
        r = r - steps[-1] * q
    step, turn = np.array(steps), np.array(turns)
    diagonal = 1 / step
    diagonal[1:] += turn[1:] / step[:-1]
    return float(eigvalsh_tridiagonal(diagonal, np.sqrt(turn[1:]) / step[:-1], select="i", select_range=(0, 0))[0])
