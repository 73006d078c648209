"""Dense reference of the trilinear form, by plain quadrature on every cell: slow and obvious.

``psi[n]`` is the dN x dN matrix Psi_n of a(x; u, v) = sum_n x_n v^T Psi_n u; dof = component * N + node.

    force(x, u)       = einsum("n,nij,j->i", x, psi, u)     stiffness(x)   = einsum("n,nij->ij", x, psi)
    sensitivity(u, v) = einsum("i,nij,j->n", v, psi, u)     contraction(u) = einsum("nij,j->in", psi, u)
"""

from itertools import product
from math import factorial

import numpy as np

import elastofast.geometry as geometry_module


def dense_psi(geometry, law):
    """All Psi_n, shape (N, dN, dN), of a small Grid or Mesh."""
    if isinstance(geometry, geometry_module.Mesh):
        return _mesh_psi(geometry, law)
    return _grid_psi(geometry, law)


def elasticity(law, volumetric, deviatoric):
    """C_ijkl per unit modulus: lambda d_ij d_kl (volumetric) + mu (d_ik d_jl + d_il d_jk) (deviatoric)."""
    eye = np.eye(law.dim)
    c = np.zeros((law.dim,) * 4)
    if volumetric:
        c += law.lame_lambda * np.einsum("ij,kl->ijkl", eye, eye)
    if deviatoric:
        c += law.lame_mu * (np.einsum("ik,jl->ijkl", eye, eye) + np.einsum("il,jk->ijkl", eye, eye))
    return c


def _add(psi, nodes, shape, gradients, weight, c):
    """Add weight * shape_n * C_ijkl grad_j(phi_a) grad_l(phi_b) to psi[n][(i, a), (k, b)]."""
    n_nodes, d = len(psi), gradients.shape[1]
    k = weight * np.einsum("aj,ijkl,bl->iakb", gradients, c, gradients).reshape(d * len(nodes), -1)
    dofs = (np.arange(d)[:, None] * n_nodes + nodes).ravel()
    for n, value in zip(nodes, shape, strict=True):
        psi[n][np.ix_(dofs, dofs)] += value * k


def _multilinear(place, h):
    """The 2^d shape functions at a place in [0, 1]^d and their gradients (1/m); corners in the order of np.ndindex."""
    place, plus = np.asarray(place), np.array(list(np.ndindex((2,) * len(h))))
    factors = np.where(plus, place, 1 - place)
    gradients = [np.where(plus[:, i], 1, -1) * np.delete(factors, i, axis=1).prod(axis=1) / h[i] for i in range(len(h))]
    return factors.prod(axis=1), np.stack(gradients, axis=1)


def _grid_psi(grid, law):
    d, n_nodes, h = grid.dim, grid.n_nodes, np.array(grid.spacing)
    psi = np.zeros((n_nodes, d * n_nodes, d * n_nodes))
    gauss = 0.5 + np.array([-0.5, 0.5]) / np.sqrt(3)
    reduced = law.mean_dilatation  # the lambda term sees cell means only
    for first in np.ndindex(tuple(n - 1 for n in grid.shape)):
        nodes = np.array([np.ravel_multi_index(np.add(first, corner), grid.shape) for corner in np.ndindex((2,) * d)])
        for place in product(gauss, repeat=d):
            c = elasticity(law, volumetric=not reduced, deviatoric=True)
            _add(psi, nodes, *_multilinear(place, h), h.prod() / 2**d, c)
        if reduced:
            c = elasticity(law, volumetric=True, deviatoric=False)
            _add(psi, nodes, *_multilinear([0.5] * d, h), h.prod(), c)
    return psi


def _mesh_psi(mesh, law):
    d, n_nodes = mesh.dim, mesh.n_nodes
    psi = np.zeros((n_nodes, d * n_nodes, d * n_nodes))
    averaged = law.mean_dilatation and mesh.mean_dilatation
    c = elasticity(law, volumetric=not averaged, deviatoric=True)
    # degree-two rule: one point towards each vertex
    near = {2: 2 / 3, 3: 0.5854101966249685}[d]
    rule = np.full((d + 1, d + 1), (1 - near) / d) + np.eye(d + 1) * (near - (1 - near) / d)
    shares, divergences = np.zeros(n_nodes), np.zeros((n_nodes, d, n_nodes))
    for nodes in mesh.cells:
        vandermonde = np.column_stack([np.ones(d + 1), mesh.points[nodes]])
        gradients = np.linalg.inv(vandermonde)[1:].T  # phi_a = coefficient column a of [1, x, y, z]
        volume = abs(np.linalg.det(vandermonde)) / factorial(d)
        for barycentric in rule:
            _add(psi, nodes, barycentric, gradients, volume / (d + 1), c)
        for n in nodes:
            shares[n] += volume / (d + 1)
            divergences[n][:, nodes] += volume / (d + 1) * gradients.T
    if averaged:  # the lambda term sees the mean over the cells around each node only
        for n, b in enumerate(divergences.reshape(n_nodes, -1)):
            psi[n] += law.lame_lambda / shares[n] * np.outer(b, b)
    return psi


def scikit_fem_stiffness(grid, law, x, full, volumetric):
    """K(x) of scikit-fem on a grid, our numbering of the dofs: a (bi- or tri-)linear modulus x at the nodes.

    ``full`` and ``volumetric`` are the options of its bases that state the quadrature of the mu and the lambda term.
    """
    import skfem
    from skfem.helpers import ddot, sym_grad, trace

    axes = [h * np.arange(n) for n, h in zip(grid.shape, grid.spacing, strict=True)]
    kind, element = ((skfem.MeshQuad, skfem.ElementQuad1), (skfem.MeshHex, skfem.ElementHex1))[grid.dim - 2]
    mesh = kind.init_tensor(*axes)
    number = np.ravel_multi_index(np.rint(mesh.p / np.array(grid.spacing)[:, None]).astype(int), grid.shape)

    @skfem.BilinearForm
    def lambda_term(u, v, w):
        return w.e * law.lame_lambda * trace(sym_grad(u)) * trace(sym_grad(v))

    @skfem.BilinearForm
    def mu_term(u, v, w):
        return w.e * 2 * law.lame_mu * ddot(sym_grad(u), sym_grad(v))

    found = 0
    for term, rule in ((lambda_term, volumetric), (mu_term, full)):
        basis = skfem.Basis(mesh, skfem.ElementVector(element()), **rule)
        modulus = basis.with_element(element()).interpolate(np.ravel(x)[number])
        found = found + term.assemble(basis, e=modulus)
    ours = np.empty(grid.dim * grid.n_nodes, int)
    for component in range(grid.dim):
        ours[component * grid.n_nodes + number] = basis.nodal_dofs[component]
    return found[ours][:, ours]


def gauss(dim):
    """Two Gauss points along each axis of a cell, as scikit-fem takes them."""
    points = np.array(list(np.ndindex(*[2] * dim))).T / np.sqrt(3) + 0.5 - 0.5 / np.sqrt(3)
    return {"quadrature": (points, np.full(2**dim, 0.5**dim))}


def centre(dim):
    """The middle of a cell, as scikit-fem takes it."""
    return {"quadrature": (np.full((dim, 1), 0.5), np.ones(1))}
