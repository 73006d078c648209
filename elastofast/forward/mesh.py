"""The trilinear form on simplex meshes (`Mesh`): linear triangles and tetrahedra, in Numba.

On a simplex with linear shape functions the strain is constant and a nodal modulus enters by its mean, so
with the gradients g_a of the shape functions and ``share`` = volume / (d + 1) one cell contributes

    a(x; u, v) = share * (sum of x over its nodes) * (lame_lambda div(u) div(v) + 2 lame_mu strain(u) :
    strain(v)).

Linear simplices lock where tissue is nearly incompressible: there are more cells, each of which is to keep its volume,
than the nodes have freedom for. For laws and meshes with ``mean_dilatation`` the sum of the first terms over the cells
is therefore one over the nodes,

    sum over nodes n of  lame_lambda x_n V_n mean_n(div u) mean_n(div v),

with the mean of the dilatation over the cells around a node, each weighted with its share, and V_n the sum of these
shares (averaged nodal pressure: Bonet and Burton, Commun. Numer. Methods Eng. 14, 1998). The form is as linear in x as
before and exact for the same fields, and D(u) keeps its pattern; in K(x) all nodes around a node are coupled.

Displacements enter as differences to the cell's first node, so rigid translations cost no digits in float32.
Cells are visited in order by one thread: results are reproducible to the last bit, and callers may run many
of these at once (the kernels release the GIL).
"""

from __future__ import annotations

from functools import cache, cached_property
from types import SimpleNamespace

import numpy as np
from scipy.sparse import csr_array

from .compile import njit
from .sparsity import SparsityPattern, contraction_pattern, stiffness_pattern

__all__ = ["MeshBackend"]


@njit(nogil=True, cache=True)
def _row2(u, b, i, cells, slopes, m):
    origin = u[b, i, cells[m, 0]]
    p, q = u[b, i, cells[m, 1]] - origin, u[b, i, cells[m, 2]] - origin
    return p * slopes[m, 0, 0] + q * slopes[m, 1, 0], p * slopes[m, 0, 1] + q * slopes[m, 1, 1]


@njit(nogil=True, cache=True)
def _row3(u, b, i, cells, slopes, m):
    origin = u[b, i, cells[m, 0]]
    p, q, r = u[b, i, cells[m, 1]] - origin, u[b, i, cells[m, 2]] - origin, u[b, i, cells[m, 3]] - origin
    return (
        p * slopes[m, 0, 0] + q * slopes[m, 1, 0] + r * slopes[m, 2, 0],
        p * slopes[m, 0, 1] + q * slopes[m, 1, 1] + r * slopes[m, 2, 1],
        p * slopes[m, 0, 2] + q * slopes[m, 1, 2] + r * slopes[m, 2, 2],
    )


@njit(nogil=True, cache=True)
def _gradient2(u, b, cells, slopes, m):
    """du[i][j] = d u_i / d x_j on cell m of batch member b, as nested tuples: they live in registers."""
    return _row2(u, b, 0, cells, slopes, m), _row2(u, b, 1, cells, slopes, m)


@njit(nogil=True, cache=True)
def _gradient3(u, b, cells, slopes, m):
    return (
        _row3(u, b, 0, cells, slopes, m),
        _row3(u, b, 1, cells, slopes, m),
        _row3(u, b, 2, cells, slopes, m),
    )


@njit(nogil=True, cache=True)
def _stress2(du, lam, mu, pressure):
    """s[i][j] of (lam div(u) + pressure) I + 2 mu strain."""
    volumetric = lam * (du[0][0] + du[1][1]) + pressure
    shear = mu * (du[0][1] + du[1][0])
    double = mu + mu  # not 2 * mu, which would turn float32 into float64
    return (volumetric + double * du[0][0], shear), (shear, volumetric + double * du[1][1])


@njit(nogil=True, cache=True)
def _stress3(du, lam, mu, pressure):
    volumetric = lam * (du[0][0] + du[1][1] + du[2][2]) + pressure
    double = mu + mu
    s01, s02, s12 = mu * (du[0][1] + du[1][0]), mu * (du[0][2] + du[2][0]), mu * (du[1][2] + du[2][1])
    return (
        (volumetric + double * du[0][0], s01, s02),
        (s01, volumetric + double * du[1][1], s12),
        (s02, s12, volumetric + double * du[2][2]),
    )


@cache
def _kernels(d: int, averaged: bool) -> SimpleNamespace:
    """Compile-on-call kernels for d dimensions: constants let the compiler drop branches and unroll the small
    loops.

    With ``averaged`` the kernels are called with lam = 0; the nodal pressures, or what stands for them, come as an
    argument. The closures hold nothing but a number and a truth value; with functions in them Numba would not find its
    cache again.
    """

    @njit(nogil=True, cache=True)
    def dilatation(cells, slopes, share, u, out):
        """Add the volume change of the cells around each node, each weighted with its share, to out (B, N)."""
        for b in range(len(u)):
            for m in range(len(cells)):
                if d == 2:
                    du2 = _gradient2(u, b, cells, slopes, m)
                    change = share[m] * (du2[0][0] + du2[1][1])
                else:
                    du3 = _gradient3(u, b, cells, slopes, m)
                    change = share[m] * (du3[0][0] + du3[1][1] + du3[2][2])
                for a in range(d + 1):
                    out[b, cells[m, a]] += change

    @njit(nogil=True, cache=True)
    def force(cells, slopes, share, lam, mu, x, u, pressures, out):
        for b in range(len(u)):
            for m in range(len(cells)):
                weight = x[b, cells[m, 0]]
                for a in range(d):
                    weight += x[b, cells[m, a + 1]]
                weight *= share[m]
                pressure = lam - lam  # a zero of the precision
                if averaged:
                    for a in range(d + 1):
                        pressure += pressures[b, cells[m, a]]
                    pressure *= share[m]
                if d == 2:
                    s = _stress2(_gradient2(u, b, cells, slopes, m), lam * weight, mu * weight, pressure)
                else:
                    s = _stress3(_gradient3(u, b, cells, slopes, m), lam * weight, mu * weight, pressure)
                for i in range(d):
                    for a in range(d):
                        f = s[i][0] * slopes[m, a, 0]
                        for j in range(1, d):
                            f += s[i][j] * slopes[m, a, j]
                        out[b, i, cells[m, a + 1]] += f
                        out[b, i, cells[m, 0]] -= f

    @njit(nogil=True, cache=True)
    def sensitivity(cells, slopes, share, lam, mu, u, v, out):
        for b in range(len(u)):
            for m in range(len(cells)):
                if d == 2:
                    s = _stress2(_gradient2(u, b, cells, slopes, m), lam * share[m], mu * share[m], lam - lam)
                    dv = _gradient2(v, b, cells, slopes, m)
                else:
                    s = _stress3(_gradient3(u, b, cells, slopes, m), lam * share[m], mu * share[m], lam - lam)
                    dv = _gradient3(v, b, cells, slopes, m)
                energy = s[0][0] * dv[0][0]
                for i in range(d):
                    for j in range(d):
                        if i + j > 0:
                            energy += s[i][j] * dv[i][j]
                for a in range(d + 1):
                    out[b, cells[m, a]] += energy

    @njit(nogil=True, cache=True)
    def stiffness(cells, slopes, share, lam, mu, indptr, places, x, out):
        nnz = indptr[-1]
        g = np.empty((d + 1, d), x.dtype)
        for m in range(len(cells)):
            weight = x[cells[m, 0]]
            for j in range(d):
                g[0, j] = 0
            for a in range(d):
                weight += x[cells[m, a + 1]]
                for j in range(d):
                    g[a + 1, j] = slopes[m, a, j]
                    g[0, j] -= slopes[m, a, j]
            weight *= share[m]
            for a in range(d + 1):
                start = indptr[cells[m, a]]
                degree = indptr[cells[m, a] + 1] - start
                for b in range(d + 1):
                    dot = g[a, 0] * g[b, 0]
                    for j in range(1, d):
                        dot += g[a, j] * g[b, j]
                    # row (i, node a) is d runs, one per component j, of places for the node's neighbours
                    at = start * d + places[m, a, b]
                    for i in range(d):
                        for j in range(d):
                            value = lam * g[a, i] * g[b, j] + mu * g[a, j] * g[b, i]
                            if i == j:
                                value += mu * dot
                            out[at + i * nnz * d + j * degree] += weight * value

    @njit(nogil=True, cache=True)
    def averages(indptr, nodes, weights, factor, wide_indptr, wide_nodes, out):
        """Add the sum over nodes n of factor_n b_n b_n^T to the values of K, with b_n the derivative of the volume
        change around the node by the displacements of the nodes around it.
        """
        nnz = wide_indptr[-1]
        for n in range(len(factor)):
            for first in range(indptr[n], indptr[n + 1]):
                start = wide_indptr[nodes[first]]
                degree = wide_indptr[nodes[first] + 1] - start
                place = 0
                for second in range(indptr[n], indptr[n + 1]):
                    while wide_nodes[start + place] != nodes[second]:
                        place += 1
                    at = start * d + place
                    for i in range(d):
                        scaled = factor[n] * weights[first, i]
                        for j in range(d):
                            out[at + i * nnz * d + j * degree] += scaled * weights[second, j]

    @njit(nogil=True, cache=True)
    def contraction(cells, slopes, share, lam, mu, indptr, places, u, pressures, out):
        nnz = indptr[-1]
        for m in range(len(cells)):
            if d == 2:
                s = _stress2(_gradient2(u, 0, cells, slopes, m), lam * share[m], mu * share[m], lam - lam)
            else:
                s = _stress3(_gradient3(u, 0, cells, slopes, m), lam * share[m], mu * share[m], lam - lam)
            for i in range(d):
                for a in range(d):
                    f = s[i][0] * slopes[m, a, 0]
                    for j in range(1, d):
                        f += s[i][j] * slopes[m, a, j]
                    for b in range(d + 1):
                        t = f
                        if averaged:
                            t += share[m] * pressures[0, cells[m, b]] * slopes[m, a, i]
                        out[i * nnz + indptr[cells[m, a + 1]] + places[m, a + 1, b]] += t
                        out[i * nnz + indptr[cells[m, 0]] + places[m, 0, b]] -= t

    return SimpleNamespace(
        dilatation=dilatation,
        force=force,
        sensitivity=sensitivity,
        stiffness=stiffness,
        averages=averages,
        contraction=contraction,
    )


class MeshBackend:
    """The four contractions of the form on one `Mesh` with one law.

    Arrays must be contiguous, of one dtype (float64 or float32) and of the shapes below; `ElasticForm` sees
    to that. Results have the dtype of the arguments, which is also the one that sums are kept in.

    Parameters
    ----------
    mesh : Mesh
        N nodes in d dimensions.
    law : Law
        A law with ``law.dim == mesh.dim``, which `ElasticForm` checks.
    """

    def __init__(self, mesh, law):
        self.mesh = mesh
        self.law = law
        self._averages = law.mean_dilatation and mesh.mean_dilatation
        self._run = _kernels(mesh.dim, self._averages)
        self._cells = np.ascontiguousarray(mesh.cells, dtype=np.int32)
        edges = mesh.points[mesh.cells[:, 1:]] - mesh.points[mesh.cells[:, :1]]
        # gradients of the shape functions of nodes 1..d, shape (M, d, d); that of node 0 is minus their sum
        self._slopes = np.ascontiguousarray(np.linalg.inv(edges).transpose(0, 2, 1))
        self._share = mesh.cell_volumes / (mesh.dim + 1)
        self._tables, self._place_tables = {}, {}

    def _table(self, dtype):
        """Cells, gradients, volume shares and Lame numbers in the precision of the call; the first Lame number is zero
        if the dilatation is averaged, because the volumetric term is then not one of the cells.
        """
        if dtype not in self._tables:
            self._tables[dtype] = (
                self._cells,
                self._slopes.astype(dtype, copy=False),
                self._share.astype(dtype, copy=False),
                dtype.type(0 if self._averages else self.law.lame_lambda),
                dtype.type(self.law.lame_mu),
            )
        return self._tables[dtype]

    def _averaged(self, u):
        """Mean dilatation around each node (B, N), times lame_lambda; nothing (B, 0) if it is not averaged."""
        if not self._averages:
            return np.empty((len(u), 0), u.dtype)
        out = self._volume_change(u)
        out *= (self.law.lame_lambda / self.mesh.node_weights).astype(u.dtype, copy=False)
        return out

    def _volume_change(self, u):
        out = np.zeros((len(u), self.mesh.n_nodes), u.dtype)
        self._run.dilatation(*self._table(u.dtype)[:3], u, out)
        return out

    def force(self, x, u, out=None):
        """K(x) u for a batch: x (B, N) and u (B, d, N) give (B, d, N), and whether all of it is finite."""
        out = _zeros(out, u.shape, u.dtype)
        pressures = self._averaged(u)
        if self._averages:
            pressures *= x
        self._run.force(*self._table(u.dtype), x, u, pressures, out)
        return out, bool(np.isfinite(out.sum()))

    def sensitivity(self, u, v, out=None):
        """D(u)^T v for a batch: u and v (B, d, N) give (B, N), and whether all of it is finite."""
        out = _zeros(out, (len(u), self.mesh.n_nodes), u.dtype)
        self._run.sensitivity(*self._table(u.dtype), u, v, out)
        if self._averages:
            out += self._averaged(u) * self._volume_change(v)
        return out, bool(np.isfinite(out.sum()))

    def stiffness(self, x, out=None):
        """K(x) of x (N,) as a dN x dN CSR array, dof = component * N + node.

        All results share one sparsity pattern, whose arrays are therefore read-only; ``.copy()`` gives a
        private one.
        """
        indptr, nodes = self._coupled
        out = self.stiffness_pattern.matrix(x.dtype, out)
        out.data[:] = 0
        self._run.stiffness(*self._table(x.dtype), indptr, self._places(indptr, nodes), x, out.data)
        if self._averages:
            factor = x * (self.law.lame_lambda / self.mesh.node_weights).astype(x.dtype, copy=False)
            weights = self._volume_change_weights.astype(x.dtype, copy=False)
            self._run.averages(*self._neighbours, weights, factor, indptr, nodes, out.data)
        return out

    def contraction(self, u, out=None):
        """D(u) of u (d, N) as a dN x N CSR array, row = component * N + node; patterns as in `stiffness`."""
        indptr, nodes = self._neighbours
        out = self.contraction_pattern.matrix(u.dtype, out)
        out.data[:] = 0
        places = self._places(indptr, nodes)
        self._run.contraction(*self._table(u.dtype), indptr, places, u[None], self._averaged(u[None]), out.data)
        return out

    def solver(self, x, active, shift=None):
        """`MeshSolver` for K(x) + diag(shift) on the active dofs."""
        from .mesh_solver import MeshSolver

        return MeshSolver(self, x, active, shift)

    @cached_property
    def hierarchy(self):
        """What multigrid needs of the body, whatever its moduli."""
        from .mesh_multigrid import MeshHierarchy

        return MeshHierarchy(self.mesh, *self._coupled)

    @cached_property
    def _neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """The nodes that share a cell with a node, itself included, in ascending order, as CSR (indptr, nodes)."""
        n, k = self.mesh.n_nodes, self.mesh.dim + 1
        rows, columns = np.repeat(self.mesh.cells, k, axis=1), np.tile(self.mesh.cells, k)
        return _graph(csr_array((np.ones(rows.size, bool), (rows.ravel(), columns.ravel())), shape=(n, n)))

    @cached_property
    def _coupled(self) -> tuple[np.ndarray, np.ndarray]:
        """The nodes whose displacements cause forces at a node: its neighbours, or theirs too if the dilatation is
        averaged.
        """
        if not self._averages:
            return self._neighbours
        n, (indptr, nodes) = self.mesh.n_nodes, self._neighbours
        graph = csr_array((np.ones(len(nodes), np.int32), nodes, indptr), shape=(n, n))
        return _graph(graph @ graph)

    def _places(self, indptr, nodes):
        """For every pair (a, b) of a cell's nodes the place of b in the row of a, shape (M, d + 1, d + 1)."""
        if len(nodes) not in self._place_tables:
            n, k = self.mesh.n_nodes, self.mesh.dim + 1
            pairs = np.repeat(np.arange(n), np.diff(indptr)) * n + nodes
            rows = np.repeat(self.mesh.cells, k, axis=1)
            places = np.searchsorted(pairs, rows * n + np.tile(self.mesh.cells, k)) - indptr[rows]
            self._place_tables[len(nodes)] = places.astype(np.min_scalar_type(places.max())).reshape(-1, k, k)
        return self._place_tables[len(nodes)]

    @cached_property
    def _volume_change_weights(self):
        """Derivative of the volume change around each node by the displacement of each of its neighbours, one row (d,)
        for each entry of the neighbours' table.
        """
        indptr, nodes = self._neighbours
        places = self._places(indptr, nodes)
        slopes = np.concatenate([-self._slopes.sum(axis=1, keepdims=True), self._slopes], axis=1)
        at = (indptr[self.mesh.cells][:, :, None] + places).ravel()
        values = np.broadcast_to((self._share[:, None, None] * slopes)[:, None], (*places.shape, self.mesh.dim))
        values = values.reshape(-1, self.mesh.dim)
        return np.stack([np.bincount(at, column, len(nodes)) for column in values.T], axis=1)

    @cached_property
    def stiffness_pattern(self) -> SparsityPattern:
        """The pattern of K, shared by all its matrices."""
        return stiffness_pattern(*self._coupled, self.mesh.dim)

    @cached_property
    def contraction_pattern(self) -> SparsityPattern:
        """The pattern of D, shared by all its matrices."""
        return contraction_pattern(*self._neighbours, self.mesh.dim)


def _graph(matrix):
    """Row starts and columns, in ascending order, of a sparse matrix."""
    matrix.sum_duplicates()
    matrix.sort_indices()
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)


def _zeros(out, shape, dtype):
    """The given array cleared, since kernels add into it, or a new one."""
    if out is None:
        return np.zeros(shape, dtype)
    out[...] = 0
    return out
