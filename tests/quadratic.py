"""Reference displacements by scikit-fem: quadratic elements on a square or cube, an element of other software."""

from itertools import product

import numpy as np


def compressed(law, modulus, size, n, strain=0.01):
    """Displacement (d, n, ..., n) of a block of edge ``size`` that a frictionless plate pushes along its last axis. All
    its faces at zero are on frictionless plates too.

    ``modulus`` is a function of the coordinates, and n the number of nodes along each axis.
    """
    import skfem
    from skfem.helpers import ddot, sym_grad, trace

    line = np.linspace(0, size, n)
    if law.dim == 2:
        mesh, element = skfem.MeshQuad.init_tensor(line, line), skfem.ElementQuad2()
    else:
        mesh, element = skfem.MeshHex.init_tensor(line, line, line), skfem.ElementHex2()
    basis = skfem.Basis(mesh, skfem.ElementVector(element), intorder=4)

    @skfem.BilinearForm
    def elasticity(u, v, w):
        e, f = sym_grad(u), sym_grad(v)
        return modulus(*w.x) * (law.lame_lambda * trace(e) * trace(f) + 2 * law.lame_mu * ddot(e, f))

    k, x, component = elasticity.assemble(basis), basis.doflocs, np.zeros(basis.N, int)
    for kind, i in product(("nodal_dofs", "edge_dofs", "facet_dofs", "interior_dofs"), range(law.dim)):
        component[getattr(basis, kind)[i :: law.dim].ravel()] = i
    held, u = np.zeros(basis.N, bool), np.zeros(basis.N)
    for i in range(law.dim):
        held |= (component == i) & (x[i] < 1e-9 * size)
    top = (component == law.dim - 1) & (x[-1] > (1 - 1e-9) * size)
    u[top] = -strain * size
    u = skfem.solve(*skfem.condense(k, x=u, D=np.flatnonzero(held | top)))
    at = np.ravel_multi_index(np.rint(mesh.p / size * (n - 1)).astype(int), (n,) * law.dim)
    out = np.empty((law.dim, n**law.dim))
    for i in range(law.dim):
        out[i, at] = u[basis.nodal_dofs[i]]
    return out.reshape(law.dim, *(n,) * law.dim)


def plates(points, size, strain=0.01):
    """The same supports as masks and values (d, N) of fixed dofs at points (N, d)."""
    x = points.T
    fixed, displacement = x < 1e-9 * size, np.zeros_like(x)
    top = x[-1] > (1 - 1e-9) * size
    fixed[-1] |= top
    displacement[-1, top] = -strain * size
    return fixed, displacement


def simplices(shape, pattern):
    """Cells of a lattice of nodes: "diagonal" (all squares cut the same way), "union jack" (turn about), or in three
    dimensions "five" tetrahedra a cube.
    """
    number = np.arange(np.prod(shape)).reshape(shape)
    corner = {
        at: number[tuple(slice(k, n - 1 + k) for k, n in zip(at, shape, strict=True))].ravel()
        for at in product((0, 1), repeat=len(shape))
    }
    odd = np.add.reduce(np.indices([n - 1 for n in shape])).ravel() % 2 == 1
    if len(shape) == 2:
        a, b, c, d = (corner[at] for at in ((0, 0), (1, 0), (1, 1), (0, 1)))
        one = [np.stack(t, 1) for t in ((a, b, c), (a, c, d))]
        other = [np.stack(t, 1) for t in ((a, b, d), (b, c, d))]
        if pattern == "diagonal":
            return np.concatenate(one)
        return np.concatenate([t[odd] for t in one] + [t[~odd] for t in other])
    flip = [{at: corner[tuple((k + s * (i == 0)) % 2 for i, k in enumerate(at))] for at in corner} for s in (0, 1)]
    tets = (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)),
        ((1, 0, 1), (1, 0, 0), (0, 0, 1), (1, 1, 1)),
        ((0, 1, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
        ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    )
    return np.concatenate(
        [np.stack([f[at] for at in tet], 1)[mask] for f, mask in zip(flip, (odd, ~odd), strict=True) for tet in tets]
    )


def lattice(d, n, size):
    """Points (n^d, d) of a lattice."""
    return np.stack(np.meshgrid(*[np.linspace(0, size, n)] * d, indexing="ij"), axis=-1).reshape(-1, d)
