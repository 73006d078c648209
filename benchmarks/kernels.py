"""The four contractions against what else computes them: ``OMP_NUM_THREADS=1 python benchmarks/kernels.py``.

Peers, each optional: scikit-fem, Numba, and dolfinx (another interpreter may hold it: --dolfinx
/usr/bin/python3). All build the same operator; that is checked before they are timed.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import LAWS, Remote, optional, print_table, problem, race, save

import elastofast as ef


def main():
    """Run all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dolfinx", default="python3", help="interpreter that can import dolfinx")
    options = parser.parse_args()
    cases = [(n, name, law) for n in options.sizes for name, law in LAWS.items()]
    dtypes = (np.float64, np.float32)
    tables = {"products": [products(*case, dtype, options.rounds) for case in cases for dtype in dtypes]}
    print_table([*tables["products"][0]], [[*row.values()] for row in tables["products"]])
    tables["assembly"] = [assembly(*case, options) for case in cases]
    for row in tables["assembly"]:
        times = row["times"]
        own = times["stiffness(x, out=K)"]["median"]
        print_table(
            [f"{row['grid']}, {row['law']}", "ms", "of stiffness"],
            [[k, 1e3 * t["median"], t["median"] / own] for k, t in times.items()],
        )
    save("kernels", tables)


def products(n, name, law, dtype, rounds):
    """``force`` against a sparse product with a matrix that exists already, and ``sensitivity``."""
    form, x, _ = problem(n, law)
    x = x.astype(dtype)
    u, v = np.random.default_rng(0).normal(size=(2, *form.dof_shape)).astype(dtype)
    k, flat = form.stiffness(x), u.ravel()
    times = race(
        {
            "force": lambda: form.force(x, u),
            "scipy": lambda: k @ flat,
            "sensitivity": lambda: form.sensitivity(u, v),
        },
        rounds,
    )
    row = {"grid": f"{n} x {n}", "law": name, "dtype": np.dtype(dtype).name}
    row |= {f"{key} ms": 1e3 * t["median"] for key, t in times.items()}
    row["scipy / force"] = row["scipy ms"] / row["force ms"]
    row["force min ms"] = 1e3 * times["force"]["min"]
    return row


def assembly(n, name, law, options):
    """Values of K(x) for a new x in an existing pattern, by all who can."""
    form, x, _ = problem(n, law)
    k = form.stiffness(x)
    u = np.random.default_rng(0).normal(size=form.dof_shape)
    d = form.contraction(u)
    contestants = {
        "K.data.fill": lambda: k.data.fill(1.0),
        "stiffness(x, out=K)": lambda: form.stiffness(x, out=k),
        "D.data.fill": lambda: d.data.fill(1.0),
        "contraction(u, out=D)": lambda: form.contraction(u, out=d),
    }
    truth = k.copy()
    nodes, psi = element_tables(form)
    scatter = place_of_entries(truth, nodes)

    def bincount():
        values = x.ravel()[nodes] @ psi
        return np.bincount(scatter.ravel(), values.ravel(), minlength=truth.nnz)

    check("numpy bincount", bincount(), truth.data)
    contestants["numpy bincount, fixed pattern"] = bincount
    with optional("numba"):
        refill = numba_refill()
        data = np.empty(truth.nnz)
        refill(x.ravel(), nodes, psi, scatter, data)
        check("numba", data, truth.data)
        contestants["numba scatter, fixed pattern"] = lambda: refill(x.ravel(), nodes, psi, scatter, data)
    with optional("scikit-fem"):
        assemble = scikit_fem(form, x)
        matrix, order = assemble()
        difference = matrix[order][:, order] - truth
        check("scikit-fem", abs(difference).max(), 0.0, scale=abs(truth.data).max())
        contestants["scikit-fem"] = assemble
    remote = None
    with optional("dolfinx"):
        script = Path(__file__).with_name("dolfinx_assembly.py")
        h0, h1 = form.geometry.spacing
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/x.npy", x)
            numbers = (h0, h1, law.lame_lambda, law.lame_mu)
            remote = Remote(options.dolfinx, script, f"{folder}/x.npy", *numbers, name)
        check("dolfinx", remote.ready["norm"], np.linalg.norm(truth.data), scale=np.linalg.norm(truth.data))
        contestants["dolfinx"] = remote
    times = race(contestants, options.rounds)
    if remote:
        remote.close()
    return {"grid": f"{n} x {n}", "law": name, "times": times}


def check(name, got, wanted, scale=None):
    """Refuse to time a peer that computes something else."""
    error = np.max(np.abs(got - wanted)) / (np.max(np.abs(wanted)) if scale is None else scale)
    if error > 1e-10:
        raise AssertionError(f"{name} computes another operator: relative difference {error:.1e}")


def element_tables(form):
    """Node numbers of each cell and the constant table of one cell, for the generic scatter."""
    n0, n1 = form.node_shape
    corner = (np.arange(n0 - 1)[:, None] * n1 + np.arange(n1 - 1)).ravel()
    nodes = corner[:, None] + np.array([0, 1, n1, n1 + 1])
    cell = ef.ElasticForm(ef.Grid((2, 2), form.geometry.spacing), form.law)
    psi = np.stack([cell.stiffness(e.reshape(2, 2)).toarray() for e in np.eye(4)])
    return nodes, psi.reshape(4, 64)


def place_of_entries(matrix, nodes):
    """Where the 64 entries of each cell stand in ``matrix.data``."""
    n = matrix.shape[0] // 2
    dofs = np.hstack([nodes, nodes + n])
    rows = np.repeat(dofs, 8, axis=1)
    columns = np.tile(dofs, (1, 8))
    keys = np.repeat(np.arange(2 * n), np.diff(matrix.indptr)) * (2 * n) + matrix.indices
    return np.searchsorted(keys, rows * (2 * n) + columns).astype(np.int32)


def numba_refill():
    """Scatter of all cells by Numba."""
    import numba

    @numba.njit(fastmath=True)
    def refill(x, nodes, psi, scatter, data):
        data[:] = 0
        for c in range(len(nodes)):
            x0, x1, x2, x3 = x[nodes[c, 0]], x[nodes[c, 1]], x[nodes[c, 2]], x[nodes[c, 3]]
            for e in range(64):
                data[scatter[c, e]] += x0 * psi[0, e] + x1 * psi[1, e] + x2 * psi[2, e] + x3 * psi[3, e]

    return refill


def scikit_fem(form, x):
    """Assembly by scikit-fem with mesh and bases made beforehand."""
    import skfem
    from skfem.helpers import ddot, div, sym_grad

    n0, n1 = form.node_shape
    h0, h1 = form.geometry.spacing
    mesh = skfem.MeshQuad.init_tensor(h0 * np.arange(n0), h1 * np.arange(n1))
    node = np.rint(mesh.p / [[h0], [h1]]).astype(int)  # ours at each of theirs
    node = node[0] * n1 + node[1]
    vector, scalar = skfem.ElementVector(skfem.ElementQuad1()), skfem.ElementQuad1()
    lam, mu, reduced = form.law.lame_lambda, form.law.lame_mu, form.law.mean_dilatation

    @skfem.BilinearForm
    def shear(u, v, w):
        return 2 * mu * w["x"] * ddot(sym_grad(u), sym_grad(v))

    @skfem.BilinearForm
    def volume(u, v, w):
        return lam * w["x"] * div(u) * div(v)

    @skfem.BilinearForm
    def both(u, v, w):
        return w["x"] * (2 * mu * ddot(sym_grad(u), sym_grad(v)) + lam * div(u) * div(v))

    four, one = skfem.quadrature.get_quadrature(vector, 3), (np.full((2, 1), 0.5), np.ones(1))
    parts = [(shear, four), (volume, one)] if reduced else [(both, four)]
    bases = [skfem.Basis(mesh, vector, quadrature=points) for _, points in parts]
    values = [basis.with_element(scalar) for basis in bases]
    theirs = np.empty(len(node), int)
    theirs[node] = np.arange(len(node))
    order = np.concatenate([bases[0].nodal_dofs[i][theirs] for i in range(2)])

    def assemble():
        modulus = x.ravel()[node]
        matrix = sum(
            part.assemble(basis, x=value.interpolate(modulus))
            for (part, _), basis, value in zip(parts, bases, values, strict=True)
        )
        return matrix, order

    return assemble


if __name__ == "__main__":
    main()
